"""A measure against a positive setting over a handful of runs: rank correlation, slope, verdict.

Axes: N runs, R resamples or permutations of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crystalmon.experiments.common.resampling import p_value
from crystalmon.experiments.temperature.curves import PERCENTILES

LEAST_RUNS = 6
"""Runs below which there is no verdict: the smallest p-value of 5 is over 1%."""
SIGNIFICANT = 0.05

Interval = tuple[float, float]
_NONE: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Trend:
    """How a measure goes with a setting x.

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
    verdict: str


def trend(x: np.ndarray, y: np.ndarray, predicted: int, replicates: int) -> Trend:
    """The trend of y with x.

    Runs are resampled as pairs (x, y); a resample in which either is constant tells nothing and is
    left out.

    Args:
        x: [N], at least 0.
        y: [N]; runs in which it is not finite are left out.
        predicted: +1 or −1.
        replicates: R.
    """
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Trend(math.nan, _NONE, math.nan, _NONE, math.nan, len(x), predicted, "undetermined")
    rng = np.random.default_rng(0)
    correlation, slope = float(spearman(x[None], y[None])[0]), float(slopes(x[None], y[None])[0])
    drawn = rng.integers(0, len(x), (replicates, len(x)))
    interval = _interval(spearman(x[drawn], y[drawn]))
    permuted = rng.permuted(np.tile(y, (replicates, 1)), axis=1)
    chance = np.abs(spearman(np.broadcast_to(x, permuted.shape), permuted))
    p = p_value(chance >= abs(correlation) - 1e-12)
    return Trend(
        correlation,
        interval,
        slope,
        _interval(slopes(x[drawn], y[drawn])),
        p,
        len(x),
        predicted,
        _verdict(correlation, interval, p, len(x), predicted),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R] Spearman's ρ of rows [R, N], ties at their mean rank; NaN where a row is constant."""
    return _pearson(ranks(x), ranks(y))


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R] least-squares slopes of y in log x over rows [R, N]; NaN where x is constant or 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_x = np.log(x)
        centred = log_x - log_x.mean(axis=1, keepdims=True)
        spread = np.sum(centred**2, axis=1)
        return np.where(spread > 1e-12, np.sum(centred * y, axis=1) / spread, np.nan)


def ranks(values: np.ndarray) -> np.ndarray:
    """[R, N] ranks within rows, ties at their mean."""
    less = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    same = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return less + (same - 1) / 2


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, np.sum(x * y, axis=1) / scale, np.nan)


def _interval(replicates: np.ndarray) -> Interval:
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return _NONE
    low, high = np.percentile(defined, PERCENTILES)
    return (float(low), float(high))


def _verdict(
    correlation: float, interval: Interval, p_value: float, runs: int, predicted: int
) -> str:
    clear = interval[0] > 0 or interval[1] < 0
    if runs < LEAST_RUNS or p_value >= SIGNIFICANT or not clear:
        return "undetermined"
    return "supported" if correlation * predicted > 0 else "contradicted"
