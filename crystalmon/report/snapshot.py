"""The answers of one probe, as a tracker's media show them: a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.wordings import TaskTexts, end_words

COLUMNS = ["step", "task", "phase", "choice", "share"]
"""What the entries of `Snapshot.rows` are."""


@dataclass(frozen=True)
class Snapshot:
    """One probe's answers, drawn when first asked for and only once for all trackers.

    Args:
        record: the probe.
        texts: by task; one without them has its choices numbered.
    """

    record: ProbeRecord
    texts: Mapping[str, TaskTexts]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The texts of the choices, by task."""
        return {name: texts.choices for name, texts in self.texts.items()}

    @property
    def ends(self) -> dict[str, str]:
        """Where the answers may end, by task past its onset: `end_words`."""
        return {
            name: end_words(task.seed_set, self.texts[name].prompts if name in self.texts else ())
            for name, task in self.record.tasks.items()
            if task.seed_set
        }

    @cached_property
    def image(self) -> np.ndarray:
        """[height, width, 3] uint8: prompts × choices of every task."""
        from crystalmon.report.answer_figures import probe_image  # it loads matplotlib

        return probe_image(self.record, self.choices)

    @cached_property
    def rows(self) -> list[list[str | float | int]]:
        """A row per task and choice; `share` is the choice's probability, mean over prompts."""
        rows: list[list[str | float | int]] = []
        for name, task in self.record.tasks.items():
            texts = self.choices.get(name) or [str(index) for index in range(task.q.shape[1])]
            rows += [
                [self.record.step, name, task.phase, text, round(float(share), 6)]
                for text, share in zip(texts, task.q.mean(axis=0), strict=True)
            ]
        return rows
