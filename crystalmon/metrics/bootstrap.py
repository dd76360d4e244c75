"""The bootstrap over prompts: weights, and the interval that their replicates give."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from crystalmon.metrics.catalogue import BY_KEY, Metric

REPLICATES = 200
"""Resamples of the prompts behind a 95% interval."""
_TAILS = (2.5, 97.5)


def uniform_weights(count: int) -> np.ndarray:
    """[count] weights 1/count.

    >>> uniform_weights(4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return np.full(count, 1.0 / count)


def bootstrap_weights(count: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """[replicates, count] bootstrap weights: multinomial counts of `count` draws, over `count`.

    >>> bootstrap_weights(3, 2, np.random.default_rng(0)).sum(axis=1).tolist()
    [1.0, 1.0]
    """
    return rng.multinomial(count, uniform_weights(count), size=replicates) / count


def bootstrap_interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """The central 95% interval of a statistic under resampling of the prompts.

    Percentiles of the replicates, shifted so that their mean is `value`. A resample repeats
    prompts, which by itself lowers `liquidity` and `entropy_mixture`: unshifted percentiles
    would lie below the value that they belong to. An end may lie slightly outside the range of
    what is measured.

    Args:
        value: the point estimate.
        replicates: [R]; those that are NaN (a resample of nothing but the seed's own prompt)
            are left out.

    Returns:
        (low, high); NaN if no replicate is defined.

    >>> low, high = bootstrap_interval(0.5, np.linspace(0.0, 1.0, 101))
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or np.isnan(value):
        return (float("nan"), float("nan"))
    if not np.isfinite(defined).all():
        return (float(defined.min()), float(defined.max()))
    ((low, high),) = _central(np.array([value]), defined[None]).tolist()
    return (low, high)


def bootstrap_intervals(
    values: Mapping[str, float], replicates: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """`bootstrap_interval` of each key of `replicates`, within the range of that metric.

    All in one go: a probe has hundreds of them.
    """
    plain = [key for key, row in replicates.items() if len(row) and np.isfinite(row).all()]
    found: dict[str, tuple[float, float]] = {}
    if plain:
        table = np.array([replicates[key] for key in plain])
        ends = _central(np.array([values[key] for key in plain]), table)
        found = {key: (low, high) for key, (low, high) in zip(plain, ends.tolist(), strict=True)}
    found |= {
        key: bootstrap_interval(values[key], row)
        for key, row in replicates.items()
        if key not in found
    }
    return {key: _within(BY_KEY.get(key), *found[key]) for key in replicates}


def _within(metric: Metric | None, low: float, high: float) -> tuple[float, float]:
    if metric is None or math.isnan(low):
        return low, high
    return max(low, metric.low), min(high, metric.high)


def _central(values: np.ndarray, replicates: np.ndarray) -> np.ndarray:
    """[K, 2] from values [K] and finite replicates [K, R]."""
    ends = np.percentile(replicates, _TAILS, axis=1)
    return (ends - replicates.mean(axis=1) + values).T
