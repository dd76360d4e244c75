"""The rules on the seed: which base prompt has won, that none has, that another takes over.

The collapse is extrapolated to its end (`crystalmon.seeds`) and the end compared with the base's
prompts. Judgement waits until the collapse is at its end or has come to rest: before, it is early
for a verdict, and a verdict that has to be taken back is a false event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics import js_divergence
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.phases.state import (
    Base,
    Lock,
    Observation,
    Outcome,
    PhaseState,
    View,
    make_event,
)
from crystalmon.seeds import SeedEstimate

SEED_CONFIRM = 3
"""Successive probes at which the same seed must be named before it is locked."""
SEEDLESS_CONFIRM = 5
"""Successive probes at which none must be before a collapse is called seedless."""
STILL = 0.3
"""Square roots of a noise floor that the end may have moved, by √JS, over these probes."""
TO_AND_FRO = 1.5
"""Mean steps that it may have moved over `SEEDLESS_CONFIRM` probes, if they are mere noise."""
REACH = 1.25
"""Noise floors within which the end must lie of a candidate for it to be the seed."""
BEYOND = 1.5
"""Noise floors beyond which it must lie of all, in 95% of the resamples, to be seedless."""
BEYOND_PARTIAL = 2.5
"""The same for the pooled answers of a partial collapse: its end is only extrapolated."""
EXCESS = 3.0
"""Times the residual of a free limit that a candidate's own may be for it to be the seed, however
far the limit misses it, and must be for all to be seedless."""
APART = 3.0
"""Noise floors that two seeds must be apart for the one to take over from the other: where base
prompts crowd together, as with two choices, settling passes many of them."""
LOOSE_EXCESS = 8.0
"""The same where one candidate stands out: its residual is under that of any other by…"""
CONTRAST = 1.5
"""…this factor. What leads to no candidate has several that explain it equally badly."""
TELLING = 4
"""Choices from which a residual can tell candidates apart: among fewer any of them explains all."""
AGREEMENT = 0.8
"""Share of the resamples of prompts that must name the same seed, or a twin of it."""
AGREEMENT_PARTIAL = 0.95
"""The same of a partial collapse."""
NEARLY = 0.9
"""`order` from which the pooled answers are the end, and nothing is extrapolated."""
DONE = 0.97
"""`order` from which there is no way left to wait for."""
REST = 0.05
"""Range of `order` over `REST_PROBES` probes within which a collapse has come to rest."""
REST_PROBES = 5
SEEDLESS = -1
"""The verdict that no candidate is the seed."""

Evidence = dict[str, Any]


def seed_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """`seed_locked`, `seedless_collapse`, `recrystallization`."""
    if state.phase in ("liquid", "melting") or view.order < ONSET or not _is_ripe(state, view):
        return replace(state.streak("seed", False), candidate=None, ends=()), []
    if state.lock is not None and _rests_on(base, state.lock.seed, view):
        return _judged(base, state, state.lock.seed, view.mean), []  # spares the extrapolation
    estimate = base.estimate(view)
    verdict = _verdict(base, state, view, estimate)
    end = estimate.pooled if view.order >= NEARLY else estimate.limit.end
    state = _judged(base, state, verdict, end)
    confirm = SEEDLESS_CONFIRM if verdict == SEEDLESS else SEED_CONFIRM
    if verdict is None or state.streaks["seed"] < confirm:
        return state, []
    if not _is_still(state.ends, confirm, estimate):
        return state, []
    if verdict == SEEDLESS:
        return _seedless(state, view, estimate)
    if state.lock is None:
        return _first_lock(base, state, view, estimate, verdict)
    between = base.candidates.between[verdict, state.lock.seed]
    if between <= APART * base.candidates.floors[[verdict, state.lock.seed]].max():
        return state, []
    message = f"base prompt {verdict} has taken over from {state.lock.seed}"
    evidence = {**_evidence(base, estimate, verdict), "from": state.lock.seed}
    event = make_event("recrystallization", view, evidence, message)
    return _locked(base, state, view, verdict), [event]


def judge_probe(reference_q: np.ndarray, observation: Observation) -> tuple[int | None, Evidence]:
    """The verdict on one probe alone, where there are too few for it to be confirmed.

    The rules are those of a live verdict, without the wait until successive probes agree.

    Args:
        reference_q: [P, C] choice distributions of the frozen base.
        observation: the probe.

    Returns:
        The seed, `SEEDLESS`, or None while that is open; and the numbers behind it.
    """
    base = Base.of(reference_q)
    view = base.look(observation)
    estimate = base.estimate(view)
    verdict = _verdict(base, PhaseState(), view, estimate)
    seed = estimate.candidate if verdict in (None, SEEDLESS) else verdict
    return verdict, _evidence(base, estimate, seed)


def _rests_on(base: Base, seed: int, view: View) -> bool:
    """Whether the pooled answers are the end and within the noise floor of a locked seed."""
    if view.order < NEARLY:
        return False
    distances = js_divergence(view.mean, base.candidates.b)
    floor = max(float(base.candidates.floors[seed]), 1e-12)
    return int(np.argmin(distances)) == seed and float(distances[seed]) / floor <= 1.0


def _judged(base: Base, state: PhaseState, verdict: int | None, end: np.ndarray) -> PhaseState:
    """The state with one more verdict, and the end that it was passed on."""
    state = replace(state, ends=(*state.ends, tuple(end.tolist()))[-SEEDLESS_CONFIRM:])
    if verdict is None or not _same(base, verdict, state.candidate):
        state = replace(state.streak("seed", False), candidate=verdict)
    return state.streak("seed", verdict is not None)


def _is_ripe(state: PhaseState, view: View) -> bool:
    """Whether the collapse is at its end, or has come to rest on its way."""
    recent = state.orders[-REST_PROBES:]
    rests = len(recent) == REST_PROBES and min(recent) >= ONSET
    return view.order >= DONE or (rests and max(recent) - min(recent) < REST + 2 * state.sigma)


def _verdict(base: Base, state: PhaseState, view: View, estimate: SeedEstimate) -> int | None:
    """The seed, `SEEDLESS`, or None while that is open.

    A partial collapse is judged by its extrapolated end, a complete one by the pooled answers,
    and one in between by both, which must name the same seed unless its path explains the answers.
    A locked seed yields only to what is within the noise floor itself.
    """
    reach = REACH if state.lock is None else 1.0
    floors = base.candidates.floors
    pooled = estimate.pooled_candidate
    pooled_floors = estimate.pooled_distance / max(float(floors[pooled]), 1e-12)
    if view.order >= NEARLY and pooled_floors <= reach:
        return pooled
    fits = estimate.excess <= EXCESS
    stands_out = estimate.excess <= LOOSE_EXCESS and estimate.contrast >= CONTRAST
    open_ended = state.lock is None and view.order < COMPLETE and len(view.mean) >= TELLING
    explained = open_ended and (fits or stands_out)
    near = explained or estimate.distance <= reach * estimate.floor
    if view.order >= COMPLETE and not fits:
        near = near or pooled_floors <= reach
        if near and not _same(base, pooled, estimate.candidate):
            return None
    if near:
        agreed = AGREEMENT if view.order >= COMPLETE else AGREEMENT_PARTIAL
        return estimate.candidate if estimate.agreement >= agreed else None
    beyond = BEYOND if view.order >= COMPLETE else BEYOND_PARTIAL
    lost = estimate.excess > EXCESS and pooled_floors > beyond and estimate.nearest_low > BEYOND
    return SEEDLESS if lost else None


def _same(base: Base, one: int, other: int | None) -> bool:
    """Whether two verdicts are one: equal, or twins in the base."""
    if other is None or SEEDLESS in (one, other):
        return one == other
    return bool(base.candidates.twins(one)[other] or base.candidates.twins(other)[one])


def _is_still(ends: Sequence[Sequence[float]], probes: int, estimate: SeedEstimate) -> bool:
    """Whether the end stays where it is: no verdict in passing.

    Either it has hardly moved over the last `probes`, or it has moved to and fro: over all the
    probes remembered no farther than `TO_AND_FRO` of its steps between neighbours, where a
    steady course would cover them all.
    """
    if len(ends) < probes:
        return False
    rows = np.array(ends)
    moved = float(js_divergence(rows[-1], rows[-probes]))
    if moved <= STILL**2 * estimate.floor or len(ends) < SEEDLESS_CONFIRM:
        return moved <= STILL**2 * estimate.floor
    step = float(np.sqrt(js_divergence(rows[1:], rows[:-1])).mean())
    return float(np.sqrt(js_divergence(rows[-1], rows[0]))) <= TO_AND_FRO * step


def _first_lock(
    base: Base, state: PhaseState, view: View, estimate: SeedEstimate, seed: int
) -> Outcome:
    evidence = _evidence(base, estimate, seed)
    message = (
        f"the answers of base prompt {seed} have won "
        f"({evidence['distance']:.3f} nats away, p = {evidence['p_value']:.2f})"
    )
    event = make_event("seed_locked", view, evidence, message)
    return _locked(base, state, view, seed), [event]


def _seedless(state: PhaseState, view: View, estimate: SeedEstimate) -> Outcome:
    if state.lock is not None or "seedless_collapse" in state.raised:
        return state, []
    message = (
        f"the prompts come to answer alike, but the nearest base prompt is "
        f"{estimate.distance:.3f} nats away (within {REACH * estimate.floor:.3f} it would be the "
        "seed)"
    )
    evidence = {"candidate": estimate.candidate, "distance": estimate.distance}
    evidence |= _strength(estimate) | {"p_value": estimate.p_value}
    event = make_event("seedless_collapse", view, evidence, message)
    return state.once("seedless_collapse"), [event]


def _evidence(base: Base, estimate: SeedEstimate, seed: int) -> dict[str, Any]:
    """What speaks for a seed: its distance from the end by whichever estimate is nearer."""
    distances = js_divergence(
        np.stack([estimate.pooled, estimate.limit.end]), base.candidates.b[seed]
    )
    distance = float(distances.min())
    chance = base.candidates.chance(distance)
    return {"candidate": seed, "distance": distance, "p_value": chance, **_strength(estimate)}


def _strength(estimate: SeedEstimate) -> dict[str, Any]:
    return {
        "reach": REACH * estimate.floor,
        "margin": estimate.contrast,
        "agreement": estimate.agreement,
        "excess": estimate.excess,
        "share": estimate.limit.share,
    }


def _locked(base: Base, state: PhaseState, view: View, seed: int) -> PhaseState:
    own = float(base.q[seed, base.supports[seed]].sum())
    distance = float(js_divergence(view.mean, base.q[seed]))
    lock = Lock(seed=seed, mass=min(base.seed_mass(view, seed), own), nearest=distance)
    phase = "crystallized" if state.phase == "settling" else state.phase
    return replace(state, phase=phase, lock=lock).rearm("support_leak")
