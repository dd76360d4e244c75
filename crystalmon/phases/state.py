"""What a detector observes and remembers of one task, and its base as the rules need it.

Axes: P prompts, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crystalmon.metrics.answers import MAJORITY, held_against, is_ordered, liquidity, order
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
        coverage: of the first probe of all prompts that could be measured and has one.
        few_coverage: the same of those of some prompts, by their number.
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
    few_coverage: Mapping[int, float] = field(default_factory=dict)
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
        state, known = replace(self, measurable=now.measurable), self.first_coverage(now)
        if not now.measurable or now.coverage is None or known is not None:
            return state
        if now.whole:
            return replace(state, coverage=now.coverage)
        return replace(state, few_coverage={**self.few_coverage, len(now.asked): now.coverage})

    def first_coverage(self, now: Observation) -> float | None:
        """Of the first probe that asked as many prompts, which are the same ones; None if none."""
        return self.coverage if now.whole else self.few_coverage.get(len(now.asked))


@dataclass(frozen=True)
class Observation:
    """One probe of one task, measured against the base by `Base.read`.

    Args:
        step: the training step.
        asked: [p] the prompts that were asked.
        whole: whether these are all.
        q: [p, C] their choice distributions.
        coverage: mean total probability of the choices, or None if not known.
        measurable: whether enough of the prompts have enough of it.
        order: of `q` against the base's answers to the same prompts.
        least, most: its bounds: of a partial probe, `order_bounds` moves the two apart.
        before: the base's liquidity that the order is relative to.
        mean: [C] the answers pooled over prompts.
    """

    step: int
    asked: np.ndarray = field(repr=False)
    whole: bool
    q: np.ndarray = field(repr=False)
    coverage: float | None
    measurable: bool
    order: float
    least: float
    most: float
    before: float
    mean: np.ndarray = field(repr=False)

    def words(self, bound: float) -> str:
        """The order, and the bound that an event was told by where few wordings were asked."""
        words = f"{self.order:.2f}"
        if bound == self.order:
            return words
        return f"{words} by {len(self.q)} wordings, {bound:.2f} with all tasks weighed"

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
        in_view: [P, C] its answers in the view, if `q` are those to the plain prompts.
    """

    q: np.ndarray = field(repr=False)
    ordered: bool
    liquidity: np.ndarray
    supports: np.ndarray = field(repr=False)
    candidates: Candidates = field(repr=False)
    in_view: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, q: np.ndarray, in_view: np.ndarray | None = None) -> Base:
        """From its answers [P, C], on the simplex."""
        ordered, own = is_ordered(q), liquidity(q, uniform_weights(len(q)))
        supports = np.stack([support(row) for row in q])
        return cls(q, ordered, own, supports, Candidates.of(q), in_view)

    def read(
        self,
        step: int,
        q: np.ndarray,
        coverage: float | None = None,
        asked: Any = None,
        measurable: float = 1.0,
    ) -> Observation:
        """One probe as the rules see it.

        Args:
            step, coverage: of the probe.
            q: [p, C] on the simplex.
            asked: [p] the base's prompts that it answers; all P if None.
            measurable: the share of them that can be measured.
        """
        rows = np.arange(len(q)) if asked is None else np.asarray(asked)
        before, weights = self.liquidity, uniform_weights(len(q))
        if asked is not None or self.in_view is not None:  # else it is always the same
            before = held_against(q, self.q[rows], weights, self._view(rows))
        value = 0.0
        if not self.ordered:  # this is `order`
            value = float(1.0 - ratio(liquidity(q, weights), before))
        known = measurable > MAJORITY - 1e-9  # a mean of weights
        return Observation(
            step=step,
            asked=rows,
            whole=len(rows) == len(self.q),
            q=q,
            coverage=coverage,
            measurable=known,
            order=value,
            least=value,
            most=value,
            before=float(before),
            mean=q.mean(axis=0),
        )

    def least_order(self, now: Observation) -> float:
        """The lower end of its 90% bootstrap percentiles over prompts: low if a few make it."""
        values = self._resampled_order(now, RESAMPLES)
        return float(np.percentile(values, 5.0) - values.mean() + now.order)

    def order_evidence(self, now: Observation) -> dict[str, Any]:
        """The order and its 95% interval; two prompts have none."""
        values, wider = self._resampled_order(now, REPLICATES), expansion([len(now.q)])
        ends = bootstrap_intervals({"order": now.order}, {"order": values}, wider)["order"]
        known = {"order_interval": list(ends)} if np.isfinite(ends).all() else {}
        return {"order": now.order} | known

    def _resampled_order(self, now: Observation, resamples: int) -> np.ndarray:
        weights = bootstrap_weights(len(now.q), resamples, np.random.default_rng(0))
        values = order(now.q, self.q[now.asked], weights, self._view(now.asked))
        return values[np.isfinite(values)]

    def _view(self, asked: np.ndarray) -> np.ndarray | None:
        """[p, C] of `in_view`, those to the prompts asked."""
        return None if self.in_view is None else self.in_view[asked]

    def mass_on(self, seed: int, answers: np.ndarray) -> float:
        """Mass of answers [C] on the support of a seed."""
        return float(answers[self.supports[seed]].sum())


Outcome = tuple[PhaseState, list[Event]]
