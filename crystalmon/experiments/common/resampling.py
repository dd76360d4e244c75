"""Tests by exchange, and intervals of bounded statistics, for a dozen instructions.

Nothing here needs torch.

Axes: N units, which are resampled or exchanged whole (instructions, with all that is measured on
them; or runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from crystalmon.experiments.common.intervals import reach
from crystalmon.runs.results import Estimate

REPLICATES = 2000
EXCHANGES = 9999
"""Random exchanges behind a p-value."""


def estimate(count: int, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Estimate:
    """A statistic of N units with its 95% bootstrap interval.

    Expanded percentiles: the tails are Φ(−`intervals.reach`). Unlike the interval of
    `intervals.estimate` it stays within the statistic's range.

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
    tail = NormalDist().cdf(-reach(count))
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


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
    return p_value(drawn >= abs(values.mean()) - 1e-12)


def exchange_p(
    count: int, statistic: Callable[[np.ndarray], float], seed: int = 0, exchanges: int = EXCHANGES
) -> float:
    """One-sided p-value of so large a statistic, if units might be matched in any way.

    p = (1 + #{statistic of matched ≥ that of the order as it is}) / (1 + exchanges); a match that
    leaves it undefined counts as one as large.

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
    return p_value(~(drawn < observed - 1e-12))


def p_value(as_extreme: np.ndarray) -> float:
    """(1 + #as extreme) / (1 + R) of [R] random exchanges: that which happened is one of them."""
    return float((1 + as_extreme.sum()) / (1 + len(as_extreme)))
