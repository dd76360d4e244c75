"""The share of a run's wall time that monitoring takes, and what a probe costs."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

from crystalmon.suites.checks import is_number

DEFAULT_SHARE = 0.02
"""Of a run's time that monitoring may take unless the user says otherwise."""
REMEMBERED = 3
"""The next probe is taken to cost as much a token as the dearest of so many latest ones."""


class Budget:
    """Counts the time spent on monitoring, and foretells what a probe costs.

    Args:
        share: of the run's wall time that may be spent, in (0, 1); infinite for no limit.
        clock: seconds.

    Attributes:
        spent: seconds of monitoring so far: the base, the route, probes, trackers, pictures.
        apart: seconds of other measurements, which no share limits.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share = share
        self.spent = self.apart = 0.0
        self._clock, self._began = clock, clock()
        self._rates: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._began

    @property
    def trained(self) -> float:
        """Seconds since this object was made, less those of monitoring and experiments."""
        return self.elapsed - self.spent - self.apart

    @property
    def spent_share(self) -> float:
        """The share of the time so far that monitoring has taken."""
        return self.spent / max(self.elapsed, 1e-9)

    @contextlib.contextmanager
    def spending(self, apart: bool = False) -> Iterator[None]:
        """Count the time of the body, also when it raises; `apart` if no share limits it."""
        began = self._clock()
        try:
            yield
        finally:
            took = self._clock() - began
            if apart:
                self.apart += took
            else:
                self.spent += took

    def expect(self, tokens: int, seconds: float) -> None:
        """Note what a probe of so many tokens has cost, from which the next one's is guessed."""
        self._rates.append(seconds / max(1, tokens))

    def cost(self, tokens: int) -> float:
        """Seconds that a probe of so many tokens is expected to cost; 0 before the first."""
        return tokens * max(self._rates, default=0.0)


def check_share(share: float | None) -> float | None:
    """The largest share of a run's time to spend, None for no limit; 1 is none too.

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
            f"max_overhead must be within (0, 1], got {share}. 0.01 is 1% of the time; None sets "
            "no limit."
        )
    return float(share) if share < 1 else None
