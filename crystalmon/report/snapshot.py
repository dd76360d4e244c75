"""The answers of one probe, as a tracker's media show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crystalmon.runs.records import ProbeRecord


@dataclass(frozen=True)
class Snapshot:
    """One probe's answers, drawn when first asked for and only once for all trackers.

    Args:
        record: the probe.
        choices: the choices' texts by task.
    """

    record: ProbeRecord
    choices: Mapping[str, Sequence[str]]

    @cached_property
    def image(self) -> np.ndarray:
        """[height, width, 3] uint8: prompts × choices of every task."""
        from crystalmon.report.mosaic import mosaic_image

        return mosaic_image(self.record, self.choices)

    @cached_property
    def rows(self) -> list[list[str | float | int]]:
        """(step, task, phase, choice, share), a row per task and choice."""
        from crystalmon.report.mosaic import distribution_rows

        return distribution_rows(self.record, self.choices)

    @property
    def columns(self) -> list[str]:
        """What the rows' entries are."""
        from crystalmon.report.mosaic import DISTRIBUTION_COLUMNS

        return list(DISTRIBUTION_COLUMNS)
