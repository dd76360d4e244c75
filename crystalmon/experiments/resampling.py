"""Intervals and tests by resampling, for a dozen or so instructions. Nothing here needs torch.

Axes: N units, which are resampled or exchanged whole (instructions, with all that is measured on
them; or runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from crystalmon.experiments.result import Estimate

REPLICATES = 2000
EXCHANGES = 9999
"""Random exchanges behind a p-value."""


def estimate(count: int, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Estimate:
    """A statistic of N units with its 95% bootstrap interval.

    Expanded percentiles (Hesterberg 2015, doi:10.1080/00031305.2015.1089789): the tails are
    Φ(−t √(N / (N − 1))) with Student's t of N − 1 degrees of freedom, since plain percentiles are
    too narrow for few units.

    Args:
        count: N.
        statistic: takes indices of units [N]; NaN where it is not defined.
        seed: of the resamples.

    Returns:
        Without an interval if there are fewer than three units, or hardly a resample is defined.
    """
    value = statistic(np.arange(count)) if count else math.nan
    if count < 3 or math.isnan(value):
        return Estimate(value)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, count, (REPLICATES, count))
    found = np.array([statistic(draw) for draw in draws])
    found = found[np.isfinite(found)]
    if len(found) < REPLICATES / 2:
        return Estimate(value)
    tail = NormalDist().cdf(-student_quantile(count - 1) * math.sqrt(count / (count - 1)))
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of what is finite of [N], with its interval; see `estimate`."""
    values = values[np.isfinite(values)]
    return estimate(len(values), lambda units: float(np.mean(values[units])))


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, within 1% from 2 degrees of freedom on.

    Its expansion about the normal quantile (Abramowitz and Stegun 1964, 26.7.5).
    """
    z, n = NormalDist().inv_cdf(0.975), freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


def sign_flip_p(values: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of a mean other than 0, if every unit's sign might be the opposite.

    p = (1 + #{|mean of flipped| ≥ |mean|}) / (1 + `EXCHANGES`); NaN without units.

    Args:
        values: [N]; those that are not finite are left out.
        seed: of the flips.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (EXCHANGES, len(values)))
    drawn = np.abs(signs @ values) / len(values)
    return _share(drawn >= abs(values.mean()) - 1e-12)


def exchange_p(
    count: int, statistic: Callable[[np.ndarray], float], seed: int = 0, exchanges: int = EXCHANGES
) -> float:
    """One-sided p-value of so large a statistic, if units might be matched in any way.

    Args:
        count: N.
        statistic: takes a permutation of the units [N].
        seed: of the permutations.
        exchanges: how many.
    """
    observed = statistic(np.arange(count)) if count else math.nan
    if math.isnan(observed):
        return math.nan
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.permutation(count)) for _ in range(exchanges)])
    return _share(drawn >= observed - 1e-12)


def _share(as_extreme: np.ndarray) -> float:
    return float((1 + as_extreme.sum()) / (1 + len(as_extreme)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN if either is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else math.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """[N] ranks from 0, ties at their mean."""
    below = np.sum(values[None, :] < values[:, None], axis=1)
    return below + (np.sum(values[None, :] == values[:, None], axis=1) - 1) / 2
