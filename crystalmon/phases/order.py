"""The rules on `order`: early warning, onset and when it was, completion, melting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crystalmon.phases.state import Base, Outcome, PhaseState, View, make_event
from crystalmon.runs.records import Event

ONSET = 0.2
"""`order` from which a task is nucleating."""
LIQUID = 0.15
"""`order` under which a nucleating or melting task is liquid again: lower than the onset, so that
what rests at the onset does not cross it back and forth."""
COMPLETE = 0.8
"""`order` from which it is crystallized."""
MELT = 0.6
"""`order` below which a crystallized task is melting."""
CONFIRM = 2
"""Successive probes that must agree before an event is raised."""
WARNING = 0.11
"""`order` that must have been passed beyond doubt for an early warning."""
WARNING_SIGMAS = 3.0
"""Doubt: so many standard deviations of `order` between probes."""
INTERVAL_SIGMAS = 2.0
"""Half-width of the band of doubt around each order, for the onset's 95% interval."""


def phase_at(value: float) -> str:
    """The phase of a task that is first seen at this order."""
    return "crystallized" if value >= COMPLETE else "nucleating" if value >= ONSET else "liquid"


def warning_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """`early_warning`: still liquid, order has risen three probes running and passed 0.11 for sure.

    For sure: by `WARNING_SIGMAS` of its noise, and not by the doing of a few prompts alone. From
    the onset on, it would warn of what is there.
    """
    recent = state.orders[-4:]
    rising = len(recent) == 4 and bool(np.all(np.diff(recent) > 0))
    bar = WARNING + WARNING_SIGMAS * state.sigma
    if state.phase != "liquid" or not bar <= view.order < ONSET or not rising:
        return state, []
    low, high = base.order_interval(view)
    if "early_warning" in state.raised or low <= 0:
        return state, []
    evidence = {
        "orders": list(recent),
        "steps": list(state.steps[-4:]),
        "noise": state.sigma,
        "order_interval": [low, high],
    }
    message = f"order has risen at each of the last 3 probes, to {view.order:.2f}"
    return state.once("early_warning"), [make_event("early_warning", view, evidence, message)]


def nucleation_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """liquid → nucleating → crystallized, and back to liquid."""
    events: list[Event] = []
    state = state.streak("onset", view.order >= ONSET)
    state = state.streak("complete", view.order >= COMPLETE)
    state = state.streak("liquid", view.order < LIQUID)
    if state.phase == "liquid" and state.streaks["onset"] >= CONFIRM:
        low, high, crossing = back_date(state)
        evidence = {
            "order": view.order,
            "order_interval": list(base.order_interval(view)),
            "noise": state.sigma,
            "onset_step": crossing,
            "onset_interval": [low, high],
        }
        message = f"order passed {ONSET} between steps {low} and {high} (now {view.order:.2f})"
        events.append(make_event("nucleation_onset", view, evidence, message))
        state = replace(state, phase="nucleating")
    if state.phase in ("nucleating", "melting") and state.streaks["complete"] >= CONFIRM:
        evidence = {"order": view.order, "order_interval": list(base.order_interval(view))}
        message = f"order has reached {view.order:.2f}: the prompts answer alike"
        events.append(make_event("nucleation_complete", view, evidence, message))
        state = replace(state, phase="crystallized")
    if state.phase in ("nucleating", "melting") and state.streaks["liquid"] >= CONFIRM:
        state = replace(state, phase="liquid", lock=None, candidate=None)
        state = state.rearm("early_warning").rearm("seedless_collapse")
    return state, events


def back_date(state: PhaseState) -> tuple[int, int, float]:
    """When order passed the onset: the 95% interval's ends, and the crossing, as steps.

    The interval runs from the last probe that was below `ONSET` beyond doubt to the first from
    which on all were above it beyond doubt, doubt being `INTERVAL_SIGMAS` of the noise; without
    noise these are the two probes around the crossing. The first probe whose noise-free order is
    at least `ONSET` lies after the one and not after the other.
    """
    orders, doubt = np.array(state.orders), INTERVAL_SIGMAS * state.sigma
    first = len(orders) - CONFIRM
    below = np.flatnonzero(orders[:first] < ONSET - doubt)
    above = np.flatnonzero(orders[first:] >= ONSET + doubt)
    low = int(below[-1]) if len(below) else 0
    high = first + (int(above[0]) if len(above) else CONFIRM - 1)
    last = max(first - 1, 0)
    rise = orders[first] - orders[last]
    share = (ONSET - orders[last]) / rise if rise > 0 else 0.0
    steps = state.steps
    return steps[low], steps[high], steps[last] + float(share) * (steps[first] - steps[last])


def melting_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """crystallized or settling → melting."""
    state = state.streak("melting", view.order < MELT)
    if state.phase not in ("crystallized", "settling") or state.streaks["melting"] < CONFIRM:
        return state, []
    evidence = {"order": view.order, "order_interval": list(base.order_interval(view))}
    message = f"order has fallen to {view.order:.2f}: the prompts differ again"
    event = make_event("melting", view, evidence, message)
    state = replace(state, phase="melting", lock=None, candidate=None)
    return state.rearm("seedless_collapse"), [event]
