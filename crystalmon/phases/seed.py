"""The rules on the seed: which base prompt has won, that none has, that another takes over.

The collapse is extrapolated to its end (`crystalmon.seeds`) and the end compared with the base's
prompts. Judgement waits until the collapse is complete or has come to rest: before, it is early
for a verdict, and a verdict that has to be taken back is a false event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics import js_divergence
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.phases.state import Base, Lock, Outcome, PhaseState, View, make_event
from crystalmon.seeds import SeedEstimate

SEED_CONFIRM = 3
"""Successive probes at which the verdict must be the same before it is given."""
REACH = 1.25
"""Noise floors within which the limit must lie of a candidate for it to be the seed, and
beyond which it must lie of all, in 95% of the resamples, to be seedless."""
EXCESS = 3.0
"""Times the residual of a free limit that a candidate's own may be for it to be the seed, however
far the limit misses it, and must be for all to be seedless."""
AGREEMENT = 0.8
"""Share of the resamples of prompts that must name the same seed, or a twin of it."""
REST = 0.05
"""Range of `order` over `REST_PROBES` probes within which a partial collapse has come to rest."""
REST_PROBES = 5
STILL = 0.05
"""Noise floors that the limit may move between probes for a takeover to be one, not a passage."""
SEEDLESS = -1
"""The verdict that no candidate is the seed."""


def seed_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """`seed_locked`, `seedless_collapse`, `recrystallization`."""
    if state.phase in ("liquid", "melting") or view.order < ONSET or not _is_ripe(state, view):
        return replace(state.streak("seed", False), candidate=None, limit=None), []
    estimate = base.estimate(view)
    verdict = _verdict(base, state, estimate)
    limit = estimate.limit.rows[0]
    before = state.limit
    state = replace(state, limit=tuple(limit.tolist()))
    if verdict is None or not _same(base, verdict, state.candidate):
        state = replace(state.streak("seed", False), candidate=verdict)
    state = state.streak("seed", verdict is not None)
    if verdict is None or state.streaks["seed"] < SEED_CONFIRM:
        return state, []
    if verdict == SEEDLESS:
        return _seedless(base, state, view, estimate)
    if state.lock is None:
        message = (
            f"the answers of base prompt {verdict} have won "
            f"({estimate.distance:.3f} nats away, p = {estimate.p_value:.2f})"
        )
        event = make_event("seed_locked", view, _evidence(estimate), message)
        return _locked(base, state, view, verdict), [event]
    if _same(base, verdict, state.lock.seed) or not _is_still(estimate, before):
        return state, []
    message = f"base prompt {verdict} has taken over from {state.lock.seed}"
    evidence = {**_evidence(estimate), "from": state.lock.seed}
    event = make_event("recrystallization", view, evidence, message)
    return _locked(base, state, view, verdict), [event]


def _is_ripe(state: PhaseState, view: View) -> bool:
    """Whether the collapse is complete, or has come to rest on its way."""
    recent = state.orders[-REST_PROBES:]
    rests = len(recent) == REST_PROBES and min(recent) >= ONSET
    return view.order >= COMPLETE or (
        rests and max(recent) - min(recent) < REST + 2 * state.sigma
    )


def _verdict(base: Base, state: PhaseState, estimate: SeedEstimate) -> int | None:
    """The seed, `SEEDLESS`, or None while the prompts do not agree.

    A locked seed yields only to what is within the noise floor itself.
    """
    explained = state.lock is None and estimate.excess <= EXCESS
    reach = REACH if state.lock is None else 1.0
    if estimate.distance <= reach * estimate.floor or explained:
        return estimate.candidate if estimate.agreement >= AGREEMENT else None
    return SEEDLESS if estimate.nearest_low > REACH and estimate.excess > EXCESS else None


def _same(base: Base, one: int, other: int | None) -> bool:
    """Whether two verdicts are one: equal, or twins in the base."""
    if other is None or SEEDLESS in (one, other):
        return one == other
    return bool(base.candidates.twins(one)[other] or base.candidates.twins(other)[one])


def _is_still(estimate: SeedEstimate, before: tuple[float, ...] | None) -> bool:
    if before is None:
        return False
    moved = float(js_divergence(estimate.limit.rows[0], np.array(before)))
    return moved < STILL * estimate.floor


def _seedless(base: Base, state: PhaseState, view: View, estimate: SeedEstimate) -> Outcome:
    if state.lock is not None or "seedless_collapse" in state.raised:
        return state, []
    message = (
        f"the prompts come to answer alike, but the nearest base prompt is "
        f"{estimate.distance:.3f} nats away (within {REACH * estimate.floor:.3f} it would be the "
        "seed)"
    )
    event = make_event("seedless_collapse", view, _evidence(estimate), message)
    return state.once("seedless_collapse"), [event]


def _evidence(estimate: SeedEstimate) -> Mapping[str, Any]:
    return {
        "candidate": estimate.candidate,
        "distance": estimate.distance,
        "reach": REACH * estimate.floor,
        "margin": estimate.margin if np.isfinite(estimate.margin) else None,
        "p_value": estimate.p_value,
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
