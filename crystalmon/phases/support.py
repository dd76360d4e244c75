"""The rules on what becomes of a crystal's answers: settling, leaking, losing their format."""

from __future__ import annotations

from dataclasses import replace

from crystalmon.metrics.answers import MEASURABLE
from crystalmon.metrics.divergences import js_divergence
from crystalmon.phases.order import CONFIRM
from crystalmon.phases.state import Base, Observation, Outcome, PhaseState

LEAK = 0.1
"""Fall of `seed_mass` below what the locked seed holds that counts as leaving its support."""
AWAY = 1.1
"""Settling answers are so many times farther from the seed than at their nearest approach, and
farther than its noise floor: answers on their way to the seed do not settle."""
FORMAT_DROP = 0.5
"""Share of the first probe's coverage below which the format has drifted."""


def support_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """crystallized ↔ settling, and `support_leak`: answers leave the seed's support."""
    if state.lock is None or state.phase not in ("crystallized", "settling"):
        return state.streak(leak=False), []
    lock = state.lock
    mass = base.mass_on(lock.seed, now.mean)
    distance = float(js_divergence(now.mean, base.q[lock.seed]))
    floor = float(base.candidates.floors[lock.seed])
    fall = lock.mass - mass
    state = state.streak(leak=fall > LEAK)
    if fall < LEAK / 2:
        state = state.rearm("support_leak")
    if distance <= max(floor, lock.nearest):
        held = max(lock.mass, min(mass, base.mass_on(lock.seed, base.q[lock.seed])))
        lock = replace(lock, nearest=min(distance, lock.nearest), mass=held)
        if (lock, "crystallized") != (state.lock, state.phase):
            state = replace(state, lock=lock, phase="crystallized")
    elif distance > max(floor, AWAY * lock.nearest) and fall <= LEAK:
        state = replace(state, phase="settling")
    if state.streaks["leak"] < CONFIRM or "support_leak" in state.raised:
        return state, []
    evidence = {"seed_mass": mass, "seed_mass_held": lock.mass, "distance": distance}
    message = f"mass on the seed's support fell from {lock.mass:.2f} to {mass:.2f}"
    return state.once("support_leak"), [now.event("support_leak", evidence, message)]


def format_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """`format_drift`: the choices have lost half of their total probability.

    After the same prompts, where they had at least `MEASURABLE`: less is no format to lose.
    """
    coverage, before = now.coverage, state.first_coverage(now)
    if coverage is None or before is None or before < MEASURABLE:
        return state, []
    state = state.streak(format=coverage < FORMAT_DROP * before)
    if coverage > before * (1 + FORMAT_DROP) / 2:
        state = state.rearm("format_drift")
    if state.streaks["format"] < CONFIRM or "format_drift" in state.raised:
        return state, []
    evidence = {"coverage": coverage, "first_coverage": before}
    digits = ".2f" if coverage >= 0.01 else ".2g"  # a small one would be rounded to 0.00
    few = "" if now.whole else f" after the {len(now.asked)} wordings asked"
    message = (
        f"the choices' total probability fell from {before:{digits}} to {coverage:{digits}}{few}"
    )
    return state.once("format_drift"), [now.event("format_drift", evidence, message)]
