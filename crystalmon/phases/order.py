"""The rules on `order`: early warning, onset and when it was, completion, melting.

A base that already answers alike has no `order`: of it, `liquidity` itself is watched.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crystalmon.metrics.answers import ORDERED_LIQUIDITY, liquidity
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.phases.state import WINDOW, Base, Observation, Outcome, PhaseState
from crystalmon.runs.records import Event

ONSET = 0.2
"""`order` from which a task is nucleating."""
LIQUID = 0.15
"""`order` under which a nucleating or melting task is liquid again. It is lower than the onset, so
that a task that rests at the onset does not cross it back and forth."""
COMPLETE = 0.8
"""`order` from which it is crystallized."""
MELT = 0.6
"""`order` below which a crystallized task is melting."""
GAINED = 0.05
"""Share of log C that the liquidity must pass for an ordered base to be melting."""
CONFIRM = 2
"""Successive probes that must agree before an event is raised."""
WARNING = 0.11
"""`order` that must be passed beyond doubt for an early warning."""
WARNING_SIGMAS = 3.0
"""Doubt there, in standard deviations of `order` between probes."""
WARNING_PROMPTS = 8
"""A partial probe warns early only if it asks this many prompts: the bootstrap over fewer has no
lower end that holds."""
INTERVAL_SIGMAS = 2.0
"""Doubt about each order, on either side, for the onset's 95% interval."""


def begin(state: PhaseState, order: float, at_start: bool) -> PhaseState:
    """In the phase that the first probe shows; a liquid has no crystal to take over.

    Args:
        state: as handed on.
        order: at the first probe that could be measured.
        at_start: that was the run's first probe. If not, and no earlier stage has told of the
            collapse, the task begins as a liquid: what it has become is told as an event.
    """
    told = state.lock is not None or "seedless_collapse" in state.raised
    if (at_start or told) and order >= ONSET:
        return replace(state, phase="crystallized" if order >= COMPLETE else "nucleating")
    kept = state.raised - {"support_leak", "seedless_collapse"}
    return replace(state, phase="liquid", lock=None, raised=kept)


def warning_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """`early_warning`: still liquid, order has risen three probes running and surely passed 0.11.

    Surely: by `WARNING_SIGMAS` of its noise, and not by the doing of a few prompts alone.
    """
    bar = WARNING + WARNING_SIGMAS * state.sigma
    if state.phase != "liquid" or not bar <= now.least < ONSET:
        return state, []
    if len(now.q) < min(WARNING_PROMPTS, len(base.q)):
        return state, []
    recent = state.orders[-4:]
    if len(recent) < 4 or not np.all(np.diff(recent) > 0):
        return state, []
    if "early_warning" in state.raised or (least := base.least_order(now)) <= 0:
        return state, []
    evidence = {"orders": list(recent), "steps": list(state.steps[-4:]), "noise": state.sigma}
    evidence["least_order"] = least
    message = f"order has risen at each of the last 3 probes, to {now.words(now.least)}"
    return state.once("early_warning"), [now.event("early_warning", evidence, message)]


def nucleation_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """liquid → nucleating → crystallized, and back to liquid."""
    events: list[Event] = []
    state = state.streak(
        onset=now.least >= ONSET,
        complete=now.least >= COMPLETE,
        liquid=now.most < LIQUID,
    )
    if state.phase == "liquid" and state.streaks["onset"] >= CONFIRM:
        low, high, crossing = back_date(state)
        evidence = base.order_evidence(now) | {"noise": state.sigma, "onset_interval": [low, high]}
        shown = f"now {now.words(now.least)}"
        message = f"order passed {ONSET} between steps {low} and {high} ({shown})"
        if low < state.steps[0]:
            first = f"when it was first measured, at step {state.steps[0]}"
            message = f"order was past {ONSET} already {first} ({shown})"
        else:
            evidence["onset_step"] = crossing
        events.append(now.event("nucleation_onset", evidence, message))
        state = replace(state, phase="nucleating")
    if state.phase in ("nucleating", "melting") and state.streaks["complete"] >= CONFIRM:
        message = f"order has reached {now.words(now.least)}: the wordings answer alike"
        events.append(now.event("nucleation_complete", base.order_evidence(now), message))
        state = replace(state, phase="crystallized")
    if state.phase in ("nucleating", "melting") and state.streaks["liquid"] >= CONFIRM:
        state = replace(state, phase="liquid", lock=None, candidate=None, liquid_since=now.step)
        state = state.rearm("early_warning").rearm("seedless_collapse")
    return state, events


def back_date(state: PhaseState) -> tuple[int, int, float]:
    """When order passed the onset: the 95% interval's ends, and the crossing, as steps.

    The interval runs from the last probe that was below `ONSET` by `INTERVAL_SIGMAS` of the noise,
    or from the run's begin if none was, to the first, of those that confirmed the onset, that was
    above it by as much; a repeated onset's from where the task was liquid again. Without noise
    these are the two probes around the crossing. The first probe whose noise-free order is at least
    `ONSET` lies after the one and not after the other.
    """
    orders, doubt = np.array(state.orders), INTERVAL_SIGMAS * state.sigma
    first = len(orders) - CONFIRM
    below = np.flatnonzero(orders[:first] < ONSET - doubt)
    above = np.flatnonzero(orders[first:] >= ONSET + doubt)
    high = first + (int(above[0]) if len(above) else CONFIRM - 1)
    last = max(first - 1, 0)
    rise = orders[first] - orders[last]
    share = (ONSET - orders[last]) / rise if rise > 0 else 0.0
    steps = state.steps
    begins = 0 if len(orders) < WINDOW else steps[0]
    low = steps[int(below[-1])] if len(below) else begins
    low = max(low, state.liquid_since)
    return low, steps[high], steps[last] + float(share) * (steps[first] - steps[last])


def melting_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """crystallized or settling → melting."""
    state = state.streak(melting=now.most < MELT)
    if state.phase not in ("crystallized", "settling") or state.streaks["melting"] < CONFIRM:
        return state, []
    message = f"order has fallen to {now.words(now.most)}: the wordings differ again"
    event = now.event("melting", base.order_evidence(now), message)
    state = replace(state, phase="melting", lock=None, candidate=None)
    return state.rearm("seedless_collapse"), [event]


def ordered_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """ordered ↔ melting: the base answered alike, and now its wordings differ."""
    own = float(liquidity(now.q, uniform_weights(len(now.q))))
    most = float(np.log(now.q.shape[1]))
    state = state.seen(now).streak(
        melting=own > GAINED * most,
        ordered=own < ORDERED_LIQUIDITY * most,
    )
    if state.streaks["ordered"] >= CONFIRM:
        state = replace(state, phase="ordered").rearm("melting")
    if "melting" in state.raised and state.streaks["melting"]:  # told by an earlier stage
        return replace(state, phase="melting"), []
    if state.phase == "melting" or state.streaks["melting"] < CONFIRM:
        return state, []
    before = float(base.liquidity)
    evidence = {"liquidity": own, "base_liquidity": before}
    message = (
        f"the base answered alike, and now the wordings differ: liquidity has risen from "
        f"{before:.3f} to {own:.3f} nats"
    )
    return replace(state, phase="melting").once("melting"), [
        now.event("melting", evidence, message)
    ]
