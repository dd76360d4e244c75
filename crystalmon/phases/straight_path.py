"""Straight paths from the base's answers to a common end, and where that end lies.

In coordinates φ (the logarithm, the square root, or the probability itself) a collapse with shares
g_p and limit t is

    φ(q_p) = (1 − g_p) · φ(b_p) + g_p · t,

a bilinear fit over all prompts: the common share starts as 1 − slope of φ(q) on φ(b) within each
choice, then limit and shares are solved for in turn. The coordinates that leave the smallest
residual are taken. It reduces to linear regression when all shares are equal, and to the pooled
answers when the collapse is complete.

Axes: P prompts, C choices. Divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crystalmon.metrics.divergences import js_divergence
from crystalmon.phases.descent_path import SMALLEST, softmax

SHARE_RANGE = (0.03, 1.03)
"""Of a prompt's share of the way: below, nothing can be extrapolated; above, it is noise."""
SWEEPS = 3
"""Rounds of solving for limit and shares in turn."""
POWERS = (0.0, 0.5, 1.0)
"""φ(x) = x^power, the logarithm for 0."""


@dataclass(frozen=True)
class Extrapolation:
    """Where a collapse leads.

    Args:
        end: [C] the extrapolated end.
        residual: mean over prompts of JS(answers, fitted answers).
        power: of the coordinates that fitted best.
        share: of the way that the prompts have gone, on average.
    """

    end: np.ndarray = field(repr=False)
    residual: float
    power: float
    share: float


def straight_misfits(b: np.ndarray, q: np.ndarray, ends: np.ndarray, power: float) -> np.ndarray:
    """[K, P] JS(answers, answers fitted by a path of prompt p to candidate k), in nats.

    The paths lead from b [P, C] to the candidates' answers `ends` [K, C], in the coordinates of
    that power.
    """
    start, now, weight = _coordinates(b, q, power)
    ends = _coordinate(ends, power, weight)
    return js_divergence(q, _fitted(start, ends, _solve_shares(start, now, ends, weight), power))


def extrapolate(b: np.ndarray, q: np.ndarray, powers: Sequence[float] = POWERS) -> Extrapolation:
    """The common end of the paths from b [P, C] through q [P, C]; see the module's formula."""
    return min((_fit(b, q, power) for power in powers), key=lambda fit: fit.residual)


def _fit(b: np.ndarray, q: np.ndarray, power: float) -> Extrapolation:
    start, now, weight = _coordinates(b, q, power)
    x, y = start - start.mean(axis=0), now - now.mean(axis=0)
    spread = float(np.sum(weight * x * x))
    slope = float(np.sum(weight * x * y)) / spread if spread > 0 else 0.0
    share = np.full(len(b), float(np.clip(1.0 - slope, *SHARE_RANGE)))
    end = _solve_limit(start, now, share)
    for _ in range(SWEEPS):
        share = _solve_shares(start, now, end, weight)
        end = _solve_limit(start, now, share)
    residual = float(js_divergence(q, _fitted(start, end, share, power)).mean())
    return Extrapolation(_probabilities(end, power), residual, power, float(share.mean()))


def _coordinates(b: np.ndarray, q: np.ndarray, power: float) -> tuple[np.ndarray, ...]:
    """φ(b) and φ(q) [P, C], and weights [C] of the choices, which sum to 1.

    The logarithm of a rare choice counts for little.
    """
    weight = np.full(b.shape[1], 1.0 / b.shape[1])
    if not power:
        weight = q.mean(axis=0) + b.mean(axis=0)
        weight = weight / weight.sum()
    return _coordinate(b, power, weight), _coordinate(q, power, weight), weight


def _coordinate(rows: np.ndarray, power: float, weight: np.ndarray) -> np.ndarray:
    """φ of rows [..., C]; the logarithm is centred by the weights of the choices."""
    if power:
        return rows**power
    logs = np.log(np.maximum(rows, SMALLEST))
    return logs - (logs @ weight)[..., None]


def _fitted(start: np.ndarray, end: np.ndarray, share: np.ndarray, power: float) -> np.ndarray:
    """[…, P, C] answers that have gone a share […, P] of the way to an end […, C]."""
    part = share[..., None]
    return _probabilities((1 - part) * start + part * end[..., None, :], power)


def _probabilities(rows: np.ndarray, power: float) -> np.ndarray:
    """Back to the simplex; a limit may lie outside of it by noise."""
    if not power:
        return softmax(rows)
    raw = np.maximum(rows, 0.0) ** (1.0 / power) + SMALLEST
    return raw / raw.sum(axis=-1, keepdims=True)


def _solve_limit(start: np.ndarray, now: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[C] least squares for t given the shares."""
    return share @ (now - (1 - share)[:, None] * start) / (share @ share)


def _solve_shares(
    start: np.ndarray, now: np.ndarray, end: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """[…, P] least squares for g given the limit […, C], drawn towards the common share.

    A prompt that starts near the limit says nothing about its own share.
    """
    way = end[..., None, :] - start
    length = (way * way) @ weight
    gone = (way * (now - start)) @ weight
    total = np.maximum(length.sum(axis=-1, keepdims=True), 1e-300)
    common = gone.sum(axis=-1, keepdims=True) / total
    pull = 0.1 * length.mean(axis=-1, keepdims=True) + 1e-300
    return np.clip((gone + pull * common) / (length + pull), *SHARE_RANGE)
