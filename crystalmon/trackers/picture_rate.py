"""How often trackers get pictures: drawing and sending them must not slow the training down."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass
class PictureRate:
    """Picks the probes to show: the first, each change of phase, and ever fewer of the rest.

    Args:
        every: the least distance between two pictures, in probes. The distance grows by a fifth of
            the probes done, so 1,000 probes make about 20 pictures.
        patience: pictures, apart from the first, take at most about 1 / patience of the time.
    """

    every: int = 10
    patience: float = 50.0
    _probes: int = 0
    _next: int = 0
    _phase: str | None = None
    _rests_until: float = -math.inf

    def is_due(self, phase: str) -> bool:
        """Count one more probe; returns whether to show it."""
        index, self._probes = self._probes, self._probes + 1
        due = index >= self._next or phase != self._phase
        if not due or time.monotonic() < self._rests_until:
            return False
        self._next, self._phase = index + max(self.every, index // 5), phase
        return True

    def took(self, seconds: float) -> None:
        """Note what the last picture cost."""
        self._rests_until = time.monotonic() + self.patience * seconds
