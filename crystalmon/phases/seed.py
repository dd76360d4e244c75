"""The rules on the seed: which base prompt has won, that none has, that another takes over.

The collapse is extrapolated to its end (`crystalmon.seeds`), and what speaks for each base prompt
weighed against there being none (`crystalmon.odds`). Judgement waits until the collapse is at its
end or has come to rest: before, it is early for a verdict, and a verdict that has to be taken back
is a false event. What rests on its way is averaged over the probes at rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics.answers import js_divergence
from crystalmon.phases.order import ONSET
from crystalmon.phases.seed_fit import SeedEstimate, mean_answers
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

SEED_CONFIRM = 3
"""Successive probes that lock a seed if all are sure of it and the end stands still."""
CONFIRM = 5
"""Successive probes that lock it at any rate, or call a collapse seedless."""
STILL = 0.3
"""Square roots of a noise floor that the end may have moved, by √JS, over these probes."""
TO_AND_FRO = 1.5
"""Mean steps that it may have moved over `CONFIRM` probes, if they are mere noise."""
SEEDED = 0.0
"""Log-odds from which a collapse leads to its candidate, …"""
LONELY = -1.5
"""…and up to which to nothing that the base shows; see `odds`."""
SURELY_SEEDED, SURELY_LONELY = 2.0, -4.0
"""Log-odds from which a verdict is sure."""
APART = 3.0
"""Noise floors that two seeds must be apart for the one to take over from the other: where base
prompts crowd together, as with two choices, settling passes many of them."""
NEARLY = 0.9
"""`order` from which the pooled answers are the end, and nothing is extrapolated."""
DONE = 0.97
"""`order` from which there is no way left to wait for."""
REST = 0.05
"""Range of `order` over `RESTING` probes within which a collapse has come to rest."""
SEEDLESS = -1
"""The verdict that no candidate is the seed."""

Numbers = dict[str, Any]


def seed_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """`seed_locked`, `seedless_collapse`, `recrystallization`."""
    if state.phase in ("liquid", "melting") or view.order < ONSET:
        return replace(_unjudged(state), ends=(), answers=()), []
    state = _remembered(state, view)
    if view.order < DONE and not _rests(state):
        return replace(_unjudged(state), ends=()), []
    if state.lock is not None:
        return _takeover(base, state, state.lock, view)
    estimate = base.estimate(_at_rest(state, view))
    verdict = _verdict(estimate)
    end = estimate.pooled if view.order >= NEARLY else estimate.limit.end
    state = _judged(base, state, verdict, end, sure=_is_sure(estimate))
    if verdict is None or not _is_confirmed(state, verdict, estimate.floor):
        return state, []
    evidence = _evidence(base, estimate)
    if verdict == SEEDLESS:
        return _seedless(state, view, evidence, estimate.floor)
    return _first_lock(base, state, view, evidence)


def judge_probe(reference_q: np.ndarray, observation: Observation) -> tuple[int | None, Numbers]:
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
    return _verdict(estimate), _evidence(base, estimate)


def _judged(
    base: Base, state: PhaseState, verdict: int | None, end: np.ndarray, *, sure: bool
) -> PhaseState:
    """The state with one more verdict, and the end that it was passed on."""
    state = replace(state, ends=(*state.ends, tuple(end.tolist()))[-CONFIRM:])
    if verdict is None or not _same(base, verdict, state.candidate):
        state = replace(_unjudged(state), candidate=verdict)
    return state.streak("seed", verdict is not None).streak("sure", verdict is not None and sure)


def _unjudged(state: PhaseState) -> PhaseState:
    """The state without the verdicts passed so far."""
    return replace(state.streak("seed", False).streak("sure", False), candidate=None)


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
    rows = mean_answers(np.array(state.answers))
    return replace(view, q=rows, mean=rows.mean(axis=0))


def _verdict(estimate: SeedEstimate) -> int | None:
    """The seed, `SEEDLESS`, or None while that is open."""
    if estimate.log_odds >= SEEDED:
        return estimate.candidate
    return SEEDLESS if estimate.log_odds <= LONELY else None


def _is_sure(estimate: SeedEstimate) -> bool:
    return not SURELY_LONELY < estimate.log_odds < SURELY_SEEDED


def _same(base: Base, one: int, other: int | None) -> bool:
    """Whether two verdicts are one: equal, or twins in the base."""
    if other is None or SEEDLESS in (one, other):
        return one == other
    return bool(base.candidates.twins(one)[other] or base.candidates.twins(other)[one])


def _is_confirmed(state: PhaseState, verdict: int, floor: float) -> bool:
    """Whether enough successive probes agree on a verdict.

    A seed needs `CONFIRM` of them, or `SEED_CONFIRM` that are sure while the end stands still; that
    there is none, `CONFIRM`, which must be sure or the end stand still.
    """
    held, sure = state.streaks["seed"], state.streaks["sure"]
    if verdict == SEEDLESS:
        return held >= CONFIRM and (sure >= CONFIRM or _is_still(state.ends, CONFIRM, floor))
    return held >= CONFIRM or (sure >= SEED_CONFIRM and _is_still(state.ends, SEED_CONFIRM, floor))


def _is_still(ends: Sequence[Sequence[float]], probes: int, floor: float) -> bool:
    """Whether the end stays where it is: no verdict in passing.

    Either it has hardly moved over the last `probes`, or it has moved to and fro: over all the
    probes remembered no farther than `TO_AND_FRO` of its steps between neighbours, where a
    steady course would cover them all.
    """
    rows = np.array(ends)
    if len(rows) < probes:
        return False
    moved = float(js_divergence(rows[-1], rows[-probes]))
    if moved <= STILL**2 * floor or len(rows) < CONFIRM:
        return moved <= STILL**2 * floor
    step = float(np.sqrt(js_divergence(rows[1:], rows[:-1])).mean())
    return float(np.sqrt(js_divergence(rows[-1], rows[0]))) <= TO_AND_FRO * step


def _first_lock(base: Base, state: PhaseState, view: View, evidence: Numbers) -> Outcome:
    seed = int(evidence["candidate"])
    alike = int(base.candidates.twins(seed).sum()) - 1
    message = (
        f"the answers of base prompt {seed} {f'or of {alike} like it ' if alike else ''}have won "
        f"({evidence['distance']:.3f} nats away, p = {evidence['p_value']:.2f})"
    )
    event = make_event("seed_locked", view, evidence, message)
    return _locked(base, state, view, evidence), [event]


def _seedless(state: PhaseState, view: View, evidence: Numbers, floor: float) -> Outcome:
    if "seedless_collapse" in state.raised:
        return state, []
    message = (
        "the prompts come to answer alike, but like none of the base: the likeliest is "
        f"{evidence['distance']:.3f} nats away (noise floor {floor:.3f}); there is a seed with "
        f"probability {evidence['probability']:.2f}"
    )
    event = make_event("seedless_collapse", view, evidence, message)
    return state.once("seedless_collapse"), [event]


def _takeover(base: Base, state: PhaseState, lock: Lock, view: View) -> Outcome:
    """A locked seed yields only to one within whose noise floor the pooled answers lie."""
    distances, floors = js_divergence(view.mean, base.candidates.b), base.candidates.floors
    rival = int(np.argmin(distances))
    near = view.order >= NEARLY and distances[rival] <= floors[rival]
    state = _judged(base, state, rival if near else None, view.mean, sure=near)
    far = base.candidates.between[rival, lock.seed] > APART * floors[[rival, lock.seed]].max()
    if not near or not far or not _is_confirmed(state, rival, float(floors[rival])):
        return state, []
    message = f"base prompt {rival} has taken over from {lock.seed}"
    distance = float(distances[rival])
    evidence = {"candidate": rival, "distance": distance, "from": lock.seed}
    evidence["p_value"] = base.candidates.chance(distance)
    event = make_event("recrystallization", view, evidence, message)
    return _locked(base, state, view, evidence), [event]


def _evidence(base: Base, estimate: SeedEstimate) -> Numbers:
    """What speaks for the candidate: its distance from the end by whichever estimate is nearer."""
    ends = np.stack([estimate.pooled, estimate.limit.end])
    distance = float(js_divergence(ends, base.candidates.b[estimate.candidate]).min())
    return {
        "candidate": estimate.candidate,
        "distance": distance,
        "p_value": base.candidates.chance(distance),
        "probability": estimate.probability,
        "margin": estimate.contrast,
        "excess": estimate.excess,
        "unexplained": estimate.unexplained,
        "share": estimate.limit.share,
    }


def _locked(base: Base, state: PhaseState, view: View, evidence: Numbers) -> PhaseState:
    seed = int(evidence["candidate"])
    own = float(base.q[seed, base.supports[seed]].sum())
    lock = Lock(
        seed=seed,
        mass=min(base.seed_mass(view, seed), own),
        nearest=float(js_divergence(view.mean, base.q[seed])),
        p_value=evidence["p_value"],
        margin=evidence.get("margin"),
    )
    phase = "crystallized" if state.phase == "settling" else state.phase
    return replace(state, phase=phase, lock=lock).rearm("support_leak")
