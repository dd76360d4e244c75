"""Which prompts a probe asks: all, or a few of each task that stand for them.

Axes: P prompts of a task, p of them asked, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crystalmon.metrics.subsets import nested_subsets

Asked = Mapping[str, np.ndarray]
"""By task, the prompts asked [p], as ascending indices."""

PARTIAL = (2, 4, 8)
"""Prompts of each task that a partial probe may ask."""


def choose_subsets(
    base_q: Mapping[str, np.ndarray], answered: Mapping[str, np.ndarray], *, only_all: bool
) -> dict[int, Asked]:
    """By number of prompts of each task, which ones; the largest number stands for all.

    Args:
        base_q: by task, the base's answers [P, C].
        answered: by task, [P] whether the base answers a prompt. Those that it does not answer are
            asked only where the others are not enough.
        only_all: no subsets, all prompts at every probe.
    """
    most = max(map(len, base_q.values()))
    sizes = [] if only_all else [size for size in PARTIAL if size < most]
    chosen = {name: _nested(b, answered[name], sizes) for name, b in base_q.items()}
    parts = {size: {name: own[size] for name, own in chosen.items()} for size in sizes}
    return {**parts, most: {name: np.arange(len(b)) for name, b in base_q.items()}}


def _nested(b: np.ndarray, answered: np.ndarray, sizes: list[int]) -> dict[int, np.ndarray]:
    among = np.flatnonzero(answered)
    if len(among) < max(sizes, default=0):
        among = np.arange(len(b))
    return {size: among[places] for size, places in nested_subsets(b[among], sizes).items()}
