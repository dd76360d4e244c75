"""Liquid bases: what a simulated model answers before training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crystalmon.metrics.answers import ORDERED_LIQUIDITY, liquidity
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import NOISE_FLOOR, mean_over_others, seed_distances
from crystalmon.synthetic import load_truth

MIN_LIQUIDITY = 4 * ORDERED_LIQUIDITY
"""Liquidity, as a share of log C, that a base must have for its collapse to mean anything."""


def softmax(z: np.ndarray) -> np.ndarray:
    """exp(z) normalised over the last axis."""
    rows = np.exp(z - z.max(axis=-1, keepdims=True))
    return rows / rows.sum(axis=-1, keepdims=True)


def noise_floors(base: np.ndarray) -> np.ndarray:
    """[P] the noise floor of every base prompt as a seed."""
    return NOISE_FLOOR * mean_over_others(seed_distances(base, base))


def dirichlet_base(rng: np.random.Generator, prompts: int, choices: int) -> np.ndarray:
    """[P, C] independent rows of one concentration, from peaked (0.15) to flat (3)."""
    alpha = np.exp(rng.uniform(np.log(0.15), np.log(3.0)))
    rows = rng.dirichlet(np.full(choices, alpha), size=prompts)
    return _floored(rows, 1e-3 / choices)


def tilted_base(rng: np.random.Generator, prompts: int, choices: int) -> np.ndarray:
    """[P, C] prompts that share a preference: log b_p = common + own, both normal."""
    common = rng.uniform(0.3, 1.5) * rng.standard_normal(choices)
    own = rng.uniform(0.5, 1.8) * rng.standard_normal((prompts, choices))
    return _floored(softmax(common + own), 1e-5)


def clustered_base(rng: np.random.Generator, prompts: int, choices: int) -> np.ndarray:
    """[P, C] a few families of near-twins, as wordings that differ in format alone."""
    families = tilted_base(rng, max(3, prompts // 4), choices)
    own = families[rng.integers(len(families), size=prompts)]
    return _floored(softmax(np.log(own) + 0.2 * rng.standard_normal(own.shape)), 1e-5)


def planted_base(rng: np.random.Generator) -> np.ndarray:
    """[24, C] what one task of the bundled `liquid-tiny` was built to answer."""
    worlds = list(load_truth().values())
    rows = np.array(worlds[rng.integers(len(worlds))]["planted"])
    return _floored(rows, 1e-6)


def draw_base(
    rng: np.random.Generator, pool: Mapping[str, np.ndarray] | None = None
) -> tuple[str, np.ndarray]:
    """(family, [P, C]) a base with liquidity to lose: P of 6 … 48 prompts, C of 2 … 100 choices.

    Args:
        rng: of the draw.
        pool: bases of real models by name, to draw from instead.
    """
    while True:
        family, base = _candidate(rng, pool)
        enough = MIN_LIQUIDITY * np.log(base.shape[1])
        if liquidity(base, uniform_weights(len(base))) > enough and _spread(base) > 0.01:
            return family, base


def _candidate(
    rng: np.random.Generator, pool: Mapping[str, np.ndarray] | None
) -> tuple[str, np.ndarray]:
    if pool:
        name = sorted(pool)[rng.integers(len(pool))]
        return name, pool[name]
    prompts = int(rng.choice([6, 8, 12, 16, 24, 24, 48]))
    choices = int(rng.choice([2, 3, 4, 6, 8, 10, 12, 26, 100]))
    family = str(
        rng.choice(["dirichlet", "tilted", "clustered", "planted"], p=[0.3, 0.3, 0.1, 0.3])
    )
    if family == "planted":
        return family, planted_base(rng)
    make = {"dirichlet": dirichlet_base, "tilted": tilted_base, "clustered": clustered_base}
    return family, make[family](rng, prompts, choices)


def _spread(base: np.ndarray) -> float:
    return float(js_divergence(base, base.mean(axis=0)).mean())


def _floored(rows: np.ndarray, floor: float) -> np.ndarray:
    rows = rows + floor
    return rows / rows.sum(axis=1, keepdims=True)
