"""The bootstrap over prompts: weights, and the interval that their replicates give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from crystalmon.metrics.catalogue import BY_KEY, Metric

Interval = tuple[float, float]
"""The lower and the upper end."""

REPLICATES = 200
"""Resamples of the prompts behind a 95% interval."""
_TAILS = (2.5, 97.5)
NORMAL = 1.959964
"""The 97.5% quantile of the normal distribution."""
_STUDENT = {2: 4.302653, 3: 3.182446, 4: 2.776445}
"""Those of Student's t with so few degrees of freedom."""


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


def expansion(units: Sequence[int]) -> float:
    """How many times wider than the bootstrap's percentiles an interval must be, from few units.

    √(N / ν) · t / z with ν = N − T: N units, such as prompts, of T groups, such as tasks; t and z
    the 97.5% quantiles of Student's t with ν degrees of freedom and of the normal distribution. It
    is that of Hesterberg's expanded percentile interval (2015, doi:10.1080/00031305.2015.1089789).
    NaN below ν = 2: one unit, or two of one group, show no interval.

    Args:
        units: how many each group has.

    >>> round(expansion([24]), 2), round(expansion([4]), 2), round(expansion([2] * 15), 2)
    (1.08, 1.87, 1.54)
    """
    total = sum(units)
    free = total - len(units)
    if free < 2:
        return math.nan
    return math.sqrt(total / free) * _student(free) / NORMAL


def _student(free: int) -> float:
    """By Cornish and Fisher's expansion in 1/ν; within 0.003."""
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    expanded = z + sum(term / free**power for power, term in enumerate(terms, 1))
    return _STUDENT.get(free, expanded)


def bootstrap_interval(value: float, replicates: np.ndarray, wider: float = 1.0) -> Interval:
    """The central 95% interval of a statistic under resampling of the prompts.

    Percentiles of the replicates, shifted so that their mean is `value`. A resample repeats
    prompts, which by itself lowers `liquidity` and `entropy_mixture`: unshifted percentiles
    would lie below the value that they belong to. An end may lie slightly outside the range of
    what is measured.

    Args:
        value: the point estimate.
        replicates: [R]; those that are NaN (a resample of nothing but the seed's own prompt)
            are left out.
        wider: how many times wider the interval is, about the value; see `expansion`.

    Returns:
        (low, high); NaN if no replicate is defined.

    >>> low, high = bootstrap_interval(0.5, np.linspace(0.0, 1.0, 101))
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or np.isnan(value) or np.isnan(wider):
        return (float("nan"), float("nan"))
    if not np.isfinite(defined).all():
        return (float(defined.min()), float(defined.max()))
    ((low, high),) = _central(np.array([value]), defined[None], wider).tolist()
    return (low, high)


def bootstrap_intervals(
    values: Mapping[str, float], replicates: Mapping[str, np.ndarray], wider: float = 1.0
) -> dict[str, Interval]:
    """`bootstrap_interval` of each key of `replicates`, within the range of that metric.

    All in one go: a probe has hundreds of them.
    """
    plain = [key for key, row in replicates.items() if len(row) and np.isfinite(row).all()]
    found: dict[str, Interval] = {}
    if plain:
        table = np.array([replicates[key] for key in plain])
        ends = _central(np.array([values[key] for key in plain]), table, wider)
        found = {key: (low, high) for key, (low, high) in zip(plain, ends.tolist(), strict=True)}
    found |= {
        key: bootstrap_interval(values[key], row, wider)
        for key, row in replicates.items()
        if key not in found
    }
    return {key: _within(BY_KEY.get(key), *found[key]) for key in replicates}


def _within(metric: Metric | None, low: float, high: float) -> Interval:
    if metric is None or math.isnan(low):
        return low, high
    return max(low, metric.low), min(high, metric.high)


def _central(values: np.ndarray, replicates: np.ndarray, wider: float) -> np.ndarray:
    """[K, 2] from values [K] and finite replicates [K, R]."""
    ends = np.percentile(replicates, _TAILS, axis=1)
    return ((ends - replicates.mean(axis=1)) * wider + values).T
