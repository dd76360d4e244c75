"""Few of a task's prompts that stand for all of them, so that a probe may ask only these.

Axes: P prompts, C choices; b [P, C] are the base's answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from crystalmon.metrics.divergences import entropy, js_divergence


def nested_subsets(b: np.ndarray, sizes: Iterable[int]) -> dict[int, np.ndarray]:
    """By size, the indices [size], ascending, of prompts that stand for all; each within the next.

    A size of P or more gives all prompts.

    >>> found = nested_subsets(np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]), [2, 3])
    >>> {size: chosen.tolist() for size, chosen in found.items()}
    {3: [0, 1, 2], 2: [0, 1]}
    """
    within, found = np.arange(len(b)), dict[int, np.ndarray]()
    for size in sorted(sizes, reverse=True):
        if size < len(within):
            within = nearest_subset(b, size, within)
        found[size] = within
    return found


def nearest_subset(b: np.ndarray, size: int, within: Sequence[int] | np.ndarray) -> np.ndarray:
    """[size] prompts whose answers, taken together, are nearest to those of all.

    Nearest is of the least |L(S) − L| + JS(mean over S, mean over all), in nats, where L is the
    liquidity. One prompt after the other is added, then exchanged as long as that helps.

    Args:
        b: [P, C].
        size: at most that of `within`.
        within: the prompts to choose from.
    """
    own, mean = entropy(b), b.mean(axis=0)
    liquidity = entropy(mean) - own.mean()

    def distances(subsets: np.ndarray) -> np.ndarray:
        """[K] of the subsets [K, n]."""
        means = b[subsets].mean(axis=1)
        spread = entropy(means) - own[subsets].mean(axis=1)
        return np.abs(spread - liquidity) + js_divergence(means, mean)

    def best_with(kept: list[int]) -> tuple[float, list[int]]:
        """The nearest of the subsets that add one prompt to those kept."""
        others = [prompt for prompt in within if prompt not in kept]
        found = distances(np.array([[*kept, prompt] for prompt in others], dtype=np.int64))
        place = int(np.argmin(found))
        return float(found[place]), [*kept, int(others[place])]

    chosen: list[int] = []
    while len(chosen) < size:
        distance, chosen = best_with(chosen)
    while True:
        nearer, changed = min(
            best_with([p for p in chosen if p != leaving]) for leaving in sorted(chosen)
        )
        if not nearer < distance - 1e-12:
            return np.array(sorted(chosen))
        distance, chosen = nearer, changed
