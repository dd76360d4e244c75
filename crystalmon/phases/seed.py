"""The rules on the seed: which base prompt has won, that none has, that another takes over.

The collapse is extrapolated to its end (`crystalmon.seeds`) and the end compared with the base's
prompts. Judgement waits until the collapse is at its end or has come to rest: before, it is early
for a verdict, and a verdict that has to be taken back is a false event. What rests on its way is
averaged over the probes at rest.

Real training misses its seed: the prompts become alike first and move together then, and stop when
the learning rate does. So a candidate need not be near the end; it may also win by explaining most
of the movement, and far more of it than any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics import js_divergence
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.phases.state import (
    RESTING,
    Base,
    Lock,
    Observation,
    Outcome,
    PhaseState,
    View,
    make_event,
)
from crystalmon.seeds import SMALLEST, SeedEstimate

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
"""Times the residual of a free limit that the best candidate's must be for all to be seedless."""
EXPLAINED = 0.05
"""Share of the movement that the best candidate may leave unexplained to be the seed of a partial
collapse, however far the limit misses it, and where it stands out…"""
LOOSELY, LOOSELY_COMPLETE = 0.2, 0.25
"""…this much, the second of a complete collapse whose pooled answers are nearest to it as well: a
shared network does not move each prompt straight to its goal."""
CONTRAST = 2.0
"""Times the candidate's residual that any other's must be for it to stand out, …"""
DOUBT = 1.6
"""…and for it to be doubtful that all are seedless. What leads to no candidate has several that
explain it equally badly."""
LOOSE_EXCESS = 25.0
"""Times the residual of a free limit beyond which none stands out, …"""
FAR_EXCESS = 40.0
"""…and beyond which a partial collapse may be seedless although its pooled answers are not."""
LEFT = 0.1
"""Share of the movement that the best candidate must leave unexplained where `FAR_EXCESS` counts,
or where no free limit does better: then the path is none of those known."""
FEW_EXCESS = 1.0
"""Times the residual of a free limit that the seed's may be, of a partial collapse among few
choices."""
APART = 3.0
"""Noise floors that two seeds must be apart for the one to take over from the other: where base
prompts crowd together, as with two choices, settling passes many of them."""
TELLING = 4
"""Choices from which a residual can tell candidates apart: among fewer any of them explains all."""
AGREEMENT = 0.8
"""Share of the resamples of prompts that must name the same seed, or a twin of it."""
AGREEMENT_PARTIAL = 0.95
"""The same of a partial collapse that is near the candidate, but not explained by its path."""
NEARLY = 0.9
"""`order` from which the pooled answers are the end, and nothing is extrapolated."""
DONE = 0.97
"""`order` from which there is no way left to wait for."""
REST = 0.05
"""Range of `order` over `RESTING` probes within which a collapse has come to rest."""
SEEDLESS = -1
"""The verdict that no candidate is the seed."""

Evidence = dict[str, Any]


def seed_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """`seed_locked`, `seedless_collapse`, `recrystallization`."""
    if state.phase in ("liquid", "melting") or view.order < ONSET:
        return replace(state.streak("seed", False), candidate=None, ends=(), answers=()), []
    state = _remembered(state, view)
    if view.order < DONE and not _rests(state):
        return replace(state.streak("seed", False), candidate=None, ends=()), []
    if state.lock is not None and _rests_on(base, state.lock.seed, view):
        return _judged(base, state, state.lock.seed, view.mean), []  # spares the extrapolation
    estimate = base.estimate(_at_rest(state, view))
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


def _remembered(state: PhaseState, view: View) -> PhaseState:
    """The state with one more probe to average over, as long as no seed is locked."""
    if state.lock is not None:
        return replace(state, answers=())
    rows = tuple(map(tuple, view.q.tolist()))
    return replace(state, answers=(*state.answers, rows)[-RESTING:])


def _rests(state: PhaseState) -> bool:
    """Whether the collapse has come to rest, at its end or on its way."""
    recent = state.orders[-RESTING:]
    lasts = len(recent) == RESTING and min(recent) >= ONSET
    return lasts and max(recent) - min(recent) < REST + 2 * state.sigma


def _at_rest(state: PhaseState, view: View) -> View:
    """The probe; of a collapse that rests, the mean of its latest answers.

    What jitters from probe to probe is averaged out: over `RESTING` probes, in the logarithm.
    """
    if view.order >= NEARLY or len(state.answers) < RESTING or not _rests(state):
        return view
    rows = np.exp(np.log(np.maximum(state.answers, SMALLEST)).mean(axis=0))
    rows /= rows.sum(axis=1, keepdims=True)
    return replace(view, q=rows, mean=rows.mean(axis=0))


def _is_explained(base: Base, view: View, estimate: SeedEstimate) -> bool:
    """Whether the candidate's path explains the answers, however far the limit misses it."""
    partial = view.order < COMPLETE
    least = estimate.unexplained <= EXPLAINED
    if len(view.mean) < TELLING:
        return partial and least and estimate.excess <= FEW_EXCESS
    if partial:
        return least or _stands_out(estimate, CONTRAST, LOOSELY)
    together = _same(base, estimate.pooled_candidate, estimate.candidate)
    return together and _stands_out(estimate, CONTRAST, LOOSELY_COMPLETE)


def _stands_out(estimate: SeedEstimate, contrast: float, unexplained: float) -> bool:
    """Whether one candidate explains most of the movement and all others far less."""
    close = estimate.excess <= LOOSE_EXCESS and estimate.unexplained <= unexplained
    return close and estimate.contrast >= contrast


def _is_lost(view: View, estimate: SeedEstimate, pooled_floors: float) -> bool:
    """Whether no candidate is the seed, by the extrapolated end and by the pooled answers."""
    tells = len(view.mean) >= TELLING
    if tells and _stands_out(estimate, DOUBT, LOOSELY_COMPLETE):
        return False
    beyond = pooled_floors > (BEYOND if view.order >= COMPLETE else BEYOND_PARTIAL)
    if view.order >= COMPLETE:
        return estimate.excess > EXCESS and beyond and estimate.nearest_low > BEYOND
    left = estimate.unexplained > LEFT and estimate.contrast < CONTRAST
    if beyond and (left or estimate.excess > EXCESS):
        return estimate.nearest_low > BEYOND
    return left and estimate.excess > FAR_EXCESS and estimate.nearest_low > BEYOND_PARTIAL


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
    explained = state.lock is None and _is_explained(base, view, estimate)
    near = explained or estimate.distance <= reach * estimate.floor
    if view.order >= COMPLETE and not explained and estimate.excess > EXCESS:
        near = near or pooled_floors <= reach
        if near and not _same(base, pooled, estimate.candidate):
            return None
    if near:
        sure = explained or view.order >= COMPLETE
        agreed = AGREEMENT if sure else AGREEMENT_PARTIAL
        return estimate.candidate if estimate.agreement >= agreed else None
    return SEEDLESS if _is_lost(view, estimate, pooled_floors) else None


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
        "unexplained": estimate.unexplained,
        "share": estimate.limit.share,
    }


def _locked(base: Base, state: PhaseState, view: View, seed: int) -> PhaseState:
    own = float(base.q[seed, base.supports[seed]].sum())
    distance = float(js_divergence(view.mean, base.q[seed]))
    lock = Lock(seed=seed, mass=min(base.seed_mass(view, seed), own), nearest=distance)
    phase = "crystallized" if state.phase == "settling" else state.phase
    return replace(state, phase=phase, lock=lock).rearm("support_leak")
