"""Keeping the cost of probing under a share of a run's wall time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

SAVED_PROBES = 4
"""Probes that are saved up while nothing moves, to be spent when something does."""


class Budget:
    """Says when another probe is affordable.

    With E the seconds so far, D those spent and c the dearest probe so far, a probe is affordable
    when D + (1 + k) · c ≤ share · (E + c). The k probes that are held back are the one at the end
    of the run, and `SAVED_PROBES` more while the model hardly moves. What is needed to begin, the
    base's answers and the first probe, is spent in advance and earned back before the next one.

    Args:
        share: of the wall time since this object was made, in (0, 1].
        clock: seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share = share
        self.spent = 0.0
        self._clock, self._began, self._dearest = clock, clock(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._began

    @contextlib.contextmanager
    def spending(self, probe: bool = True) -> Iterator[None]:
        """Count the time of the body, also when it raises; as the cost of a probe if it is one."""
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self.spent += seconds
            if probe:
                self._dearest = max(self._dearest, seconds)

    def affords(self, *, moving: bool = False, last: bool = False) -> bool:
        """Whether a probe now leaves enough for what may come.

        Args:
            moving: the model is changing: what was saved for that may be spent.
            last: the run ends here: nothing need be held back.
        """
        held_back = 0 if last else 1 if moving else 1 + SAVED_PROBES
        earned = self.share * (self.elapsed + self._dearest)
        return self.spent + (1 + held_back) * self._dearest <= earned
