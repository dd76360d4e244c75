"""What may happen to a crystal: it melts, changes its seed, leaks, or settles."""

from __future__ import annotations

import numpy as np

from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import support
from scenarios.bases import noise_floors
from scenarios.collapse import Draft, crystal, draw_path, is_distinct
from scenarios.truth import TRUE_MELT, TRUE_ONSET, first, orders

LEAKED = 0.12
"""Mass that has left the seed's support when a leak is true."""


def _ramp(rng: np.random.Generator, held_out: bool, prompts: int) -> np.ndarray:
    """[S, P] shares of the way from 0 to 1 and a rest there, alike for all prompts."""
    length, rest = int(rng.integers(1, 10)), 12
    rise = np.arange(1, length + 1) / length
    shares = np.concatenate([rise**0.5 if held_out else rise, np.ones(rest)])
    return np.tile(shares[:, None], prompts)


def _draft(
    base: np.ndarray, clean: np.ndarray, seed: int, rng: np.random.Generator, **more: object
) -> Draft | None:
    values = orders(clean, base)
    onset, complete = first(values >= TRUE_ONSET), first(values >= 0.8)
    if onset is None or complete is None or onset < 3:
        return None
    expected = {"nucleation_onset": onset, "nucleation_complete": complete, "seed_locked": onset}
    expected |= more.pop("expected", {})  # type: ignore[arg-type]
    coverage = np.full(len(clean), rng.uniform(0.4, 0.95))
    return Draft(clean=clean, coverage=coverage, expected=expected, seed=seed, **more)  # type: ignore[arg-type]


def melting(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """The prompts part again: back to the base's answers, or to others as varied."""
    seed = int(rng.integers(len(base)))
    before = crystal(rng, base, seed)
    goal = base
    if held_out or rng.random() < 0.3:
        goal = base[rng.permutation(len(base))]
    path, end = draw_path(rng, held_out), rng.uniform(0.7, 1.0)
    after = path(before[-1], goal, end * _ramp(rng, held_out, len(base)))
    clean = np.concatenate([before, after])
    values = orders(clean, base)
    melted = first((np.arange(len(clean)) >= len(before)) & (values < TRUE_MELT))
    if melted is None or values[melted:].max() > TRUE_MELT or values[len(before) - 4] < 0.85:
        return None
    return _draft(base, clean, seed, rng, expected={"melting": melted})


def takeover(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Another base prompt's answers take the crystal over."""
    seed = int(rng.integers(len(base)))
    floors = noise_floors(base)
    far = np.flatnonzero(js_divergence(base, base[seed]) > 3 * np.maximum(floors, floors[seed]))
    if not len(far):
        return None
    second = int(rng.choice(far))
    before = crystal(rng, base, seed)
    path = draw_path(rng, held_out)
    after = path(before[-1], base[second], 0.985 * _ramp(rng, held_out, len(base)))
    clean = np.concatenate([before, after])
    if orders(clean, base)[len(before) - 4 :].min() < 0.85:
        return None
    return _draft(base, clean, second, rng, expected={"recrystallization": len(before)})


def leak(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Mass leaves the seed's support, as when reinforcement finds an answer outside it."""
    seed = int(rng.integers(len(base)))
    inside = support(base[seed])
    if inside.all():
        return None
    before = crystal(rng, base, seed)
    there = base[seed]
    outside = np.where(inside, 0.0, rng.dirichlet(np.ones(len(there))))
    gone = rng.uniform(0.2, 0.6)
    goal = (1 - gone) * there + gone * outside / outside.sum()
    goal = (goal + 1e-6) / (goal + 1e-6).sum()
    path = draw_path(rng, held_out)
    after = path(before[-1], goal, _ramp(rng, held_out, len(base)))
    clean = np.concatenate([before, after])
    mass = clean[:, :, inside].sum(axis=2).mean(axis=1)
    held = min(mass[len(before) - 1], there[inside].sum())
    true = first((np.arange(len(clean)) >= len(before)) & (mass < held - LEAKED))
    if true is None or true > len(clean) - 4 or not _alone(base, goal, seed):
        return None
    if orders(clean, base)[len(before) - 4 :].min() < 0.85:
        return None
    return _draft(base, clean, seed, rng, expected={"support_leak": true})


def settling(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """The answers leave the seed but not its support, as in preference learning and RL."""
    seed = int(rng.integers(len(base)))
    inside = support(base[seed])
    if inside.sum() < 2:
        return None
    before = crystal(rng, base, seed)
    weights = np.exp(rng.uniform(0.5, 2.0) * rng.standard_normal(len(inside)))
    goal = np.where(inside, base[seed] * weights, base[seed])
    goal[inside] *= base[seed][inside].sum() / goal[inside].sum()
    if not is_distinct(base, goal, seed) or not _alone(base, goal, seed):
        return None
    path = draw_path(rng, held_out)
    after = path(before[-1], goal, _ramp(rng, held_out, len(base)))
    clean = np.concatenate([before, after])
    mass = clean[:, :, inside].sum(axis=2).mean(axis=1)
    if mass[len(before) :].min() < min(mass[len(before) - 1], base[seed][inside].sum()) - 0.06:
        return None
    if orders(clean, base)[len(before) - 4 :].min() < 0.85:
        return None
    return _draft(base, clean, seed, rng, phase="settling")


def _alone(base: np.ndarray, goal: np.ndarray, seed: int) -> bool:
    """Whether no other base prompt but the seed's twins is within 2 noise floors of the goal."""
    floors = noise_floors(base)
    twins = js_divergence(base, base[seed]) < floors[seed]
    return bool((js_divergence(base, goal) > 2 * floors)[~twins].all())
