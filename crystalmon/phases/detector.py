"""One task's detector: the rules in their order, and the state they hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.metrics.divergences import ON_SIMPLEX
from crystalmon.phases.certainty import entropy_rule
from crystalmon.phases.order import (
    begin,
    melting_rule,
    nucleation_rule,
    ordered_rule,
    warning_rule,
)
from crystalmon.phases.seed import seed_rule
from crystalmon.phases.seed_set import Members
from crystalmon.phases.state import Base, Observation, PhaseState
from crystalmon.phases.support import format_rule, support_rule
from crystalmon.runs.records import Event


class PhaseDetector:
    """Detects the phases of one task, probe by probe.

    Args:
        reference_q: [P, C] choice distributions of the frozen base model.
        task: the task's name, for its events.
        state: what it remembers from before, such as a seed that an earlier stage has locked.
        in_view: [P, C] the base's answers in the view, if `reference_q` are those to the plain
            prompts; see `answers.held_against`.

    Raises:
        ValueError: if either is not [P, C] on the simplex, or the state's seed is none of
            its prompts.
    """

    def __init__(
        self,
        reference_q: Any,
        task: str | None = None,
        state: PhaseState | None = None,
        in_view: Any = None,
    ) -> None:
        view = None if in_view is None else check_simplex("in_view", in_view)
        self._base = Base.of(check_simplex("reference_q", reference_q), view)
        self._task = task
        prompts, seed = len(self._base.q), None if state is None else state.seed
        if seed is not None and not 0 <= seed < prompts:
            raise ValueError(f"seed must be one of the {prompts} prompts of {task!r}, got {seed}.")
        phase = "ordered" if self._base.ordered else "liquid"
        self._state = replace(PhaseState() if state is None else state, phase=phase)

    @property
    def phase(self) -> str:
        """The task's phase; `ordered` if the base had too little liquidity to lose."""
        return self._state.phase if self._state.measurable else NOT_MEASURABLE

    @property
    def liquidity(self) -> float:
        """Of the base, in nats."""
        return float(self._base.liquidity)

    @property
    def ordered(self) -> bool:
        """Whether the base had too little liquidity to lose."""
        return self._base.ordered

    @property
    def prompts(self) -> int:
        """P, how many prompts the base has answered."""
        return len(self._base.q)

    @property
    def seed(self) -> int | None:
        """The locked seed, an index into the base's prompts, or None."""
        return self._state.seed

    @property
    def seed_set(self) -> Members:
        """The base's prompts that the answers may end on, and None in it for none of them."""
        return self._state.seed_set

    @property
    def state(self) -> PhaseState:
        """All that it remembers, frozen."""
        return self._state

    def update(
        self,
        step: int,
        q: Any,
        *,
        coverage: float | None = None,
        asked: Sequence[int] | None = None,
        measurable: float | None = None,
    ) -> list[Event]:
        """Take one probe; return the events it raises.

        Args:
            step: the training step, larger than the last one.
            q: [p, C] choice distributions.
            coverage: mean total probability of the choices; without it no `format_drift`.
            asked: the p prompts that q answers, as ascending indices into the base's; all P if
                None.
            measurable: the share of them that can be measured; all if None. If it is too small,
                the phase is `not measurable`, and no event but `format_drift` is raised.

        Raises:
            ValueError: see `observe`.
        """
        seen = self.observe(step, q, coverage=coverage, asked=asked, measurable=measurable)
        return self.take(seen)

    def observe(
        self,
        step: int,
        q: Any,
        *,
        coverage: float | None = None,
        asked: Sequence[int] | None = None,
        measurable: float | None = None,
    ) -> Observation:
        """A probe measured against the base, for `take`; the arguments are those of `update`.

        Raises:
            ValueError: if `q` is not on the simplex, does not answer prompts of the base, or
                `step` goes back.
        """
        q = check_simplex("q", q)
        prompts, choices = self._base.q.shape
        rows = range(prompts) if asked is None else asked
        if q.shape != (len(rows), choices):
            raise ValueError(
                f"q must be of the reference's shape {(len(rows), choices)}, got {q.shape}."
            )
        if asked is not None and list(rows) != sorted({row for row in rows if 0 <= row < prompts}):
            raise ValueError(
                f"asked must be ascending indices of the {prompts} prompts, got {list(rows)}."
            )
        if self._state.steps and step <= self._state.steps[-1]:
            raise ValueError(
                f"step must be larger than the last one ({self._state.steps[-1]}), got {step}. "
                "Replay a run in the order of its steps."
            )
        share = 1.0 if measurable is None else measurable
        return self._base.read(step, q, coverage, asked, share)

    def take(self, now: Observation) -> list[Event]:
        """Take a probe that `observe` has measured; return the events it raises."""
        self._state, events = advance(self._base, self._state, now)
        return [replace(event, task=self._task) for event in events]


def advance(base: Base, state: PhaseState, now: Observation) -> tuple[PhaseState, list[Event]]:
    """One step of the detector, a pure function: the state after a probe, and its events.

    The state before the first probe is `PhaseState()`. Each rule takes the state that the one
    before it left. The observation is read by the same base.
    """
    # not at the start if an earlier probe of this run could not be measured
    first, at_start = not state.steps, state.measurable
    state = state.covered(now)
    rules = (warning_rule, nucleation_rule, melting_rule, seed_rule, support_rule, entropy_rule)
    if not now.measurable:
        rules = ()
    elif base.ordered:
        rules = (ordered_rule, entropy_rule)
    else:
        state = state.seen(now)
        if first:
            state = begin(state, now.least, at_start)
    events: list[Event] = []
    for rule in (*rules, format_rule):
        state, raised = rule(base, state, now)
        events.extend(raised)
    return state, events


def check_simplex(what: str, values: Any) -> np.ndarray:
    """A float64 copy of [P, C] values, checked to be distributions.

    Raises:
        ValueError: if the shape is another, a value is not finite or is negative, or a row's sum
            is not 1 within 2e-5.
    """
    array = np.array(values, dtype=np.float64)  # a copy: the caller may change its own
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{what} must be of shape [P, C], got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite, got NaN or infinity. Leave such a probe out.")
    off = (array < 0).any(axis=1) | (np.abs(array.sum(axis=1) - 1.0) > ON_SIMPLEX)
    if off.any():
        row = array[off][0].tolist()
        raise ValueError(f"{what} must have rows on the simplex, got {row} first. Normalise it.")
    return array
