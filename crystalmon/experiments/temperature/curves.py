"""Curves over temperature pooled: means over tasks with intervals, peaks, and where they lie.

Axes: P prompts of a task, K temperatures, R resamples of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from crystalmon.experiments.common.statistics import central_interval
from crystalmon.metrics.bootstrap import bootstrap_weights, uniform_weights
from crystalmon.runs.results import Estimate

Curves = dict[str, np.ndarray]
"""[R, K] `entropy` S, `heat_capacity`, `reliability`, `variance` of S over a task's prompts."""


def summarize_sweep(
    found: Mapping[str, np.ndarray], temperatures: np.ndarray, weight: float, replicates: int
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Estimates and detail of the experiment's result.

    The prompts of each task are resampled. A resample's variance is multiplied by P/(P − 1), which
    makes up for the prompts that it repeats, so that replicates lie about the estimate.

    Args:
        found: by task, [P, 3, K]: S, C and R of every prompt.
        temperatures: [K], increasing.
        weight: λ of the objective.
        replicates: R.

    Returns:
        S, C and R at T = 1, the peak of C and the best temperature; and the detail.
    """
    rng = np.random.default_rng(0)
    own: dict[str, Curves] = {}
    resampled: Curves = {}
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
    mean = {key: np.array([point[key][0], *central_interval(resampled[key])]) for key in point}
    peak, height = _highest_point(temperatures, point["heat_capacity"], resampled["heat_capacity"])
    best, objective = _highest_point(temperatures, point["objective"], resampled["objective"])
    estimates = {
        **{key: _at_one(temperatures, mean[key]) for key in list(mean)[:3]},
        "peak_temperature": peak,
        "peak_heat_capacity": height,
        "optimal_temperature": best,
        "optimal_objective": objective,
    }
    detail = {
        "temperatures": temperatures.tolist(),
        "mean": {
            key: dict(zip(("value", "low", "high"), curve.tolist(), strict=True))
            for key, curve in mean.items()
        },
        "tasks": {
            name: {key: curve[0].tolist() for key, curve in curves.items()}
            for name, curves in own.items()
        },
        "peaks": {name: _peak(temperatures, each["heat_capacity"]) for name, each in own.items()},
        "peak": _peak(temperatures, point["heat_capacity"]),
        "optimum": _peak(temperatures, point["objective"]),
    }
    return estimates, detail


def _over_prompts(values: np.ndarray, weights: np.ndarray) -> Curves:
    """Means over prompts and the variance of S; values [P, 3, K], weights [R, P]."""
    entropy, heat_capacity, reliability = values.transpose(1, 0, 2)
    centred = entropy - entropy.mean(axis=0)
    return {
        "entropy": weights @ entropy,
        "heat_capacity": weights @ heat_capacity,
        "reliability": weights @ reliability,
        "variance": np.maximum(weights @ centred**2 - (weights @ centred) ** 2, 0.0),
    }


def _at_one(temperatures: np.ndarray, ends: np.ndarray) -> Estimate:
    """A curve with its interval [3, K] at T = 1, interpolated in log T; NaN outside the grid."""
    log_t = np.log(temperatures)
    return Estimate(*(float(np.interp(0.0, log_t, each, np.nan, np.nan)) for each in ends))


def _highest_point(
    temperatures: np.ndarray, curve: np.ndarray, replicates: np.ndarray
) -> tuple[Estimate, Estimate]:
    """Temperature and value of a curve's [1, K] peak, with intervals from replicates [R, K]."""
    places, values = (
        Estimate(float(point[0]), *central_interval(drawn).tolist())
        for point, drawn in zip(
            highest(temperatures, curve), highest(temperatures, replicates), strict=True
        )
    )
    return places, values


def _peak(temperatures: np.ndarray, curve: np.ndarray) -> dict[str, Any]:
    """A curve's [1, K] peak; at an `edge` of the grid the curve may rise further beyond it."""
    place, value = (float(each[0]) for each in highest(temperatures, curve))
    edge = int(np.argmax(curve[0])) in (0, len(temperatures) - 1)
    return {"temperature": place, "value": value, "edge": edge}


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
