"""At which steps of a run to probe."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from crystalmon.monitor.budget import Budget
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.suites.checks import is_whole

DEFAULT_PROBES = 100

PACED_STEPS = 3
"""The pace of training is measured over so many steps after the first one."""

COSTLY = 0.1
"""A user is told what probing takes if it takes at least this share of the run's time."""

MOVED = 0.02
"""A model counts as moving if `order` changes by at least this between two probes."""


@dataclass(frozen=True)
class ProbeSteps:
    """The steps at which to probe, in their order; those of a fixed interval are not written out.

    Args:
        before: all but the last, increasing.
        last: the run's last step.
    """

    before: Sequence[int]
    last: int

    def __contains__(self, step: object) -> bool:
        """Whether to probe at a step."""
        return step == self.last or step in self.before

    def __iter__(self) -> Iterator[int]:
        """Each of them."""
        yield from self.before
        yield self.last

    def __len__(self) -> int:
        """How many there are."""
        return len(self.before) + 1

    def count_from(self, step: int) -> int:
        """How many are not before a step, up to the last.

        >>> probe_steps(10, every=4).count_from(4)  # 4, 8 and 10
        3
        """
        return len(self) - bisect_left(self.before, step)


def probe_steps(max_steps: int, every: int | None = None) -> ProbeSteps:
    """The steps at which to probe.

    Args:
        max_steps: length N of the run, in optimizer steps.
        every: fixed interval, or None for the default: every step up to N = 100, beyond that
            round(N · (i/100)²), i = 0 … 100, which is dense at first, where collapse happens.

    Returns:
        Steps that always include 0 and N.
    """
    if every is not None or max_steps <= DEFAULT_PROBES:
        return ProbeSteps(range(0, max_steps, every or 1), max_steps)
    shares = ((i / DEFAULT_PROBES) ** 2 for i in range(DEFAULT_PROBES))
    return ProbeSteps(sorted({round(max_steps * share) for share in shares}), max_steps)


def check_every(every: int | None) -> int | None:
    """The interval in steps, or None for the default schedule.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is below 1.
    """
    if every is None:
        return None
    if not is_whole(every):
        raise TypeError(f"every must be an int or None, got {type(every).__name__}.")
    if every < 1:
        raise ValueError(f"every must be positive, got {every}. Use None for the default.")
    return int(every)


class Forecast:
    """Foretells, after the first training steps, what share of the run's time probing will take.

    Args:
        steps: at which to probe, with the run's last step.
        meter: the time spent so far, and what a probe costs.
    """

    def __init__(self, steps: ProbeSteps, meter: Budget) -> None:
        self._steps, self._meter = steps, meter
        self._from: tuple[int, float] | None = None
        self._told = False

    def at(self, step: int) -> tuple[float, float, float] | None:
        """To be called at the end of each step, before its probe.

        Returns:
            Once, after a few steps and if it is over `COSTLY`: the share of the whole run's time,
            (spent + N·c) / (elapsed + N·c + L·s) with N probes and L steps to come, c, the seconds
            of a probe, and s, of a step. None otherwise.
        """
        if self._from is None:  # the first step may take longer than the others
            self._from = step, self._meter.trained
        last, trained = self._steps.last, step - self._from[0]
        if self._told or trained < PACED_STEPS or step >= last:
            return None
        self._told = True
        cost, pace = self._meter.typical_cost, (self._meter.trained - self._from[1]) / trained
        probing = cost * self._steps.count_from(step)
        total = self._meter.elapsed + probing + (last - step) * pace
        share = (self._meter.spent + probing) / total
        return (share, cost, pace) if share >= COSTLY else None


class Schedule:
    """When to probe: at given steps, as far as a budget allows.

    With a budget, a step's probe waits until it is affordable, and while the model is moving
    every step asks for one. Moving is: the last probe raised an event, found the suite nucleating,
    or its `order` at least `MOVED` from that of the one before.

    Args:
        steps: at which to probe.
        budget: to keep to, or None.

    Attributes:
        refused: whether the last step's probe was not affordable.
    """

    def __init__(self, steps: ProbeSteps, budget: Budget | None = None) -> None:
        self.steps = steps
        self.budget = budget
        self.refused = False
        self._due = False
        self._moving = False
        self._order = math.nan
        self._first_step: int | None = None
        self._resting_until = 0

    def wants(
        self, step: int, last: bool = False, agree: Callable[[int], int] = lambda wait: wait
    ) -> bool:
        """Whether to probe this step: it is asked for, and affordable.

        Args:
            step: optimizer steps done.
            last: training ends here.
            agree: gives every process rank 0's answer, since each has a clock of its own.
        """
        if not self.asks(step, last):
            return False
        if self.budget is None:
            return True
        wait = agree(self._steps_to_wait(self.budget, step, last))
        self._resting_until = step + wait
        self.refused = last and wait > 0
        return wait == 0

    def asks(self, step: int, last: bool = False) -> bool:
        """Whether to probe this step if it is affordable. The same on every rank."""
        self._first_step = step if self._first_step is None else self._first_step
        self._due = self._due or last or step in self.steps
        wanted = self._due or (self.budget is not None and self._moving)
        return wanted and (last or step >= self._resting_until)

    def _steps_to_wait(self, budget: Budget, step: int, last: bool) -> int:
        """Steps until a probe keeps to the budget, 0 for now; by this process' clock and pace."""
        seconds, trained = budget.wait(moving=self._moving, last=last), budget.trained
        pace = trained / max(1, step - (self._first_step or 0))
        return 0 if seconds <= 0 else max(1, int(min(seconds, trained) / max(pace, 1e-9)))

    def taken(self) -> None:
        """Take note that a probe begins; one that fails is not tried again."""
        self._due = False

    def probed(self, record: ProbeRecord, events: Sequence[Event]) -> None:
        """Take note of what a probe found."""
        order = record.metrics.get("order", math.nan)
        changed = abs(order - self._order) >= MOVED
        self._order = order
        self._moving = changed or bool(events) or record.phase == "nucleating"
