"""Keeping the cost of probing under a share of a run's wall time."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator

from crystalmon.suites.checks import is_number

SAVED_PROBES = 4
"""Time for so many probes is saved while the model hardly moves, and spent when it moves."""
REMEMBERED = 3
"""The next probe is taken to cost as much as the dearest of so many latest ones."""


class Budget:
    """Says how long to wait until another probe is affordable.

    With E the seconds so far, D those spent and c what a probe costs, one is affordable when
    D + (1 + k) · c ≤ share · (E + c). The k probes that are held back are the one at the end of
    the run, and `SAVED_PROBES` more while the model hardly moves. What is needed to begin, the
    base's answers and the first probe, is spent in advance and earned back before the next one.

    Args:
        share: of the wall time since this object was made, in (0, 1]; infinite for no limit.
        clock: seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share = share
        self.spent = 0.0
        self._clock, self._began = clock, clock()
        self._costs: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._began

    @property
    def trained(self) -> float:
        """Of these, the seconds not spent here."""
        return self.elapsed - self.spent

    @property
    def typical_cost(self) -> float:
        """The median of the latest probes' seconds; 0 before the first."""
        return statistics.median(self._costs) if self._costs else 0.0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of the body, also when it raises."""
        began = self._clock()
        try:
            yield
        finally:
            self.spent += self._clock() - began

    def expect(self, seconds: float) -> None:
        """Note what a probe has cost, from which the next one's cost is guessed."""
        self._costs.append(seconds)

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds of other work, done now, keep to the share."""
        return self.spent + seconds <= self.share * (self.elapsed + seconds)

    def wait(self, *, moving: bool = False, last: bool = False) -> float:
        """Seconds until a probe is affordable; 0 if it is now.

        Args:
            moving: the model is changing, so saved-up time may be spent.
            last: the run ends here, so nothing is held back.
        """
        if self.share >= 1:  # all of the time may be spent
            return 0.0
        held_back = 0 if last else 1 if moving else 1 + SAVED_PROBES
        cost = max(self._costs, default=0.0)
        needed = (self.spent + (1 + held_back) * cost) / self.share - cost
        return max(0.0, needed - self.elapsed)


def check_share(share: float | None) -> float | None:
    """The largest share of a run's time to spend, or None for no limit.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not within (0, 1].
    """
    if share is None:
        return None
    if not is_number(share):
        raise TypeError(f"max_overhead must be a number or None, got {type(share).__name__}.")
    if not 0 < share <= 1:
        raise ValueError(
            f"max_overhead must be within (0, 1], got {share}. 0.01 is 1% of the time."
        )
    return float(share)
