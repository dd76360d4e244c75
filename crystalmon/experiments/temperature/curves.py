"""Curves over temperature: means over tasks with intervals, peaks, and where they lie.

Axes: P prompts of a task, K temperatures, R resamples of the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crystalmon.experiments.common.statistics import central_interval
from crystalmon.metrics.bootstrap import bootstrap_weights, uniform_weights
from crystalmon.runs.results import Estimate


@dataclass(frozen=True)
class TemperatureCurve:
    """A curve with its 95% interval.

    Args:
        temperatures, value, low, high: [K].
    """

    temperatures: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, temperature: float) -> Estimate:
        """The estimate there, interpolated in log T; NaN outside the grid."""
        log_t, where = np.log(self.temperatures), math.log(temperature)
        if not log_t[0] <= where <= log_t[-1]:
            return Estimate(math.nan)
        ends = [float(np.interp(where, log_t, each)) for each in (self.value, self.low, self.high)]
        return Estimate(*ends)


@dataclass(frozen=True)
class Peak:
    """The highest point of a curve over temperature; see `highest`.

    Args:
        temperature, height: where it is, and how high; with intervals over resamples of the
            prompts for a mean over tasks.
        edge: whether it is an end of the grid: the curve may rise further beyond it.
    """

    temperature: Estimate
    height: Estimate
    edge: bool


@dataclass(frozen=True)
class Sweep:
    """What a sweep of the temperature has given.

    Args:
        mean: over tasks: `entropy`, `heat_capacity`, `reliability`, `variance` (of the entropy
            over a task's prompts) and `objective`.
        tasks: by task, [K] by the same keys but the last.
        peaks: by task, that of the heat capacity.
        peak, best: of the mean heat capacity, of the objective.
    """

    mean: Mapping[str, TemperatureCurve]
    tasks: Mapping[str, Mapping[str, np.ndarray]]
    peaks: Mapping[str, Peak]
    peak: Peak
    best: Peak


def sweep_of(
    found: Mapping[str, np.ndarray], temperatures: np.ndarray, weight: float, replicates: int
) -> Sweep:
    """Means, intervals and peaks.

    The prompts of each task are resampled. A resample's variance is multiplied by P/(P − 1), which
    makes up for the prompts that it repeats, so that replicates lie about the estimate.

    Args:
        found: by task, [P, 3, K]: S, C and R of every prompt.
        temperatures: [K], increasing.
        weight: λ of the objective.
        replicates: R.
    """
    rng = np.random.default_rng(0)
    own: dict[str, dict[str, np.ndarray]] = {}
    resampled: dict[str, np.ndarray] = {}
    for name, values in found.items():
        count = len(values)
        own[name] = _over_prompts(values, uniform_weights(count)[None])
        drawn = _over_prompts(values, bootstrap_weights(count, replicates, rng))
        drawn["variance"] = drawn["variance"] * (count / max(count - 1, 1))
        for key, curves in drawn.items():
            resampled[key] = resampled.get(key, 0.0) + curves / len(found)
    point = {key: np.mean([each[key] for each in own.values()], axis=0) for key in resampled}
    for each in (point, resampled):
        each["objective"] = each["reliability"] - weight * each["variance"]
    mean = {
        key: TemperatureCurve(temperatures, point[key][0], *central_interval(resampled[key]))
        for key in point
    }
    return Sweep(
        mean,
        {name: {key: curve[0] for key, curve in curves.items()} for name, curves in own.items()},
        {name: _peak(temperatures, curves["heat_capacity"]) for name, curves in own.items()},
        _peak(temperatures, point["heat_capacity"], resampled["heat_capacity"]),
        _peak(temperatures, point["objective"], resampled["objective"]),
    )


def _over_prompts(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """[R, K] means over prompts and the variance of S; values [P, 3, K], weights [R, P]."""
    entropy, heat_capacity, reliability = values.transpose(1, 0, 2)
    centred = entropy - entropy.mean(axis=0)
    return {
        "entropy": weights @ entropy,
        "heat_capacity": weights @ heat_capacity,
        "reliability": weights @ reliability,
        "variance": np.maximum(weights @ centred**2 - (weights @ centred) ** 2, 0.0),
    }


def _peak(
    temperatures: np.ndarray, curve: np.ndarray, replicates: np.ndarray | None = None
) -> Peak:
    """Of a curve [1, K], with intervals from replicates [R, K]."""
    points = [float(each[0]) for each in highest(temperatures, curve)]
    ends: list[list[float]] = [[], []]
    if replicates is not None:
        ends = [central_interval(each).tolist() for each in highest(temperatures, replicates)]
    place, height = (Estimate(point, *own) for point, own in zip(points, ends, strict=True))
    return Peak(place, height, int(np.argmax(curve[0])) in (0, len(temperatures) - 1))


def highest(temperatures: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where curves are highest, and how high.

    The vertex of the parabola in log T through the highest point of the grid and its neighbours;
    an end of the grid itself, if that is highest.

    Args:
        temperatures: [K], increasing, at least 3.
        curves: [R, K].

    Returns:
        [R] temperatures and [R] values; NaN where a curve is not finite.

    >>> place, value = highest(np.exp([0.0, 1.0, 2.0]), np.array([[0.0, 3.0, 0.0]]))
    >>> place.round(3).tolist(), value.tolist()
    ([2.718], [3.0])
    """
    x, rows = np.log(temperatures), np.arange(len(curves))
    finite = np.asarray(np.isfinite(curves).all(axis=1))
    top = np.argmax(np.where(finite[:, None], curves, 0.0), axis=1)
    middle = np.clip(top, 1, len(x) - 2)
    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    y = curves[rows, middle]
    below, above = curves[rows, middle - 1] - y, curves[rows, middle + 1] - y
    scale = left * right * (left - right)
    bend = (right * below - left * above) / scale
    slope = (left**2 * above - right**2 * below) / scale
    inside = (top == middle) & (bend < 0)
    shift = np.where(inside, -slope / np.where(inside, 2 * bend, 1.0), 0.0)
    place = np.where(inside, x[middle] + shift, x[top])
    value = np.where(inside, y + slope * shift / 2, curves[rows, top])
    return np.where(finite, np.exp(place), np.nan), np.where(finite, value, np.nan)
