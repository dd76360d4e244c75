"""The rules on what becomes of a crystal's answers: settling, leaking, losing their format."""

from __future__ import annotations

from dataclasses import replace

from crystalmon.metrics.answers import js_divergence
from crystalmon.phases.order import CONFIRM
from crystalmon.phases.state import Base, Outcome, PhaseState, View, make_event

LEAK = 0.1
"""Fall of `seed_mass` below what the locked seed holds that counts as leaving its support."""
AWAY = 1.1
"""Times its nearest approach that the pooled answers' distance from the seed must be, and over
the noise floor, to count as settling: on the way to the seed is not settling."""
FORMAT_DROP = 0.5
"""Share of the first probe's coverage below which the format has drifted."""


def support_rule(base: Base, state: PhaseState, view: View) -> Outcome:
    """crystallized ↔ settling, and `support_leak`: what leaves the seed may leave its support."""
    if state.lock is None or state.phase not in ("crystallized", "settling"):
        return state.streak("leak", False), []
    lock = state.lock
    mass = base.seed_mass(view, lock.seed)
    distance = float(js_divergence(view.mean, base.q[lock.seed]))
    floor = float(base.candidates.floors[lock.seed])
    fall = lock.mass - mass
    state = state.streak("leak", fall > LEAK)
    if fall < LEAK / 2:
        state = state.rearm("support_leak")
    if distance <= max(floor, lock.nearest):
        own = float(base.q[lock.seed, base.supports[lock.seed]].sum())
        held = max(lock.mass, min(mass, own))
        lock = replace(lock, nearest=min(distance, lock.nearest), mass=held)
        state = replace(state, lock=lock, phase="crystallized")
    elif distance > max(floor, AWAY * lock.nearest) and fall <= LEAK:
        state = replace(state, phase="settling")
    if state.streaks["leak"] < CONFIRM or "support_leak" in state.raised:
        return state, []
    evidence = {"seed_mass": mass, "seed_mass_held": lock.mass, "distance": distance}
    message = f"mass on the seed's support fell from {lock.mass:.2f} to {mass:.2f}"
    return state.once("support_leak"), [make_event("support_leak", view, evidence, message)]


def format_rule(base: Base, state: PhaseState, view: View) -> Outcome:
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
    digits = ".2f" if now >= 0.01 else ".2g"  # a small one would be rounded to 0.00
    message = f"the choices' total probability fell from {before:{digits}} to {now:{digits}}"
    return state.once("format_drift"), [make_event("format_drift", view, evidence, message)]
