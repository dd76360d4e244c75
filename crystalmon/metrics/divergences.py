"""Entropies and divergences of distributions over the last axis, in nats and float64."""

from __future__ import annotations

import numpy as np

RESOLUTION = 1e-12
"""Below this a base's liquidity or distance, in nats, is rounding error."""


ON_SIMPLEX = 2e-5
"""How far the sum of a distribution may lie from 1."""


def entropy(q: np.ndarray) -> np.ndarray:
    """Shannon entropy H(q) = −Σ_c q_c log q_c over the last axis, in nats; 0 log 0 = 0.

    >>> float(entropy(np.array([0.5, 0.5, 0.0])))  # log 2
    0.6931471805599453
    """
    return -np.sum(q * np.log(np.where(q == 0, 1.0, q)), axis=-1)


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen–Shannon divergence over the last axis, in [0, log 2] nats.

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2 (Lin 1991, doi:10.1109/18.61115),
    summed as ½ Σ [p log(p/m) + q log(q/m)]. Broadcasts like a ufunc.

    >>> float(js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])))  # disjoint: log 2
    0.6931471805599453
    """
    total = p + q  # not halved: half of the smallest float is 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_p = np.where(p > 0, 2.0 * p / total, 1.0)
        ratio_q = np.where(q > 0, 2.0 * q / total, 1.0)
    terms = p * np.log(ratio_p) + q * np.log(ratio_q)
    return np.maximum(0.5 * np.sum(terms, axis=-1), 0.0)


def linear_dissimilarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """½ Σ_c (l_c − r_c)² / (l_c + r_c) over the last axis, in [0, 1].

    The linear dissimilarity of Arnold, Holtorf, Schäfer, Lörch (arXiv 2405.17088): 0 for equal
    distributions, 1 for disjoint ones.

    >>> float(linear_dissimilarity(np.array([1.0, 0.0]), np.array([0.0, 1.0])))
    1.0
    """
    total = left + right
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(total == 0, 0.0, (left - right) ** 2 / total)
    return 0.5 * np.sum(terms, axis=-1)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is nothing but rounding error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator < RESOLUTION, np.nan, numerator / denominator)
