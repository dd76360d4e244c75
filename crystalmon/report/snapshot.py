"""The answers of one probe for a tracker's media, and how often a tracker gets them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crystalmon.records import ProbeRecord


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


@dataclass
class Pace:
    """Decides which probes are shown: the first, changes of phase, and ever fewer of the rest.

    Args:
        every: at first, so many probes from one to the next; the distance grows by a fifth of
            the probes done, so that 1,000 probes make about 20 pictures.
        patience: pictures take at most about 1 / patience of the time, the first one apart.
    """

    every: int = 10
    patience: float = 50.0
    _probes: int = 0
    _next: int = 0
    _phase: str | None = None
    _cost: float = 0.0
    _since: float = -np.inf

    def is_due(self, phase: str) -> bool:
        """Count one more probe; whether it is to be shown."""
        index, self._probes = self._probes, self._probes + 1
        rested = time.monotonic() - self._since >= self.patience * self._cost
        due = index >= self._next or phase != self._phase
        if not (due and rested):
            return False
        self._next = index + max(self.every, index // 5)
        self._phase = phase
        return True

    def took(self, seconds: float) -> None:
        """Note what the last picture cost."""
        self._cost, self._since = seconds, time.monotonic()
