"""Least-squares fits to a series of S points: a line, a step, a sigmoid, or a shape on a grid.

A search tries every point of a grid, then twice a finer grid about the best point, so no starting
point can mislead it. Intervals are profile intervals: the parameters whose residual sum of squares
(RSS) is within the factor 1 + χ²₁(0.95) / (S − k) of the least one. Time grows linearly with S, and
memory holds a few hundred rows of S numbers. Everywhere `steps` [S] are increasing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crystalmon.metrics.bootstrap import Interval

LEAST_DEVIATION = 0.005
"""Standard deviation that residuals are taken to have at the least: no fit is infinitely good."""
COARSEST = 800
"""Midpoints at which each width is tried over the whole series, at the least, …"""
PER_WIDTH = 32
"""… and within one 10–90% width, so that the RSS hardly changes between them. More than four per
point are never needed."""
REACH = 25.0
"""Units of a sigmoid's exponent beyond which it is 0 or 1: what is left out is under 2e-11."""
FINER = 17
"""Values of each parameter about the best one in a finer grid."""
_AT_ONCE = 64
_NO_OVERFLOW = 300.0
_ROUNDING = 1e-10
_CHI2 = 3.841458820694124
TEN_TO_NINETY = 2 * float(np.log(9.0))
"""Width from 10% to 90% of a logistic curve, in its scales."""


@dataclass(frozen=True)
class SigmoidFit:
    """The best a + c / (1 + exp(−(s − m) / w)) with c ≥ 0.

    Args:
        loss: its RSS.
        midpoint: m.
        width: 2 log 9 · w, from 10% to 90% of the rise.
        width_interval: its 95% profile interval.
    """

    loss: float
    midpoint: float
    width: float
    width_interval: Interval


def linear_loss(steps: np.ndarray, values: np.ndarray) -> float:
    """Least RSS of a straight line.

    >>> linear_loss(np.arange(3.0), np.array([0.0, 1.0, 2.0]))
    0.0
    """
    time = steps - steps.mean()
    centred = values - values.mean()
    slope = time @ centred / (time @ time)
    return float(np.sum((centred - slope * time) ** 2))


def step_loss(values: np.ndarray) -> float:
    """Least RSS over all places of one step between two levels.

    >>> step_loss(np.array([0.0, 0.0, 1.0, 1.0]))
    0.0
    """
    count = np.arange(1, len(values))
    left, square = np.cumsum(values)[:-1], np.sum(values**2)
    right = values.sum() - left
    return float(np.min(square - left**2 / count - right**2 / (len(values) - count)))


def fit_sigmoid(steps: np.ndarray, values: np.ndarray) -> SigmoidFit:
    """The least-squares sigmoid."""
    span, spacing = steps[-1] - steps[0], float(np.min(np.diff(steps)))
    widths = np.geomspace(0.2 * spacing, 2 * span, 30)
    counts = [min(4 * len(steps), max(COARSEST, int(PER_WIDTH * span / w))) for w in widths]
    columns = [np.linspace(steps[0], steps[-1], count) for count in counts]
    points, losses = [], []
    for _ in range(3):
        pairs = list(zip(columns, widths, strict=True))
        tried = [sigmoid_losses(steps, values, column, width) for column, width in pairs]
        points += [np.stack([column, np.full(len(column), width)]) for column, width in pairs]
        losses += tried
        at = _first_least(np.array([column.min() for column in tried]))
        finer = _zoom(columns[at], _first_least(tried[at]))
        widths, columns = _zoom(widths, at), [finer] * FINER
    best, intervals, least = _profile(
        np.concatenate(points, axis=1), np.concatenate(losses), len(steps)
    )
    return SigmoidFit(least, best[0], best[1], intervals[1])


def sigmoid_losses(
    steps: np.ndarray, values: np.ndarray, middles: np.ndarray, width: float
) -> np.ndarray:
    """[M] RSS of the best level and rise for sigmoids at increasing midpoints, of one 10–90% width.

    RSS = Σy² − 2cΣyσ + c²Σσ² with y and σ centred and c = max(Σyσ, 0) / Σσ². Midpoints are taken
    in blocks; for points farther than `REACH` from a whole block σ is 0 or 1 and not computed.
    """
    scale = width / TEN_TO_NINETY
    count = len(steps)
    centred = values - values.mean()
    both = np.stack([np.ones(count), centred], axis=1)
    after = np.concatenate([np.cumsum(both[::-1], axis=0)[::-1], np.zeros((1, 2))])
    sums, squares = np.empty((len(middles), 2)), np.empty(len(middles))
    for start in range(0, len(middles), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        near = middles[some]
        first = int(np.searchsorted(steps, near[0] - REACH * scale))
        last = int(np.searchsorted(steps, near[-1] + REACH * scale))
        shape = _sigmoids(steps[first:last], near, scale)
        sums[some] = shape @ both[first:last] + after[last]
        squares[some] = np.einsum("ms,ms->m", shape, shape) + after[last, 0]
    spread = np.maximum(squares - sums[:, 0] ** 2 / count, 0.0)
    gain = np.maximum(sums[:, 1], 0.0) / np.maximum(spread, 1e-12)
    return np.maximum(centred @ centred - 2 * gain * sums[:, 1] + gain**2 * spread, 0.0)


def _sigmoids(steps: np.ndarray, middles: np.ndarray, scale: float) -> np.ndarray:
    """[M, S] 1 / (1 + exp((m − s) / w)); factorised, it needs M + S exponentials, not M · S."""
    centre = middles[len(middles) // 2]
    if middles[-1] - middles[0] < _NO_OVERFLOW * scale:
        late = np.exp((middles - centre) / scale)[:, None] * np.exp((centre - steps) / scale)
    else:
        late = np.exp(np.minimum((middles[:, None] - steps) / scale, _NO_OVERFLOW))
    late += 1.0
    return np.reciprocal(late, out=late)


def search(
    loss: Callable[..., np.ndarray], axes: list[np.ndarray], count: int
) -> tuple[list[float], list[Interval], float]:
    """Least squares over the grid of some axes: the best point, its intervals, its RSS.

    Args:
        loss: takes one array [M] for each axis, returns the RSS [M].
        axes: the values to try of every parameter, increasing.
        count: S, the number of points that are fitted.
    """
    points, losses = [], []
    for _ in range(3):
        mesh = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        blocks = [slice(at, at + _AT_ONCE) for at in range(0, mesh.shape[1], _AT_ONCE)]
        points.append(mesh)
        losses.append(np.concatenate([loss(*mesh[:, block]) for block in blocks]))
        at = np.unravel_index(_first_least(losses[-1]), [len(axis) for axis in axes])
        axes = [_zoom(axis, int(place)) for axis, place in zip(axes, at, strict=True)]
    return _profile(np.concatenate(points, axis=1), np.concatenate(losses), count)


def _zoom(axis: np.ndarray, place: int) -> np.ndarray:
    """A finer axis about its best place, wide enough to hold the interval's ends."""
    low, high = axis[max(place - 2, 0)], axis[min(place + 2, len(axis) - 1)]
    return np.linspace(low, high, FINER)


def _first_least(losses: np.ndarray) -> int:
    """The first place of the least RSS, up to rounding: steps between two points all fit alike."""
    return int(np.argmax(losses <= losses.min() + _ROUNDING))


def _profile(
    points: np.ndarray, losses: np.ndarray, count: int
) -> tuple[list[float], list[Interval], float]:
    """Of the points [k, M] that were tried: the best, its intervals and its RSS."""
    best = _first_least(losses)
    least = float(losses.min())
    floor = max(least, count * LEAST_DEVIATION**2)
    allowed = least + floor * _CHI2 / max(count - len(points) - 1, 1)
    inside = points[:, losses <= allowed]
    intervals = [(float(row.min()), float(row.max())) for row in inside]
    return [float(value) for value in points[:, best]], intervals, least
