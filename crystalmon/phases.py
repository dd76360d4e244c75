"""Online phase detection: (state, observation) → (state, events).

This detector is a simple one: fixed thresholds on `order`, on the distance to the nearest
reference prompt and on `seed_mass`, each of which must hold at successive probes. Its error
rates have not been measured. It sees nothing but its reference and the observations so far, so
replaying a stored run gives the same events.

    liquid ──order ≥ 0.2──▶ nucleating ──order ≥ 0.8──▶ crystallized ◀─leaves─▶ settling
       ▲                        │                           │   order < 0.6        │
       └────────order < 0.2─────┴───────── melting ◀────────┴──────────────────────┘

Axes: P prompts, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crystalmon.metrics import (
    NOISE_FLOOR,
    is_ordered,
    js_divergence,
    mean_over_others,
    order,
    seed_distances,
    support,
    uniform_weights,
)
from crystalmon.records import PHASES, Event

ONSET = 0.2
"""`order` from which a task is nucleating."""
COMPLETE = 0.8
"""`order` from which it is crystallized."""
MELT = 0.6
"""`order` below which a crystallized task is melting."""
CONFIRM = 2
"""Successive probes that must agree before an event is raised."""
SEED_CONFIRM = 3
"""Successive probes at which the same seed must be nearest before it is locked."""
LEAK = 0.1
"""Fall of `seed_mass` below what the locked seed holds that counts as leaving its support."""
AWAY = 1.1
"""Times its nearest approach that the pooled answers' distance from the seed must be, and over
the noise floor, to count as settling: on the way to the seed is not settling."""
FORMAT_DROP = 0.5
"""Share of the first probe's coverage below which the format has drifted."""
WARNING = 0.1
"""`order` from which a rise over three successive probes gives an early warning."""


@dataclass(frozen=True)
class Observation:
    """One probe of one task.

    Args:
        step: the training step.
        q: [P, C] choice distributions.
        coverage: mean total probability of the choices, or None if not known.
    """

    step: int
    q: np.ndarray
    coverage: float | None = None


@dataclass(frozen=True)
class Lock:
    """A seed that has won, and how near the answers have come to it.

    Args:
        seed: index into the reference's prompts.
        mass: the mass on the seed's support that counts as not leaking: what it held when it
            was locked, at most what the seed itself holds.
        nearest: the smallest Jensen–Shannon divergence, in nats, of the answers, pooled over
            prompts, from the seed since.
    """

    seed: int
    mass: float
    nearest: float


@dataclass(frozen=True)
class PhaseState:
    """All that the detector remembers of one task.

    Args:
        phase: one of `records.PHASES`.
        lock: the locked seed, or None.
        steps, orders: the latest probes' steps and orders, oldest first, at most four.
        streaks: by rule, the number of successive probes at which its condition has held.
        candidate: the seed that has been nearest for `streaks["seed"]` probes.
        coverage: of the first probe that has one.
        raised: rules that have raised their event and not been re-armed since.
    """

    phase: str = "liquid"
    lock: Lock | None = None
    steps: tuple[int, ...] = ()
    orders: tuple[float, ...] = ()
    streaks: Mapping[str, int] = field(default_factory=dict)
    candidate: int | None = None
    coverage: float | None = None
    raised: frozenset[str] = frozenset()

    @property
    def seed(self) -> int | None:
        """The locked seed, or None."""
        return None if self.lock is None else self.lock.seed

    def streak(self, rule: str, holds: bool) -> PhaseState:
        """Count one more probe for `rule`, or start over."""
        count = self.streaks.get(rule, 0) + 1 if holds else 0
        return replace(self, streaks={**self.streaks, rule: count})

    def once(self, rule: str) -> PhaseState:
        """Mark `rule` as raised."""
        return replace(self, raised=self.raised | {rule})

    def rearm(self, rule: str) -> PhaseState:
        """Let `rule` raise again."""
        return replace(self, raised=self.raised - {rule})


@dataclass(frozen=True)
class _View:
    """One observation, seen against the reference."""

    step: int
    order: float
    mean: np.ndarray
    q: np.ndarray
    distances: np.ndarray
    coverage: float | None

    @property
    def nearest(self) -> int:
        return int(np.argmin(self.distances))


@dataclass(frozen=True)
class _Base:
    """What the rules need of the reference, computed once."""

    q: np.ndarray
    ordered: bool
    scale: np.ndarray
    spacing: float

    @classmethod
    def of(cls, q: np.ndarray) -> _Base:
        between = seed_distances(q, q)
        scale = mean_over_others(between)
        neighbours = between + np.diag(np.full(len(q), np.inf))
        spacing = float(np.median(neighbours.min(axis=0))) if len(q) > 1 else 0.0
        return cls(q=q, ordered=len(q) < 2 or is_ordered(q), scale=scale, spacing=spacing)

    def look(self, observation: Observation) -> _View:
        q = observation.q
        return _View(
            step=observation.step,
            order=float(order(q, self.q, uniform_weights(len(q)))),
            mean=q.mean(axis=0),
            q=q,
            distances=mean_over_others(seed_distances(q, self.q)),
            coverage=observation.coverage,
        )

    def seed_mass(self, view: _View, seed: int) -> float:
        return float(view.mean[support(self.q[seed])].sum())


_Rule = Callable[[_Base, PhaseState, _View], tuple[PhaseState, list[Event]]]


class PhaseDetector:
    """Detects the phases of one task, probe by probe.

    Args:
        reference_q: [P, C] choice distributions of the frozen base model.
        task: the task's name, for its events.

    Raises:
        ValueError: if `reference_q` is not [P, C] on the simplex.
    """

    def __init__(self, reference_q: Any, task: str | None = None) -> None:
        self._base = _Base.of(_check_simplex("reference_q", reference_q))
        self._task = task
        self._state = PhaseState(phase="ordered" if self._base.ordered else "liquid")

    @property
    def phase(self) -> str:
        """The task's phase; `ordered` if the reference had too little liquidity to lose."""
        return self._state.phase

    @property
    def seed(self) -> int | None:
        """The locked seed, an index into the reference's prompts, or None."""
        return self._state.seed

    def update(self, step: int, q: Any, *, coverage: float | None = None) -> list[Event]:
        """Take one probe; return the events it raises.

        Args:
            step: the training step, larger than the last one.
            q: [P, C] choice distributions, the shape of the reference.
            coverage: mean total probability of the choices; without it no `format_drift`.

        Raises:
            ValueError: if `q` is not on the simplex, has another shape, or `step` goes back.
        """
        q = _check_simplex("q", q)
        if q.shape != self._base.q.shape:
            raise ValueError(
                f"q must be of the reference's shape {self._base.q.shape}, got {q.shape}."
            )
        if self._state.steps and step <= self._state.steps[-1]:
            raise ValueError(
                f"step must be larger than the last one ({self._state.steps[-1]}), got {step}. "
                "Replay a run in the order of its steps."
            )
        self._state, events = advance(self._base, self._state, Observation(step, q, coverage))
        return [replace(event, task=self._task) for event in events]


def advance(
    base: _Base, state: PhaseState, observation: Observation
) -> tuple[PhaseState, list[Event]]:
    """One step of the detector: a pure function."""
    view = base.look(observation)
    first = not state.steps
    state = replace(
        state,
        steps=(*state.steps[-3:], view.step),
        orders=(*state.orders[-3:], view.order),
        coverage=view.coverage if state.coverage is None else state.coverage,
    )
    if base.ordered:
        return _format_rule(base, state, view)
    if first:
        state = replace(state, phase=_phase_at(view.order))
    events: list[Event] = []
    for rule in _RULES:
        state, raised = rule(base, state, view)
        events.extend(raised)
    return state, events


def _phase_at(value: float) -> str:
    """The phase of a task that is first seen at this order."""
    return "crystallized" if value >= COMPLETE else "nucleating" if value >= ONSET else "liquid"


def _warning_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """`early_warning`: still liquid, and order has risen three probes running to 0.1 or more.

    From the onset on, it would warn of what is there.
    """
    rising = len(state.orders) == 4 and bool(np.all(np.diff(state.orders) > 0))
    if state.phase != "liquid" or not WARNING <= view.order < ONSET or not rising:
        return state, []
    if "early_warning" in state.raised:
        return state, []
    evidence = {"orders": list(state.orders), "steps": list(state.steps)}
    message = f"order has risen at each of the last 3 probes, to {view.order:.2f}"
    return state.once("early_warning"), [_event("early_warning", view, evidence, message)]


def _nucleation_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """liquid → nucleating → crystallized, and back to liquid."""
    events: list[Event] = []
    state = state.streak("onset", view.order >= ONSET)
    state = state.streak("complete", view.order >= COMPLETE)
    state = state.streak("liquid", view.order < ONSET)
    if state.phase == "liquid" and state.streaks["onset"] >= CONFIRM:
        low, high, crossing = _back_date(state, CONFIRM)
        evidence = {"order": view.order, "onset_step": crossing, "onset_interval": [low, high]}
        message = f"order passed {ONSET} between steps {low} and {high} (now {view.order:.2f})"
        events.append(_event("nucleation_onset", view, evidence, message))
        state = replace(state, phase="nucleating")
    if state.phase in ("nucleating", "melting") and state.streaks["complete"] >= CONFIRM:
        evidence = {"order": view.order}
        message = f"order has reached {view.order:.2f}: the prompts answer alike"
        events.append(_event("nucleation_complete", view, evidence, message))
        state = replace(state, phase="crystallized")
    if state.phase in ("nucleating", "melting") and state.streaks["liquid"] >= CONFIRM:
        state = replace(state, phase="liquid").rearm("early_warning")
    return state, events


def _back_date(state: PhaseState, probes: int) -> tuple[int, int, float]:
    """(last step below the onset, first step at or above it, where order crossed in between)."""
    high = len(state.steps) - probes
    low = max(high - 1, 0)
    step_low, step_high = state.steps[low], state.steps[high]
    rise = state.orders[high] - state.orders[low]
    share = (ONSET - state.orders[low]) / rise if rise > 0 else 0.0
    return step_low, step_high, step_low + share * (step_high - step_low)


def _seed_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """`seed_locked`, `seedless_collapse`, `recrystallization`: who is nearest, and near enough.

    A collapse is seedless when the nearest candidate is farther from the pooled answers than a
    typical base prompt is from its own nearest neighbour, and than the noise floor: with two
    choices the base prompts crowd together, and their spacing alone would be too strict.
    """
    nearest = view.nearest
    holds = view.order >= COMPLETE and nearest == state.candidate
    state = state.streak("seed", holds)
    if not holds:
        state = replace(state, candidate=nearest if view.order >= COMPLETE else None)
        state = state.streak("seed", view.order >= COMPLETE)
    if state.streaks["seed"] < SEED_CONFIRM or nearest == state.seed:
        return state, []
    distance = float(js_divergence(view.mean, base.q[nearest]))
    reach = max(base.spacing, NOISE_FLOOR * base.scale[nearest])
    evidence = {"candidate": nearest, "distance": distance, "reach": reach}
    if state.seed is None and distance > reach:
        if "seedless_collapse" in state.raised:
            return state, []
        message = (
            f"the prompts answer alike, but the nearest base prompt is {distance:.3f} nats away "
            f"(within {reach:.3f} it would count as the seed)"
        )
        event = _event("seedless_collapse", view, evidence, message)
        return state.once("seedless_collapse"), [event]
    if state.seed is None:
        message = f"the answers of base prompt {nearest} have won ({distance:.3f} nats away)"
        return _locked(base, state, view, nearest), [_event("seed_locked", view, evidence, message)]
    between = float(js_divergence(base.q[nearest], base.q[state.seed]))
    if between < NOISE_FLOOR * base.scale[state.seed] or distance > reach:
        return state, []
    message = f"base prompt {nearest} has taken over from {state.seed}"
    event = _event("recrystallization", view, evidence | {"from": state.seed}, message)
    return _locked(base, state, view, nearest), [event]


def _locked(base: _Base, state: PhaseState, view: _View, seed: int) -> PhaseState:
    own = float(base.q[seed, support(base.q[seed])].sum())
    distance = float(js_divergence(view.mean, base.q[seed]))
    lock = Lock(seed=seed, mass=min(base.seed_mass(view, seed), own), nearest=distance)
    phase = "crystallized" if state.phase == "settling" else state.phase
    return replace(state, phase=phase, lock=lock).rearm("support_leak")


def _support_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """crystallized ↔ settling, and `support_leak`: what leaves the seed may leave its support."""
    if state.lock is None or state.phase not in ("crystallized", "settling"):
        return state.streak("leak", False), []
    lock = state.lock
    mass = base.seed_mass(view, lock.seed)
    distance = float(js_divergence(view.mean, base.q[lock.seed]))
    fall = lock.mass - mass
    state = state.streak("leak", fall > LEAK)
    if fall < LEAK / 2:
        state = state.rearm("support_leak")
    floor = NOISE_FLOOR * base.scale[lock.seed]
    if distance <= max(floor, lock.nearest):
        lock = replace(lock, nearest=min(distance, lock.nearest))
        state = replace(state, lock=lock, phase="crystallized")
    elif distance > max(floor, AWAY * lock.nearest) and fall <= LEAK:
        state = replace(state, phase="settling")
    if state.streaks["leak"] < CONFIRM or "support_leak" in state.raised:
        return state, []
    evidence = {"seed_mass": mass, "seed_mass_held": lock.mass, "distance": distance}
    message = f"mass on the seed's support fell from {lock.mass:.2f} to {mass:.2f}"
    return state.once("support_leak"), [_event("support_leak", view, evidence, message)]


def _melting_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """crystallized or settling → melting."""
    state = state.streak("melting", view.order < MELT)
    if state.phase not in ("crystallized", "settling") or state.streaks["melting"] < CONFIRM:
        return state, []
    message = f"order has fallen to {view.order:.2f}: the prompts differ again"
    event = _event("melting", view, {"order": view.order}, message)
    state = replace(state, phase="melting", lock=None, candidate=None)
    return state.rearm("seedless_collapse"), [event]


def _format_rule(base: _Base, state: PhaseState, view: _View) -> tuple[PhaseState, list[Event]]:
    """`format_drift`: the choices have lost half of their total probability."""
    now, before = view.coverage, state.coverage
    if now is None or before is None:
        return state, []
    state = state.streak("format", now < FORMAT_DROP * before)
    if now > before * (1 + FORMAT_DROP) / 2:
        state = state.rearm("format_drift")
    if state.streaks["format"] < CONFIRM or "format_drift" in state.raised:
        return state, []
    evidence = {"coverage": now, "first_coverage": before}
    message = f"the choices' total probability fell from {before:.2f} to {now:.2f}"
    return state.once("format_drift"), [_event("format_drift", view, evidence, message)]


_RULES: tuple[_Rule, ...] = (
    _warning_rule,
    _nucleation_rule,
    _melting_rule,
    _seed_rule,
    _support_rule,
    _format_rule,
)


def _event(kind: str, view: _View, evidence: Mapping[str, Any], message: str) -> Event:
    return Event(kind=kind, step=view.step, task=None, evidence=evidence, message=message)


_SUITE_ORDER = ("liquid", "nucleating", "crystallized", "settling")
_SUITE_EVENTS = {
    "nucleating": "nucleation_onset",
    "crystallized": "nucleation_complete",
    "melting": "melting",
}


class SuiteDetector:
    """One detector per task, and the suite's phase from theirs.

    The suite has reached a phase when at least half of the tasks that take part have: tasks
    whose reference was already ordered do not.

    Args:
        reference_q: by task, [P, C].
    """

    def __init__(self, reference_q: Mapping[str, np.ndarray]) -> None:
        self.tasks = {name: PhaseDetector(q, name) for name, q in reference_q.items()}
        self._started = False
        self.phase = "liquid"

    @property
    def taking_part(self) -> list[str]:
        """The tasks whose reference has liquidity to lose."""
        return [name for name, task in self.tasks.items() if task.phase != "ordered"]

    def update(
        self, step: int, q: Mapping[str, np.ndarray], coverage: Mapping[str, float]
    ) -> list[Event]:
        """Take one probe of every task; return its events, the suite's own last.

        A task with answers that are not finite is passed over at this probe.
        """
        events: list[Event] = []
        for name, task in self.tasks.items():
            if np.isfinite(q[name]).all():
                events.extend(task.update(step, q[name], coverage=coverage.get(name)))
        phases = [self.tasks[name].phase for name in self.taking_part]
        before, self.phase = self.phase, self._majority(phases)
        if self._started and before != self.phase:
            events.extend(self._transition(step, before, phases))
        self._started = True
        return events

    def _majority(self, phases: list[str]) -> str:
        if not phases:
            return "ordered"
        if 2 * phases.count("melting") >= len(phases):
            return "melting"
        ranks = sorted(_SUITE_ORDER.index("liquid" if p == "melting" else p) for p in phases)
        return _SUITE_ORDER[ranks[len(ranks) // 2]]

    def _transition(self, step: int, before: str, phases: list[str]) -> list[Event]:
        """One event for each phase that the suite has entered or passed since the last probe."""
        counts = {phase: phases.count(phase) for phase in PHASES if phase in phases}
        spelled = ", ".join(f"{count} {phase}" for phase, count in counts.items())
        message = f"the suite is {self.phase}: {spelled} of {len(phases)} tasks"
        return [
            Event(_SUITE_EVENTS[phase], step, None, {"tasks": counts}, message)
            for phase in _passed(before, self.phase)
            if phase in _SUITE_EVENTS
        ]


def _passed(before: str, now: str) -> tuple[str, ...]:
    """The suite's phases after `before` up to `now`; after melting, the onset is not repeated."""
    if now == "melting":
        return (now,)
    start = _SUITE_ORDER.index("nucleating" if before == "melting" else before)
    return _SUITE_ORDER[start + 1 : _SUITE_ORDER.index(now) + 1]


def _check_simplex(what: str, values: Any) -> np.ndarray:
    array = np.array(values, dtype=np.float64)  # a copy: the caller may change its own
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{what} must be of shape [P, C], got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite, got NaN or infinity. Leave such a probe out.")
    off = (array < 0).any(axis=1) | (np.abs(array.sum(axis=1) - 1.0) > 2e-5)
    if off.any():
        row = array[off][0].tolist()
        raise ValueError(f"{what} must have rows on the simplex, got {row} first. Normalise it.")
    return array
