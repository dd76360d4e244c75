"""Estimates with 95% intervals, tests by exchange, and trends, over about a dozen units.

A unit is resampled or exchanged whole: an instruction with all that is measured on it, or a run.

Axes: N units, R resamples or exchanges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from crystalmon.metrics.bootstrap import (
    NORMAL,
    Interval,
    bootstrap_interval,
    bootstrap_weights,
    expansion,
    uniform_weights,
)
from crystalmon.runs.results import Estimate

MEAN_REPLICATES, STATISTIC_REPLICATES = 1000, 2000
"""Resamples behind the interval of a mean, and of any other statistic."""
EXCHANGES = 9999
"""Random exchanges behind a p-value."""
SIGNIFICANT = 0.05
LEAST_RUNS = 6
"""Runs below which a trend has no verdict: the smallest p-value of 5 is over 1%."""

SUPPORTED, CONTRADICTED, UNDETERMINED = "supported", "contradicted", "undetermined"
Verdict = Literal["supported", "contradicted", "undetermined"]
Statistic = Callable[[np.ndarray], float]
_NONE: Interval = (math.nan, math.nan)


def flat_weights(count: int, random_seed: int = 0) -> np.ndarray:
    """[1 + R, N] weights that make means of resampled units; row 0 is the estimate's own."""
    rng = np.random.default_rng(random_seed)
    return np.vstack([uniform_weights(count), bootstrap_weights(count, MEAN_REPLICATES, rng)])


def nested_weights(groups: Sequence[str], random_seed: int = 0) -> np.ndarray:
    """[1 + R, N] weights for the mean of the groups' means; row 0 is the estimate's own.

    A replicate draws groups, and within each drawn group its members, both with replacement.

    Args:
        groups: [N] the group of each unit.
        random_seed: of the resamples.
    """
    rng = np.random.default_rng(random_seed)
    names = sorted(set(groups))
    members = [np.flatnonzero(np.array(groups) == name) for name in names]
    weights = np.zeros((1 + MEAN_REPLICATES, len(groups)))
    for own in members:
        weights[0, own] = 1.0 / (len(names) * len(own))
    drawn = rng.multinomial(len(names), uniform_weights(len(names)), size=MEAN_REPLICATES)
    for group, own in enumerate(members):
        counts = rng.multinomial(drawn[:, group] * len(own), uniform_weights(len(own)))
        weights[1:, own] = counts / (len(names) * len(own))
    return weights


def weighted_estimate(replicates: np.ndarray, units: int) -> Estimate:
    """An estimate with its `bootstrap_interval`, widened by `expansion`.

    Args:
        replicates: [1 + R], the estimate's own value first.
        units: how many were resampled, on the highest level. Fewer than three have no interval.
    """
    value = float(replicates[0])
    interval = bootstrap_interval(value, replicates[1:], expansion([units]))
    return Estimate(value, *interval)


def mean_estimate(values: Sequence[float] | np.ndarray, random_seed: int = 0) -> Estimate:
    """The mean of [N] values with its interval."""
    found = np.asarray(values, dtype=np.float64)
    return weighted_estimate(flat_weights(len(found), random_seed) @ found, len(found))


def bounded_estimate(count: int, statistic: Statistic) -> Estimate:
    """A statistic of N units with an interval that stays within the statistic's range.

    Expanded percentiles: the tails are Φ(−z₀.₉₇₅ · `expansion`).

    Args:
        count: N.
        statistic: takes indices of units [N]; NaN where it is not defined.

    Returns:
        Without an interval if there are fewer than three units, or if the statistic is defined in
        fewer than half of the resamples.
    """
    value = statistic(np.arange(count)) if count else math.nan
    wider = expansion([count])
    if math.isnan(wider) or math.isnan(value):
        return Estimate(value)
    draws = np.random.default_rng(0).integers(0, count, (STATISTIC_REPLICATES, count))
    found = np.array([statistic(draw) for draw in draws])
    found = found[np.isfinite(found)]
    if len(found) < STATISTIC_REPLICATES / 2:
        return Estimate(value)
    tail = NormalDist().cdf(-NORMAL * wider)
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def mean_of_known(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of what is finite of [N] values, as a `bounded_estimate`; NaN if nothing is."""
    found = np.asarray(values, dtype=np.float64)
    finite = found[np.isfinite(found)]
    return bounded_estimate(len(finite), lambda units: float(finite[units].mean()))


def central_interval(replicates: np.ndarray) -> np.ndarray:
    """[2, ...] the ends of the central 95% of [R, ...] replicates; NaN where one of them is NaN."""
    return np.percentile(replicates, (2.5, 97.5), axis=0)


def sign_flip_p(values: np.ndarray) -> float:
    """Two-sided p-value of a mean other than 0, if every unit's sign might be the opposite.

    p = (1 + #{|mean of flipped| ≥ |mean|}) / (1 + `EXCHANGES`); NaN without units.

    Args:
        values: [N]; those that are not finite are left out.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (EXCHANGES, len(values)))
    drawn = np.abs(signs @ values) / len(values)
    return _p_value(drawn >= abs(values.mean()) - 1e-12)


def exchange_p(count: int, statistic: Statistic, exchanges: int = EXCHANGES) -> float:
    """One-sided p-value of so large a statistic, if units might be matched in any way.

    p = (1 + #{statistic of matched ≥ that of the order as it is}) / (1 + exchanges); a match that
    leaves the statistic undefined counts as one as large.

    Args:
        count: N.
        statistic: takes a permutation of the units [N].
        exchanges: how many.
    """
    observed = statistic(np.arange(count)) if count else math.nan
    if math.isnan(observed):
        return math.nan
    rng = np.random.default_rng(0)
    drawn = np.array([statistic(rng.permutation(count)) for _ in range(exchanges)])
    return _p_value(~(drawn < observed - 1e-12))


def _p_value(as_extreme: np.ndarray) -> float:
    """(1 + #as extreme) / (1 + R): what happened is itself one of the exchanges."""
    return float((1 + as_extreme.sum()) / (1 + len(as_extreme)))


@dataclass(frozen=True)
class Trend:
    """How a measure of runs goes with a setting x.

    Args:
        correlation, correlation_interval: Spearman's ρ, 95% over resampled runs.
        slope, slope_interval: least squares, per factor e of x; NaN if some x is 0.
        p_value: two-sided, of ρ, over permutations of the measure among the runs.
        runs: N, those that have the measure.
        predicted: the sign of ρ that the essay expects.
        verdict: `supported` or `contradicted` where the p-value is under 5% and the interval of ρ
            lies on one side of 0; else `undetermined`.
    """

    correlation: float
    correlation_interval: Interval
    slope: float
    slope_interval: Interval
    p_value: float
    runs: int
    predicted: int
    verdict: Verdict


def trend(x: np.ndarray, y: np.ndarray, predicted: int, replicates: int) -> Trend:
    """The trend of y with x.

    Runs are resampled as pairs (x, y); a resample in which either is constant is left out.

    Args:
        x: [N], at least 0.
        y: [N]; runs in which it is not finite are left out.
        predicted: +1 or −1.
        replicates: R.
    """
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Trend(math.nan, _NONE, math.nan, _NONE, math.nan, len(x), predicted, UNDETERMINED)
    rng = np.random.default_rng(0)
    correlation = float(spearman(x[None], y[None])[0])
    drawn = rng.integers(0, len(x), (replicates, len(x)))
    interval = _defined_interval(spearman(x[drawn], y[drawn]))
    permuted = rng.permuted(np.tile(y, (replicates, 1)), axis=1)
    chance = np.abs(spearman(np.broadcast_to(x, permuted.shape), permuted))
    p = _p_value(chance >= abs(correlation) - 1e-12)
    verdict: Verdict = UNDETERMINED
    if len(x) >= LEAST_RUNS and p < SIGNIFICANT and (interval[0] > 0 or interval[1] < 0):
        verdict = SUPPORTED if correlation * predicted > 0 else CONTRADICTED
    return Trend(
        correlation,
        interval,
        float(log_slopes(x[None], y[None])[0]),
        _defined_interval(log_slopes(x[drawn], y[drawn])),
        p,
        len(x),
        predicted,
        verdict,
    )


def _defined_interval(replicates: np.ndarray) -> Interval:
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return _NONE
    low, high = central_interval(defined)
    return (float(low), float(high))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R] Spearman's ρ of rows [R, N], ties at their mean rank; NaN where a row is constant.

    >>> spearman(np.array([[1, 2, 3, 4]]), np.array([[1, 3, 2, 4]])).tolist()
    [0.8]
    """
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in (ranks(x), ranks(y)))
    scale = np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, np.sum(x * y, axis=1) / scale, np.nan)


def log_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R] least-squares slopes of y in log x over rows [R, N]; NaN where x is constant or 0.

    >>> log_slopes(np.exp([[0.0, 1.0, 2.0]]), np.array([[5.0, 8.0, 11.0]])).round(9).tolist()
    [3.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_x = np.log(x)
        centred = log_x - log_x.mean(axis=1, keepdims=True)
        total = np.sum(centred**2, axis=1)
        return np.where(total > 1e-12, np.sum(centred * y, axis=1) / total, np.nan)


def ranks(values: np.ndarray) -> np.ndarray:
    """[R, N] ranks within rows, from 0, ties at their mean.

    >>> ranks(np.array([[7, 3, 7]])).tolist()
    [[1.5, 0.0, 1.5]]
    """
    less = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    same = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return less + (same - 1) / 2
