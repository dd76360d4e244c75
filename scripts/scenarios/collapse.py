"""Collapses: onto a seed or onto nothing known, abrupt or gradual, all the way or part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from scenarios.bases import noise_floors
from scenarios.paths import (
    HELD_OUT_PATHS,
    HELD_OUT_SCHEDULES,
    PATHS,
    SCHEDULES,
    Path,
    step_schedule,
)
from scenarios.truth import TRUE_ONSET, first, orders

TARGET_FLOORS = 3.0
"""Noise floors that a seedless target is away from every base prompt, at the least."""
PARTIAL_ORDER = (0.35, 0.85)
"""Noise-free `order` at which a partial collapse comes to rest."""


@dataclass(frozen=True)
class Draft:
    """A scenario without its noise; the fields are those of `Scenario`."""

    clean: np.ndarray
    coverage: np.ndarray
    expected: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    seedless: bool = False
    phase: str = ""
    tempo: str = ""


def draw_path(rng: np.random.Generator, held_out: bool) -> Path:
    """One of the dynamics."""
    paths = HELD_OUT_PATHS if held_out else PATHS
    return paths[sorted(paths)[rng.integers(len(paths))]]


def draw_shares(
    rng: np.random.Generator, prompts: int, probes: int, tempo: str, staggered: bool, held_out: bool
) -> np.ndarray:
    """[S, P] each prompt's share of the way, from 0 to 1, over probes."""
    time = np.arange(probes, dtype=float)
    at = rng.uniform(9, 14)
    if tempo == "abrupt":
        shift = rng.uniform(0, 0.4) * rng.standard_normal(prompts)
        return np.stack([step_schedule(time, at + s, 1.0) for s in shift], axis=1)
    schedules = HELD_OUT_SCHEDULES if held_out else SCHEDULES
    schedule = schedules[sorted(schedules)[rng.integers(len(schedules))]]
    width = rng.uniform(6, 14)
    spread = rng.uniform(2, 4) if staggered else rng.uniform(0, 1.5)
    shift = np.clip(spread * rng.standard_normal(prompts), -7, 7)
    if staggered and rng.random() < 0.5:
        width = 1.5  # every prompt at once, but each in its own time
    start = at + max(width / 2 - 4, 0)
    return np.stack([schedule(time, start + s, width) for s in shift], axis=1)


def lonely_target(rng: np.random.Generator, base: np.ndarray) -> np.ndarray | None:
    """[C] a distribution `TARGET_FLOORS` noise floors or more from the nearest base prompt."""
    choices = base.shape[1]
    alpha = np.exp(rng.uniform(np.log(0.2), np.log(2.0)))
    rows = rng.dirichlet(np.full(choices, alpha), size=60) + 1e-3 / choices
    rows /= rows.sum(axis=1, keepdims=True)
    distances = js_divergence(rows[:, None], base)
    nearest = distances.argmin(axis=1)
    fit = np.flatnonzero(distances.min(axis=1) > TARGET_FLOORS * noise_floors(base)[nearest])
    return rows[rng.choice(fit)] if len(fit) else None


def collapse(
    rng: np.random.Generator,
    base: np.ndarray,
    held_out: bool,
    *,
    tempo: str = "",
    partial: bool = False,
    seedless: bool = False,
    staggered: bool = False,
) -> Draft | None:
    """One collapse; None if this base and draw make none that fits its name."""
    prompts = len(base)
    tempo = tempo or str(rng.choice(["abrupt", "gradual"]))
    probes = int(rng.integers(36, 52))
    seed = None if seedless else int(rng.integers(prompts))
    target = lonely_target(rng, base) if seed is None else base[seed]
    if target is None:
        return None
    path = draw_path(rng, held_out)
    shares = draw_shares(rng, prompts, probes, tempo, staggered, held_out)
    extent = rng.uniform(0.97, 1.0) * np.ones(prompts)
    if partial:
        rates = np.exp(rng.uniform(0, 0.2) * rng.standard_normal(prompts))
        extent = np.clip(rng.uniform(0.2, 0.9) * rates, 0, 0.98)
    clean = path(base, target, extent * shares)
    values = orders(clean, base)
    onset = first(values >= TRUE_ONSET)
    if onset is None or values[onset:].min() < TRUE_ONSET or not 3 <= onset <= probes - 14:
        return None
    rest = values[-12:].min()
    fits = PARTIAL_ORDER[0] <= rest <= PARTIAL_ORDER[1] if partial else rest > 0.85
    if not fits:
        return None
    expected = {"nucleation_onset": onset}
    if not partial:
        expected["nucleation_complete"] = int(np.argmax(values >= 0.8))
    expected["seedless_collapse" if seed is None else "seed_locked"] = onset
    return Draft(
        clean=clean,
        coverage=np.full(probes, rng.uniform(0.4, 0.95)),
        expected=expected,
        seed=seed,
        seedless=seed is None,
        phase="nucleating" if partial else "crystallized",
        tempo=_tempo(values),
    )


def crystal(rng: np.random.Generator, base: np.ndarray, seed: int) -> np.ndarray:
    """[S, P, C] noise-free probes of a quick collapse onto a base prompt, all the way."""
    path = draw_path(rng, False)
    quiet, rise, hold = int(rng.integers(4, 9)), int(rng.integers(1, 7)), int(rng.integers(7, 12))
    shares = np.concatenate([np.zeros(quiet), np.arange(1, rise + 1) / rise, np.ones(hold)])
    extent = rng.uniform(0.97, 1.0)
    return path(base, base[seed], np.tile(extent * shares[:, None], len(base)))


def is_distinct(base: np.ndarray, row: np.ndarray, seed: int, floors: float = 2.0) -> bool:
    """Whether a distribution is farther than `floors` noise floors from a seed."""
    return bool(js_divergence(row, base[seed]) > floors * noise_floor(base, seed))


def _tempo(values: np.ndarray) -> str:
    """`abrupt` if order goes from 10% to 90% of its end in at most 2 probes, `gradual` from 8."""
    end = values[-8:].mean()
    width = np.argmax(values >= 0.9 * end) - np.argmax(values >= 0.1 * end) + 1
    return "abrupt" if width <= 2 else "gradual" if width >= 8 else ""
