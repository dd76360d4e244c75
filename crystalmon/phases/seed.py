"""The rules on the seed: which base prompt has won, that none has, that another takes over.

`seed_fit` extrapolates the collapse to its end, `seed_odds` weighs what speaks for each base prompt
against there being no seed, and `seed_set` keeps what cannot be excluded. Once the same member
alone has been left for `SEED_PROBES` probes, or for `END_PROBES` at the end, that is the verdict.
Where a collapse rests on its way, the probes at rest are averaged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics.divergences import js_divergence
from crystalmon.phases.order import ONSET
from crystalmon.phases.seed_fit import Candidates, SeedEstimate, estimate_seed, mean_answers
from crystalmon.phases.state import RESTING, Base, Lock, Observation, Outcome, PhaseState
from crystalmon.runs.records import Event

SEED_PROBES = 6
"""Successive probes that lock a seed, or call a collapse seedless, …"""
END_PROBES = 3
"""… and so many if there is no way left to go."""
APART = 3.0
"""Noise floors that two seeds must be apart for one to take over from the other: where base
prompts crowd together, as with two choices, settling passes many of them."""
NEARLY = 0.9
"""`order` from which the pooled answers are the end, and nothing is extrapolated."""
DONE = 0.97
"""`order` from which there is no way left to go."""
REST = 0.05
"""Range of `order` over `RESTING` probes within which a collapse has come to rest."""
STILL = 0.2
"""Share of the distance to the nearest base prompt below which pooled answers stand still."""
SEEDLESS = -1
"""The verdict that no candidate is the seed."""


def seed_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """`seed_locked`, `seedless_collapse`, `recrystallization`."""
    if state.phase in ("liquid", "melting") or now.least < ONSET:
        return replace(_judged(base, state, None, now), answers=(), members=()), []
    state = remember(state, now)
    settled = now.least >= DONE or _rests(state)
    if state.lock is not None:
        return _takeover(base, state, state.lock, now, settled)
    asked, answers = at_rest(state, now)
    estimate = estimate_seed(base.candidates, answers, asked, settled)
    verdict = _verdict(estimate)
    state = _judged(base, replace(state, members=estimate.members), verdict, now)
    if verdict is None or not _is_confirmed(state):
        return state, []
    if verdict == SEEDLESS:
        return _seedless(base, state, now, estimate)
    alike = int(base.candidates.twins(verdict).sum()) - 1
    message = (
        f"the answers of base wording {verdict} {f'or of {alike} like it ' if alike else ''}have "
        f"won ({estimate.distance:.3f} nats away, p = {estimate.p_value:.2f})"
    )
    event = now.event("seed_locked", estimate.numbers(), message)
    return _locked(base, state, now, event), [event]


def judge_probe(
    b: np.ndarray, q: np.ndarray, asked: np.ndarray | None = None
) -> tuple[int | None, dict[str, Any]]:
    """The verdict on the answers at rest of one probe, confirmed by no other.

    Args:
        b: [P, C] the base's answers.
        q, asked: see `seed_fit.estimate_seed`.

    Returns:
        The seed, `SEEDLESS`, or None while that is open; and the numbers behind it.
    """
    estimate = estimate_seed(Candidates.of(b), q, asked, at_rest=True)
    return _verdict(estimate), estimate.numbers()


def remember(state: PhaseState, now: Observation) -> PhaseState:
    """The state with one more probe to average over, as long as no seed is locked."""
    if state.lock is not None:
        return replace(state, answers=()) if state.answers else state
    probe = (tuple(now.asked.tolist()), tuple(map(tuple, now.q.tolist())))
    return replace(state, answers=(*state.answers, probe)[-RESTING:])


def at_rest(state: PhaseState, now: Observation) -> tuple[np.ndarray, np.ndarray]:
    """The prompts [p] and the probe's answers [p, C]; of a resting collapse, the latest's mean.

    Averaging over `RESTING` probes, in the logarithm, takes out what jitters between probes. It is
    over the prompts that all of these have asked.
    """
    if now.least >= NEARLY or len(state.answers) < RESTING or not _rests(state):
        return now.asked, now.q
    common = sorted(set.intersection(*(set(asked) for asked, _ in state.answers)))
    if len(common) < 2:
        return now.asked, now.q
    latest = [np.array(q)[np.isin(asked, common)] for asked, q in state.answers]
    return np.array(common), mean_answers(np.array(latest))


def _rests(state: PhaseState) -> bool:
    """Whether the collapse has come to rest, at its end or on its way."""
    recent = state.orders[-RESTING:]
    lasts = len(recent) == RESTING and min(recent) >= ONSET
    return lasts and max(recent) - min(recent) < REST + 2 * state.sigma


def _verdict(estimate: SeedEstimate) -> int | None:
    """The seed, `SEEDLESS`, or None while more than one end is possible."""
    likeliest, *others = estimate.members
    if others:
        return None
    return SEEDLESS if likeliest is None else likeliest


def _judged(base: Base, state: PhaseState, verdict: int | None, now: Observation) -> PhaseState:
    """The state with one more verdict; None where there is none yet."""
    if verdict is None or not _same(base, verdict, state.candidate):
        state = state.streak(seed=False, end=False)
    if state.candidate != verdict:
        state = replace(state, candidate=verdict)
    return state.streak(seed=verdict is not None, end=verdict is not None and now.least >= DONE)


def _is_confirmed(state: PhaseState) -> bool:
    """Whether enough successive probes agree on a verdict."""
    return state.streaks["seed"] >= SEED_PROBES or state.streaks["end"] >= END_PROBES


def _same(base: Base, one: int, other: int | None) -> bool:
    """Whether two verdicts are one: equal, or twins in the base."""
    if other is None or SEEDLESS in (one, other):
        return one == other
    return bool(base.candidates.twins(one)[other] or base.candidates.twins(other)[one])


def _seedless(base: Base, state: PhaseState, now: Observation, estimate: SeedEstimate) -> Outcome:
    """That the answers are like none of the base takes a probe of all prompts to say.

    It also takes pooled answers that stand still: prompts that are alike may yet move together.
    """
    if "seedless_collapse" in state.raised or not now.whole or not _stands_still(base, state, now):
        return state, []
    message = (
        "the wordings come to answer alike, but like none of the base: the probability that one of "
        f"these has won is {estimate.probability:.2f}"
    )
    event = now.event("seedless_collapse", estimate.numbers(), message)
    return state.once("seedless_collapse"), [event]


def _stands_still(base: Base, state: PhaseState, now: Observation) -> bool:
    """Whether the pooled answers have moved less than `STILL` since the oldest probe kept."""
    asked, q = state.answers[0]
    common = np.isin(now.asked, asked)
    moved = js_divergence(now.q[common].mean(axis=0), np.array(q).mean(axis=0))
    return bool(moved < STILL * js_divergence(now.mean, base.q).min())


def _takeover(
    base: Base, state: PhaseState, lock: Lock, now: Observation, settled: bool
) -> Outcome:
    """A locked seed yields only to one within whose noise floor the pooled answers lie."""
    distances, floors = js_divergence(now.mean, base.q), base.candidates.floors
    rival = int(np.argmin(distances))
    distance = float(distances[rival])
    near = settled and now.least >= NEARLY and distance <= float(floors[rival])
    state = _judged(base, state, rival if near else None, now)
    far = base.candidates.between[rival, lock.seed] > APART * floors[[rival, lock.seed]].max()
    if not near or not far or not _is_confirmed(state):
        return state, []
    evidence = {"candidate": rival, "distance": distance, "from": lock.seed}
    evidence["p_value"] = base.candidates.chance(distance)
    message = f"base wording {rival} has taken over from {lock.seed}"
    event = now.event("recrystallization", evidence, message)
    return _locked(base, state, now, event), [event]


def _locked(base: Base, state: PhaseState, now: Observation, event: Event) -> PhaseState:
    """The state with the seed that an event names."""
    seed = event.evidence["candidate"]
    lock = Lock(
        seed=seed,
        mass=min(base.mass_on(seed, now.mean), base.mass_on(seed, base.q[seed])),
        nearest=float(js_divergence(now.mean, base.q[seed])),
        p_value=event.evidence["p_value"],
        margin=event.evidence.get("margin"),
    )
    phase = "crystallized" if state.phase == "settling" else state.phase
    return replace(state, phase=phase, lock=lock).rearm("support_leak")
