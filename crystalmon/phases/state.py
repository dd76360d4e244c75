"""What a detector observes and remembers of one task, and its base as the rules need it.

Axes: P prompts, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crystalmon.metrics.answers import MAJORITY, is_ordered, liquidity, order
from crystalmon.metrics.bootstrap import (
    REPLICATES,
    bootstrap_intervals,
    bootstrap_weights,
    expansion,
    uniform_weights,
)
from crystalmon.metrics.divergences import ratio
from crystalmon.metrics.seeds import support
from crystalmon.phases.seed_fit import Candidates
from crystalmon.phases.seed_set import Members
from crystalmon.runs.records import Event

WINDOW = 12
"""Probes that the detector remembers the order of."""
RESTING = 5
"""Probes over which a collapse must be still to have come to rest."""
RESAMPLES = 40
"""Bootstrap resamples of the prompts behind the rule on the order's lower end."""
LEAST_NOISE = 0.005
"""Standard deviation that `order` is taken to have between probes, at the least."""


@dataclass(frozen=True)
class Lock:
    """A seed that has won, and how near the answers have come to it.

    Args:
        seed: index into the base's prompts.
        mass: the most mass that the answers have held on the seed's support while they were at
            the seed, at most what the seed itself holds: from here on mass leaks.
        nearest: the smallest JS, in nats, of the answers pooled over prompts from the seed since.
        p_value: when it was locked; see `Candidates.chance`.
        margin: how many times worse than the seed the next candidate explained the answers then;
            None of a seed that took over.
    """

    seed: int
    mass: float
    nearest: float
    p_value: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class PhaseState:
    """All that the detector remembers of one task.

    Args:
        phase: one of `catalogue.PHASES`.
        lock: the locked seed, or None.
        steps, orders: of the latest probes, oldest first, at most `WINDOW`; see
            `Observation.least`.
        jumps: number of second differences of `order` seen while liquid.
        noise: their mean square / 6, the variance of what does not last from probe to probe.
        streaks: by condition, the number of successive probes at which it has held.
        candidate: the verdict on the seed held for `streaks["seed"]` probes: an index, −1 for
            none of the candidates, None for no verdict.
        answers: of the latest probes past the onset while no seed is locked, at most `RESTING`:
            the prompts asked [p] and their answers [p, C]. A verdict on the seed averages over
            them.
        members: of the seed set, while no seed is locked; empty before the onset.
        coverage: of the first probe that could be measured and has one.
        measurable: whether the latest probe could be measured; if not, all else but the coverage
            is as it was before.
        raised: kinds of event that have been raised and not been re-armed since.
        liquid_since: the step at which it was found to be liquid again; 0 if it never was.
    """

    phase: str = "liquid"
    lock: Lock | None = None
    steps: tuple[int, ...] = ()
    orders: tuple[float, ...] = ()
    jumps: int = 0
    noise: float = 0.0
    streaks: Mapping[str, int] = field(default_factory=dict)
    candidate: int | None = None
    answers: tuple[tuple[tuple[int, ...], tuple[tuple[float, ...], ...]], ...] = ()
    members: Members = ()
    coverage: float | None = None
    measurable: bool = True
    raised: frozenset[str] = frozenset()
    liquid_since: int = 0

    @property
    def seed(self) -> int | None:
        """The locked seed, or None."""
        return None if self.lock is None else self.lock.seed

    @property
    def seed_set(self) -> Members:
        """Where the answers may end, the likeliest first; see `seed_set`. A lock leaves only it.

        It is empty before the onset, and where the latest probe could not be measured.
        """
        if not self.measurable:
            return ()
        return self.members if self.lock is None else (self.lock.seed,)

    @property
    def sigma(self) -> float:
        """Standard deviation of `order` between probes, as far as it has been seen."""
        return max(self.noise**0.5, LEAST_NOISE)

    def streak(self, **holds: bool) -> PhaseState:
        """By rule, count one more probe, or start over."""
        counts = {rule: self.streaks.get(rule, 0) + 1 if on else 0 for rule, on in holds.items()}
        streaks = {**self.streaks, **counts}
        return self if streaks == self.streaks else replace(self, streaks=streaks)

    def once(self, rule: str) -> PhaseState:
        """Mark `rule` as raised."""
        return replace(self, raised=self.raised | {rule})

    def rearm(self, rule: str) -> PhaseState:
        """Let `rule` raise again."""
        return replace(self, raised=self.raised - {rule}) if rule in self.raised else self

    def handed_on(self) -> PhaseState:
        """What the detector of the next stage of training begins with."""
        over = frozenset() if self.phase == "liquid" else frozenset({"early_warning"})
        return PhaseState(lock=self.lock, coverage=self.coverage, raised=self.raised - over)

    def seen(self, now: Observation) -> PhaseState:
        """With one more probe in the window, and what it adds to the noise while liquid."""
        steps, orders = (*self.steps, now.step)[-WINDOW:], (*self.orders, now.least)[-WINDOW:]
        jumps, noise = self.jumps, self.noise
        if self.phase == "liquid" and len(orders) >= 5:
            # two probes late, so that an onset is not taken for noise before it is confirmed
            jump = (orders[-3] - 2 * orders[-4] + orders[-5]) ** 2 / 6
            jumps = min(jumps + 1, 2 * WINDOW)
            noise += (jump - noise) / jumps
        return replace(self, steps=steps, orders=orders, jumps=jumps, noise=noise)

    def covered(self, now: Observation) -> PhaseState:
        """With whether this probe can be measured, and the coverage of the first that can."""
        first = self.coverage is None and now.measurable
        coverage = now.coverage if first else self.coverage
        return replace(self, measurable=now.measurable, coverage=coverage)


def without_view(order: float, view_order: float | None) -> float:
    """(order − v) / (1 − v): an order with that which the view alone makes counted out.

    Args:
        order: against the base's answers to the plain prompts.
        view_order: v, that of the base in the view in which the model is asked. If it is not above
            0, or is None, the order stays as it is.

    >>> without_view(0.6, 0.2), without_view(0.6, -0.4)
    (0.5, 0.6)
    """
    shift = max(view_order or 0.0, 0.0)
    return (order - shift) / (1.0 - shift) if shift < 1.0 else 0.0


@dataclass(frozen=True)
class Observation:
    """One probe of one task, measured against the base by `Base.read`.

    Args:
        step: the training step.
        asked: [p] the prompts that were asked.
        q: [p, C] their choice distributions.
        coverage: mean total probability of the choices, or None if not known.
        measurable: whether enough of the prompts have enough of it.
        order: of `q` against the base's answers to the same prompts; what the view alone makes of
            it is counted out, see `PhaseDetector.update`.
        least, most: what it may be: of a partial probe, `order_bounds` moves the two apart.
        mean: [C] the answers pooled over prompts.
        view_order: what was counted out.
    """

    step: int
    asked: np.ndarray = field(repr=False)
    q: np.ndarray = field(repr=False)
    coverage: float | None
    measurable: bool
    order: float
    least: float
    most: float
    mean: np.ndarray = field(repr=False)
    view_order: float = 0.0

    def with_view(self, order: float) -> float:
        """An order with that of the view counted in again, as records show it."""
        return self.view_order + (1.0 - self.view_order) * order

    def event(self, kind: str, evidence: Mapping[str, Any], message: str) -> Event:
        """An event of this probe; the detector adds the task."""
        return Event(kind, self.step, None, evidence, message)


@dataclass(frozen=True)
class Base:
    """The base's answers with what the rules need of them, computed once by `Base.of`.

    Args:
        q: [P, C] its answers.
        ordered: whether it has too little liquidity to lose.
        liquidity: of the answers.
        supports: [P, C] by prompt, the choices that hold nearly all of it.
        candidates: its prompts as possible seeds.
    """

    q: np.ndarray = field(repr=False)
    ordered: bool
    liquidity: np.ndarray
    supports: np.ndarray = field(repr=False)
    candidates: Candidates = field(repr=False)

    @classmethod
    def of(cls, q: np.ndarray) -> Base:
        """From its answers [P, C], on the simplex."""
        ordered, own = min(q.shape) < 2 or is_ordered(q), liquidity(q, uniform_weights(len(q)))
        return cls(q, ordered, own, np.stack([support(row) for row in q]), Candidates.of(q))

    def read(
        self,
        step: int,
        q: np.ndarray,
        coverage: float | None = None,
        asked: Any = None,
        measurable: float = 1.0,
        view_order: float = 0.0,
    ) -> Observation:
        """One probe as the rules see it.

        Args:
            step, coverage: of the probe.
            q: [p, C] on the simplex.
            asked: [p] the base's prompts that it answers; all P if None.
            measurable: the share of them that can be measured.
            view_order: see `PhaseDetector.update`.
        """
        own = self.liquidity  # of the base, always the same if all are asked
        if asked is not None:
            own = liquidity(self.q[np.asarray(asked)], uniform_weights(len(q)))
        asked = np.arange(len(q)) if asked is None else np.asarray(asked)
        value = 0.0
        if not self.ordered:  # this is `order`
            value = float(1.0 - ratio(liquidity(q, uniform_weights(len(q))), own))
        value, shift = without_view(value, view_order), max(view_order, 0.0)
        known = measurable > MAJORITY - 1e-9  # a mean of weights
        mean = q.mean(axis=0)
        return Observation(step, asked, q, coverage, known, value, value, value, mean, shift)

    def least_order(self, now: Observation) -> float:
        """The lower end of its 90% bootstrap percentiles over prompts: low if a few make it."""
        values = self._resampled_order(now, RESAMPLES)
        low = float(np.percentile(values, 5.0) - values.mean()) / (1.0 - now.view_order)
        return low + now.order

    def order_evidence(self, now: Observation) -> dict[str, Any]:
        """The order and its 95% interval, as records show them; two prompts have no interval."""
        values, wider = self._resampled_order(now, REPLICATES), expansion([len(now.q)])
        order = now.with_view(now.order)
        ends = bootstrap_intervals({"order": order}, {"order": values}, wider)["order"]
        known = {"order_interval": list(ends)} if np.isfinite(ends).all() else {}
        of_view = {"view_order": now.view_order} if now.view_order else {}
        return {"order": order} | known | of_view

    def _resampled_order(self, now: Observation, resamples: int) -> np.ndarray:
        weights = bootstrap_weights(len(now.q), resamples, np.random.default_rng(0))
        values = order(now.q, self.q[now.asked], weights)
        return values[np.isfinite(values)]

    def mass_on(self, seed: int, answers: np.ndarray) -> float:
        """Mass of answers [C] on the support of a seed."""
        return float(answers[self.supports[seed]].sum())


Outcome = tuple[PhaseState, list[Event]]
