"""Few of a task's prompts that stand for all of them, so that a probe may ask only these.

Axes: P prompts, C choices; b [P, C] are the base's answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from crystalmon.metrics.divergences import entropy, js_divergence

DRAWS = 300
"""Random subsets among which one is chosen."""


def nested_subsets(b: np.ndarray, sizes: Iterable[int]) -> dict[int, np.ndarray]:
    """By size, the indices [size], ascending, of prompts that stand for all; each within the next.

    A size of P or more gives all prompts. Of `DRAWS` random subsets, always the same, that one is
    chosen whose answers are nearest to what is expected of so few prompts: of the least
    |L(S) − E L| + JS(mean over S, mean over all), in nats, where L is the liquidity and E L its
    mean over random subsets of that size. It is not held against the liquidity of all prompts:
    a few that differ as much as all of them are the extreme ones, and extremes come closer as the
    model moves, whatever the other prompts do.

    >>> found = nested_subsets(np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]), [2, 3])
    >>> {size: chosen.tolist() for size, chosen in found.items()}
    {3: [0, 1, 2], 2: [0, 1]}
    """
    rng, within, found = np.random.default_rng(0), np.arange(len(b)), dict[int, np.ndarray]()
    for size in sorted(sizes, reverse=True):
        if size < len(within):
            expected = _liquidity(b, _subsets(np.arange(len(b)), size, rng)).mean()
            subsets = _subsets(within, size, rng)
            apart = js_divergence(b[subsets].mean(axis=1), b.mean(axis=0))
            nearest = np.argmin(np.abs(_liquidity(b, subsets) - expected) + apart)
            within = subsets[nearest]
        found[size] = within
    return found


def _subsets(within: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """[DRAWS, size] random subsets of these prompts, ascending."""
    drawn = rng.permuted(np.tile(within, (DRAWS, 1)), axis=1)[:, :size]
    return np.sort(drawn, axis=1)


def _liquidity(b: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """[K] of the subsets [K, size]."""
    return entropy(b[subsets].mean(axis=1)) - entropy(b)[subsets].mean(axis=1)
