"""Few of a task's prompts that stand for all of them, so that a probe may ask only these.

Axes: P prompts, C choices; b [P, C] are the base's answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from crystalmon.metrics.answers import liquidity
from crystalmon.metrics.divergences import js_divergence

DRAWS = 300
"""Random subsets among which one is chosen."""
TYPICAL = 0.25
"""Share of them whose liquidity is near enough to what is expected."""


def nested_subsets(b: np.ndarray, sizes: Iterable[int]) -> dict[int, np.ndarray]:
    """By size, the indices [size], ascending, of prompts that stand for all; each within the next.

    A size of P or more gives all prompts. Of `DRAWS` random subsets S, always the same, the share
    `TYPICAL` is kept whose liquidity L(S) is nearest to E L, its mean over random subsets of that
    size. Of these that one is chosen whose answers together are nearest to those of all, by
    JS(mean over S, mean over all). L(S) is not held against the liquidity of all prompts: a few
    that differ as much as all of them are the extreme ones, and extremes come closer as the model
    moves, whatever the other prompts do.

    >>> found = nested_subsets(np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]), [2, 3])
    >>> {size: len(chosen) for size, chosen in found.items()}
    {2: 2, 3: 3}
    """
    rng, found = np.random.default_rng(0), dict[int, np.ndarray]()
    everyone, kept = np.arange(len(b)), np.arange(0)
    for size in sorted(sizes):
        if size >= len(b):
            kept = everyone
        else:
            drawn = _subsets(everyone, size, rng)
            expected = liquidity(b, _weights(drawn, len(b))).mean()
            others = _subsets(np.setdiff1d(everyone, kept), size - len(kept), rng)
            subsets = np.concatenate([np.tile(kept, (DRAWS, 1)), others], axis=1)
            weights = _weights(subsets, len(b))
            off = np.abs(liquidity(b, weights) - expected)
            apart = js_divergence(weights @ b, b.mean(axis=0))
            nearest = np.argmin(np.where(off <= np.quantile(off, TYPICAL), apart, np.inf))
            kept = np.sort(subsets[nearest])
        found[size] = kept
    return found


def _subsets(prompts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """[DRAWS, size] random subsets of these prompts."""
    return rng.permuted(np.tile(prompts, (DRAWS, 1)), axis=1)[:, :size]


def _weights(subsets: np.ndarray, prompts: int) -> np.ndarray:
    """[K, P] of the subsets [K, size]: each of its prompts counts alike, others not at all."""
    weights = np.zeros((len(subsets), prompts))
    np.put_along_axis(weights, subsets, 1.0 / subsets.shape[1], axis=1)
    return weights
