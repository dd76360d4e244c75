"""95% intervals of means over instructions, by bootstrap.

Axes: N instructions, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crystalmon.metrics.bootstrap import bootstrap_interval, bootstrap_weights, uniform_weights
from crystalmon.runs.results import Estimate

REPLICATES = 1000
_Z = 1.959963984540054


def flat_weights(count: int, seed: int = 0) -> np.ndarray:
    """[1 + R, N] weights of instructions that are drawn alike; row 0 is the estimate's own."""
    rng = np.random.default_rng(seed)
    return np.vstack([uniform_weights(count), bootstrap_weights(count, REPLICATES, rng)])


def nested_weights(groups: Sequence[str], seed: int = 0) -> np.ndarray:
    """[1 + R, N] weights for the mean of the groups' means; row 0 is the estimate's own.

    A replicate draws groups, and within each drawn one its members, both with replacement.

    Args:
        groups: the group of each of the N instructions.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    members = [np.flatnonzero(np.array(groups) == name) for name in names]
    weights = np.zeros((1 + REPLICATES, len(groups)))
    for own in members:
        weights[0, own] = 1.0 / (len(names) * len(own))
    drawn = rng.multinomial(len(names), uniform_weights(len(names)), size=REPLICATES)
    for group, own in enumerate(members):
        counts = rng.multinomial(drawn[:, group] * len(own), uniform_weights(len(own)))
        weights[1:, own] = counts / (len(names) * len(own))
    return weights


def estimate(replicates: np.ndarray, units: int) -> Estimate:
    """An estimate from its own value and its replicates.

    The percentile interval, widened by `reach` / z₀.₉₇₅.

    Args:
        replicates: [1 + R], the estimate's own value first.
        units: u, what was resampled on the highest level. A single one has no interval.
    """
    value = float(replicates[0])
    low, high = bootstrap_interval(value, replicates[1:])
    if units < 2:
        return Estimate(value)
    wider = reach(units) / _Z
    return Estimate(value, value + wider * (low - value), value + wider * (high - value))


def mean_estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean over instructions."""
    found = np.asarray(values, dtype=np.float64)
    return estimate(flat_weights(len(found), seed) @ found, len(found))


def row_of(found: Estimate) -> dict[str, float]:
    """An estimate as part of a result's detail."""
    return {"value": found.value, "low": found.low, "high": found.high}


def reach(units: int) -> float:
    """t₀.₉₇₅(u − 1) · √(u / (u − 1)): standard errors that a 95% interval should reach either way.

    Percentiles reach z₀.₉₇₅ of them, which is too narrow where few units u ≥ 2 are resampled
    (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).
    """
    return t_quantile(units - 1) * math.sqrt(units / (units - 1))


def t_quantile(freedom: int) -> float:
    """t₀.₉₇₅ of Student's distribution, by bisection on its density's integral (Simpson)."""

    def beyond(t: float) -> float:
        # with x = √ν tan φ the density becomes cos^(ν−1) φ, on a bounded range
        angle = np.linspace(0.0, math.atan(t / math.sqrt(freedom)), 2001)
        shape = np.cos(angle) ** (freedom - 1)
        simpson = np.ones(2001)
        simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
        area = float(simpson @ shape) * float(angle[1]) / 3.0
        log_norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        return area * math.exp(log_norm) / math.sqrt(math.pi)

    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) < 0.475 else (low, middle)
    return high
