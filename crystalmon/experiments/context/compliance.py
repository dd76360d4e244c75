"""What one pair's curves against the adversarial ratio α tell: where, how sharply, which way.

A curve is the log-odds ℓ(α) = log q(compliant) / q(other) at L levels; compliance is 1 / (1 +
exp(−ℓ)). Half-way is compliance 1/2, where both answers are equally deep. A pair is an instruction
and an adversary. Nothing here needs torch.

Axes: L levels, R orders of the same sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from crystalmon.analysis.fits import TEN_TO_NINETY
from crystalmon.analysis.transition import LEAST_RISE, shape_bic

NEAREST = 7
"""Levels about α_c through which a line gives the slope."""
NEAR = 0.15
"""Levels so near to α_c count as near."""
LOOPS = ("up", "down", "reversed_down", "reversed_up")
"""Curves with the model's own answers in the context: from α = 0 and back, from α = 1 and back."""
Status = Literal["flips", "never_flips", "never_compliant", "not_finite"]


@dataclass(frozen=True)
class Crossing:
    """Where compliance falls through one half.

    Args:
        status: `flips`; `never_flips`, compliant up to the last level, so that α_c is beyond it;
            `never_compliant`, not even at the first, so that there is nothing to lose; or
            `not_finite`.
        alpha_c: where ℓ = 0; None unless it flips.
        slope: d compliance / dα there, per unit of α.
        width: in α, from 90% to 10% at that slope of ℓ; None where ℓ does not fall.
    """

    status: Status
    alpha_c: float | None = None
    slope: float | None = None
    width: float | None = None


def find_crossing(alpha: np.ndarray, log_odds: np.ndarray) -> Crossing:
    """α_c, slope and width of one curve.

    α_c is where the non-increasing least-squares fit to ℓ(α), straight between levels, is 0: a
    curve that falls is its own fit. The slope is ℓ' / 4, ℓ' that of the least-squares line
    through the `NEAREST` levels, and the width 2 log 9 / |ℓ'|. All are exact where ℓ is linear.

    Args:
        alpha: [L], increasing.
        log_odds: [L].

    >>> alpha = np.linspace(0, 1, 9)
    >>> found = find_crossing(alpha, 2 - 8 * alpha)
    >>> found.status, round(found.alpha_c, 6), round(found.slope, 6)
    ('flips', 0.25, -2.0)
    """
    if not np.isfinite(log_odds).all():
        return Crossing("not_finite")
    fit = falling_fit(log_odds)
    if fit[0] < 0:
        return Crossing("never_compliant")
    if fit[-1] >= 0:
        return Crossing("never_flips")
    after = int(np.argmax(fit < 0))
    high, low = fit[after - 1], fit[after]
    middle = float(alpha[after - 1] + (alpha[after] - alpha[after - 1]) * high / (high - low))
    near = np.argsort(np.abs(alpha - middle), kind="stable")[:NEAREST]
    steepness = float(np.polyfit(alpha[near], log_odds[near], 1)[0])
    width = TEN_TO_NINETY / -steepness if steepness < 0 else None
    return Crossing("flips", middle, steepness / 4, width)


def falling_fit(values: np.ndarray) -> np.ndarray:
    """[L] the non-increasing least-squares fit, by pooling what rises (Ayer et al. 1955).

    >>> falling_fit(np.array([3.0, 1.0, 2.0, 0.0])).tolist()
    [3.0, 1.5, 1.5, 0.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] < mean:
            before, size = blocks.pop()
            mean, count = (mean * count + before * size) / (count + size), count + size
        blocks.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in blocks])


def compliance(log_odds: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−ℓ)), without overflow.

    >>> compliance(np.array([-np.inf, 0.0])).tolist()
    [0.0, 0.5]
    """
    return 0.5 * (1 + np.tanh(0.5 * log_odds))


def compare_shapes(alpha: np.ndarray, curve: np.ndarray) -> dict[str, float] | None:
    """BIC of a line, a sigmoid and a step through the loss of compliance.

    Args:
        alpha: [L], increasing.
        curve: [L] compliance.

    Returns:
        By shape; None if compliance falls by less than `LEAST_RISE`.
    """
    if not np.isfinite(curve).all() or np.ptp(falling_fit(curve)) < LEAST_RISE:
        return None
    return shape_bic(alpha, 1 - curve)[0]


def loop_area(alpha: np.ndarray, up: np.ndarray, down: np.ndarray) -> float:
    """∫ (compliance on the way up − on the way down) dα by trapezoids, in [−1, 1].

    Positive where the model keeps complying while α rises, and keeps refusing while it falls.

    Args:
        alpha: [L], increasing.
        up, down: [L] log-odds, both in the order of `alpha`.

    >>> loop_area(np.array([0.0, 1.0]), np.array([np.inf] * 2), np.zeros(2))
    0.5
    """
    apart = compliance(up) - compliance(down)
    return float(np.sum(np.diff(alpha) * (apart[1:] + apart[:-1]) / 2))


def spread(log_odds: np.ndarray) -> np.ndarray:
    """[L] standard deviation of ℓ over orders [R, L]; NaN with one order."""
    if len(log_odds) < 2:
        return np.full(log_odds.shape[1], np.nan)
    return log_odds.std(axis=0, ddof=1)


def excess_spread(alpha: np.ndarray, spreads: np.ndarray, middle: float) -> float:
    """Mean spread at the levels near a point less that at the others, in nats.

    Only levels with 0 < α < 1 count: at the ends every order is the same text.

    Args:
        alpha: [L].
        spreads: [L]; see `spread`.
        middle: such as α_c.

    Returns:
        NaN if no level is near, or none is elsewhere.
    """
    inner = (alpha > 0) & (alpha < 1)
    near = inner & (np.abs(alpha - middle) <= NEAR)
    rest = inner & ~near
    if not near.any() or not rest.any():
        return math.nan
    return float(spreads[near].mean() - spreads[rest].mean())


def describe_pair(part: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that one pair's curves tell, JSON-ready.

    Args:
        part: `alpha` [L], `log_odds` [R][L] without a history, and [L] log-odds of each of `LOOPS`.
    """
    curves = {key: np.array(part[key], dtype=float) for key in ("alpha", "log_odds", *LOOPS)}
    alpha, log_odds = curves["alpha"], curves["log_odds"]
    curve = compliance(log_odds).mean(axis=0)
    bic = compare_shapes(alpha, curve)
    area = loop_area(alpha, curves["up"], curves["down"])
    reversed_area = loop_area(alpha, curves["reversed_up"], curves["reversed_down"])
    said = np.concatenate([*log_odds, *(curves[key] for key in LOOPS)])
    return {
        **asdict(find_crossing(alpha, log_odds.mean(axis=0))),
        "alpha_c_up": find_crossing(alpha, curves["up"]).alpha_c,
        "alpha_c_down": find_crossing(alpha, curves["down"]).alpha_c,
        # where one answer always wins, nothing can lag behind
        "switches": bool((said > 0).any() and (said < 0).any()),
        "compliance": curve.tolist(),
        "bic": bic,
        "shape": min(bic, key=lambda name: bic[name]) if bic else None,
        "area": area,
        "reversed_area": reversed_area,
        "hysteresis": (area + reversed_area) / 2,
        "spread": spread(log_odds).tolist(),
    }


def gain_over_line(bic: Mapping[str, float]) -> float:
    """BIC of the line less the lower one of sigmoid and step: positive for a threshold."""
    return bic["linear"] - min(bic["sigmoid"], bic["step"])
