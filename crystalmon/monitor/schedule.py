"""At which steps of a run to probe."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from crystalmon.monitor.budget import Budget
from crystalmon.phases.order import COMPLETE, MELT, ONSET
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.shares import LEAST
from crystalmon.suites.checks import is_number

DEFAULT_PROBES = 100

PACED_STEPS = 3
"""The pace of training is measured over so many steps after the first one."""

PACED_BY = 32
"""Probes among which one of another `order` is looked for, to measure the pace by."""

COSTLY = 0.1
"""A user is told what probing takes if it takes at least this share of the run's time."""

MOVED = 0.02
"""Least change of `order` from which a pace is measured."""

STRIDE = 0.05
"""Change of `order` after which the next probe is due."""

ENOUGH = 32
"""Probes that a budget must have time for if they are to ask more prompts than the fewest."""


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


def probe_steps(max_steps: int, every: float | None = None) -> ProbeSteps:
    """The steps at which to probe.

    Args:
        max_steps: length N of the run, in optimizer steps.
        every: fixed interval in steps; below 1, as a share of N, rounded up, as for the trainer's
            own arguments. None for the default: every step up to N = 100, beyond that
            round(N · (i/100)²), i = 0 … 100, which is dense at first, where collapse happens.

    Returns:
        Steps that always include 0 and N.

    >>> list(probe_steps(10, every=0.25))
    [0, 3, 6, 9, 10]
    """
    if every is None and max_steps <= DEFAULT_PROBES:
        every = 1
    if every is not None:
        interval = math.ceil(max_steps * every) if every < 1 else int(every)
        return ProbeSteps(range(0, max_steps, max(interval, 1)), max_steps)
    shares = ((i / DEFAULT_PROBES) ** 2 for i in range(DEFAULT_PROBES))
    return ProbeSteps(sorted({round(max_steps * share) for share in shares}), max_steps)


def check_every(every: float | None) -> float | None:
    """The interval in steps, or as a share of the run; None for the default schedule.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is neither a whole number of steps nor a share between 0 and 1.
    """
    if every is None:
        return None
    if not is_number(every):
        raise TypeError(f"every must be a number or None, got {type(every).__name__}.")
    if not (0 < every < 1 or (every >= 1 and float(every).is_integer())):
        raise ValueError(
            f"every must be a number of steps or a share of the run between 0 and 1, got {every}. "
            "Use None for the default."
        )
    return float(every) if every < 1 else int(every)


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

    def at(self, step: int, tokens: int) -> tuple[float, float, float] | None:
        """To be called at the end of each step, before its probe.

        Args:
            step: optimizer steps done.
            tokens: of a probe.

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
        cost, pace = self._meter.cost(tokens), (self._meter.trained - self._from[1]) / trained
        probing = cost * self._steps.count_from(step)
        total = self._meter.elapsed + probing + (last - step) * pace
        share = (self._meter.spent + probing) / total
        return (share, cost, pace) if share >= COSTLY else None


class Schedule:
    """When to probe, and how many prompts of each task to ask.

    Without a budget: at every planned step, all prompts. With one, the time of the whole run is
    foretold from the pace of its steps, and what the budget leaves after the start is spent in
    proportion to √(share of the run done): densely at first, where collapse happens. Time for the
    probe at the end is kept back; it asks all prompts if that fits. Other probes ask as many as
    leave room for `ENOUGH` of them. While the model moves, the next probe is due when `order`
    should have changed by `STRIDE`, or at the next step if it has crossed the onset, completion or
    melting, which a second probe confirms. As long as it is beyond and the phase does not change,
    few prompts cannot tell: the next steps are probed too, and every second probe asks more. Half
    of what was meant for later may be spent on these, and all of it on the first that confirms.

    However small the budget, a run gets `LEAST` probes after the first, of the smallest size, the
    last of them at the end.

    Args:
        steps: at which to probe.
        budget: to keep to, or None.

    Attributes:
        tokens: of a probe, by the number of prompts of each task that it asks; the largest number
            stands for all. To be set before the first probe.
    """

    def __init__(self, steps: ProbeSteps, budget: Budget | None = None) -> None:
        self.steps = steps
        self.budget = budget
        self.tokens: Mapping[int, int] = {}
        self._first, self._start, self._trained = 0, 0.0, 0.0
        self._probes = self._size = 0
        self._due = self._confirms = False
        self._seen: deque[tuple[int, float]] = deque(maxlen=PACED_BY)
        self._change_due = math.inf
        self._resting_until = 0.0
        self._phase, self._waiting = "", 0

    def begin(self, step: int) -> None:
        """Training begins at step 0, or where it resumes; what that took has been spent."""
        self._first, self._probes = step, 0
        if self.budget is not None:
            self._start, self._trained = self.budget.spent, self.budget.trained

    def wants(
        self, step: int, last: bool = False, agree: Callable[[int], int] = lambda answer: answer
    ) -> int:
        """How many prompts of each task to ask at this step; 0 for no probe.

        Args:
            step: optimizer steps done.
            last: training ends here.
            agree: gives every process rank 0's answer, since each has a clock of its own.
        """
        if not self.asks(step, last):
            return 0
        if self.budget is None:
            return max(self.tokens)
        answer = agree(self._at_last(self.budget) if last else self._answer(self.budget, step))
        self._resting_until = step - min(answer, 0)
        if step < self._change_due:
            self._resting_until = min(self._resting_until, self._change_due)
        return max(answer, 0)

    def asks(self, step: int, last: bool = False) -> bool:
        """Whether to probe this step if it is affordable. The same on every rank."""
        self._due = self._due or last or step in self.steps
        wanted = self._due or step >= self._change_due
        return wanted and (last or step >= self._resting_until)

    def _at_last(self, budget: Budget) -> int:
        """How many prompts to ask where training ends: all, fewer or none, as it fits."""
        room = budget.share * budget.elapsed - budget.spent
        for size in sorted(self.tokens, reverse=True):
            if budget.cost(self.tokens[size]) <= room:
                return size
        return min(self.tokens) if self._probes < LEAST else 0

    def _answer(self, budget: Budget, step: int) -> int:
        """How many prompts to ask; or, negative, the steps to wait."""
        length = max(1, self.steps.last - self._first)
        pace = (budget.trained - self._trained) / max(1, step - self._first)
        whole_run = budget.elapsed + pace * (self.steps.last - step)
        room, used = budget.share * whole_run - self._start, budget.spent - self._start
        fitting = self._fitting_size(budget, room)
        largest = budget.cost(max(self.tokens.values()))

        def spent_by(size: int) -> float:
            """The share of the budget that is spent after a probe of this size."""
            cost = budget.cost(self.tokens[size])
            kept = largest if 4 * largest <= room else cost
            return (used + cost) / max(room - kept, 1e-9)

        def counted(size: int) -> float:
            """The same, less half of what was meant for later while the model moves."""
            share = spent_by(size)
            return max(2 * share - 1, 0.0) if step >= self._change_due else share

        by_number = (self._probes + 1) / LEAST
        done = math.sqrt((step - self._first) / length)
        for size in (self._larger_than(fitting), fitting):
            if counted(size) <= done:
                self._size = fitting
                return size
        fewest = min(self.tokens)
        affordable = self._probes + 1 < LEAST or (self._waiting == 1 and spent_by(fewest) <= 1)
        if by_number <= done or (self._confirms and affordable):
            return fewest
        due = self._first + length * min(counted(fitting), by_number, 1.0) ** 2
        return -max(1, math.ceil(due) - step)

    def _fitting_size(self, budget: Budget, room: float) -> int:
        """The largest size of which `ENOUGH` probes fit; the last one, unless far from that."""
        fits = {n: room / max(budget.cost(each), 1e-9) for n, each in self.tokens.items()}
        if not budget.cost(1):  # not known before the first probe
            return min(fits)
        best = max((size for size in fits if fits[size] >= ENOUGH), default=min(fits))
        near = self._size in fits and fits[self._size] >= ENOUGH / 2 and fits[best] < 2 * ENOUGH
        return self._size if near else best

    def _larger_than(self, size: int) -> int:
        """One size more for every two probes after which the phase should have changed."""
        sizes = sorted(self.tokens)
        return sizes[min(sizes.index(size) + self._waiting // 2, len(sizes) - 1)]

    def taken(self) -> None:
        """Take note that a probe begins; one that fails is not tried again."""
        self._due = self._confirms = False
        self._change_due = math.inf
        self._probes += 1

    def probed(self, record: ProbeRecord) -> None:
        """Take note of what a probe found."""
        if self.budget is None:
            return
        step, order = record.step, record.metrics.get("order", math.nan)
        beyond = _beyond(record.phase, order)
        stays, self._phase = record.phase == self._phase, record.phase
        self._waiting = max((self._waiting if stays else 0) + (1 if beyond >= 0 else -1), 0)
        self._confirms = beyond >= 0 and self._waiting < 2 * len(self.tokens)
        self._change_due = step + (1 if self._confirms else self._pace(step, order, beyond))
        self._seen.append((step, order))

    def _pace(self, step: int, order: float, beyond: float) -> float:
        """Steps until `order` should have changed by a stride, a shorter one about a threshold."""
        outside = max(-beyond, beyond - STRIDE, 0.0)
        stride = min(STRIDE, STRIDE / 4 + outside)
        for earlier, value in reversed(self._seen):
            if (change := abs(order - value)) >= MOVED:
                return max(1, round(stride / change * (step - earlier)))
        return math.inf


def _beyond(phase: str, order: float) -> float:
    """How far `order` is beyond the threshold at which the phase will change if it stays there."""
    if phase in ("crystallized", "settling"):
        return MELT - order
    return order - {"liquid": ONSET, "nucleating": COMPLETE}.get(phase, math.inf)
