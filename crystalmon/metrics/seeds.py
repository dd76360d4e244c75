"""How far answers are from a seed: one base prompt's answers. Pure functions, one formula each.

Axes and notation are those of `answers`; k is the seed's index among the base's prompts.
"""

from __future__ import annotations

import numpy as np

from crystalmon.metrics.divergences import js_divergence, ratio

SUPPORT_MASS = 0.9
"""Share of the seed's mass that its support must hold."""

NOISE_FLOOR = 0.1
"""A prompt counts as crystallized when its distance to the seed is under this share of the
base's mean distance to it."""


def seed_distances(q: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P, P] matrix of JS(q_p, b_k): prompt p now, candidate seed k of the base.

    >>> seed_distances(np.eye(2), np.eye(2)).round(3).tolist()
    [[0.0, 0.693], [0.693, 0.0]]
    """
    return js_divergence(q[:, None, :], b[None, :, :])


def mean_over_others(distances: np.ndarray, asked: np.ndarray | None = None) -> np.ndarray:
    """[P] mean over p ≠ k of a [p, P] matrix d[p, k]: `seed_jsd` of every candidate k.

    Prompt k itself is left out, since it starts on the seed; a single prompt stays.

    Args:
        distances: of the prompts asked from every candidate.
        asked: [p] which of the P prompts were asked; all if None.

    >>> mean_over_others(np.array([[0.0, 2.0], [4.0, 0.0]])).tolist()
    [4.0, 2.0]
    """
    rows, columns = distances.shape
    if rows == 1:
        return distances[0]
    others = np.arange(columns) != (np.arange(rows) if asked is None else asked)[:, None]
    return (distances * others).sum(axis=0) / others.sum(axis=0)


def noise_floor(b: np.ndarray, seed: int) -> float:
    """NOISE_FLOOR · mean over p ≠ seed of JS(b_p, b_seed): nearer than this counts as the same.

    >>> round(noise_floor(np.eye(2), seed=0), 4)  # a tenth of log 2
    0.0693
    """
    return NOISE_FLOOR * _seed_scale(b, seed)


def nearest_seed(q: np.ndarray, b: np.ndarray, asked: np.ndarray | None = None) -> int:
    """The base prompt k with the smallest mean over p ≠ k of JS(q_p, b_k).

    `asked` is that of `mean_over_others`.

    >>> nearest_seed(np.array([[0.1, 0.9], [0.0, 1.0]]), np.eye(2))
    1
    """
    return int(np.argmin(mean_over_others(seed_distances(q, b), asked)))


def support(b_k: np.ndarray) -> np.ndarray:
    """[C] mask of the smallest set of choices that holds `SUPPORT_MASS` of `b_k` [C].

    >>> support(np.array([0.05, 0.7, 0.25])).tolist()
    [False, True, True]
    """
    ranked = np.argsort(-b_k, kind="stable")
    held = np.cumsum(b_k[ranked])
    count = int(np.searchsorted(held, SUPPORT_MASS * held[-1] * (1 - 1e-12))) + 1
    mask = np.zeros(len(b_k), dtype=bool)
    mask[ranked[:count]] = True
    return mask


def without_prompt(w: np.ndarray, prompt: int, asked: np.ndarray | None = None) -> np.ndarray:
    """Weights `w` [..., P] shared among the other prompts; those of a single prompt stay.

    Metrics of a seed leave out its own prompt, which starts on it. NaN where no other prompt has
    a weight. `asked` is that of `mean_over_others`.

    >>> without_prompt(np.full(3, 1 / 3), 0).tolist()
    [0.0, 0.5, 0.5]
    """
    others = w.copy()
    if w.shape[-1] > 1:
        others[..., (np.arange(w.shape[-1]) if asked is None else asked) == prompt] = 0.0
    return ratio(others, others.sum(axis=-1, keepdims=True))


def squared_error(q: np.ndarray, target: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over prompts and choices of (q_pc − t_c)².

    With `without_prompt(w, k)` and target b_k it is `seed_mse`.

    Args:
        q: [..., P, C] choice distributions.
        target: [C].
        w: [P], or [R, P] for [R, ...] values.

    >>> q = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(squared_error(q, np.array([1.0, 0.0]), np.full(2, 0.5)))
    0.5
    """
    return w @ np.mean((q - target) ** 2, axis=-1).T


def support_mass(q: np.ndarray, target: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over prompts of the mass on the `support` of a distribution; with b_k, `seed_mass`.

    Shapes are those of `squared_error`. NaN if the target is.

    >>> q = np.array([[0.9, 0.1], [0.5, 0.5]])
    >>> float(support_mass(q, np.array([1.0, 0.0]), np.full(2, 0.5)))
    0.7
    """
    mass = q[..., support(target)].sum(axis=-1)
    return w @ np.where(np.isnan(target).any(), np.nan, mass).T


def prompt_crystallinity(q: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """[P] each prompt's own 1 − JS(q_p, b_k) / mean over r ≠ k of JS(b_r, b_k).

    The mean in the denominator, not the prompt's own distance: a prompt that starts near the seed
    would otherwise divide by almost nothing and own the whole `susceptibility`.

    >>> b = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> prompt_crystallinity(b, b, seed=0).tolist()
    [1.0, 0.0, 0.0]
    """
    now, scale = js_divergence(q, b[seed]), _seed_scale(b, seed)
    return 1.0 - ratio(now, np.full_like(now, scale))


def _seed_scale(b: np.ndarray, seed: int) -> float:
    """Mean over p ≠ seed of JS(b_p, b_seed)."""
    return float(js_divergence(b, b[seed]).sum()) / max(len(b) - 1, 1)


def mean_seed_metrics(
    q: np.ndarray, b: np.ndarray, seed: int, stacked: np.ndarray, asked: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics that refer to the seed and are means over prompts; [R] by key.

    Args:
        q: [p, C] answers to the prompts `asked` [p].
        b: [P, C] the base's answers to all.
        seed: one of these P.
        stacked: [R, p] weights, rows that sum to 1.
    """
    others, now = without_prompt(stacked, seed, asked), js_divergence(q, b[seed])
    near = now < noise_floor(b, seed)
    return {
        "seed_jsd": others @ now,
        "seed_mse": squared_error(q, b[seed], others),
        "seed_mass": support_mass(q, b[seed], stacked),
        "crystal_fraction": stacked @ np.where(np.isnan(now), np.nan, near),
    }


def seed_ratios(
    q: np.ndarray,
    b: np.ndarray,
    seed: int,
    stacked: np.ndarray,
    asked: np.ndarray,
    base: np.ndarray,
    remaining: float,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The metrics relative to the base's distance from the seed: numerator, denominator [R].

    `crystallinity` compares with the base's answers to the same prompts. `susceptibility` is P
    times a variance over prompts, from a few of them brought to all as in
    `measurement.brought_to_all`; the distance in it is that of the whole base, as in
    `prompt_crystallinity`, and not resampled.

    Args:
        q, b, seed, stacked, asked: see `mean_seed_metrics`.
        base: [P, C] the base's answers in the view that q was asked in.
        remaining: share of the base's liquidity, from 0 to 1.
    """
    others, now = without_prompt(stacked, seed, asked), js_divergence(q, b[seed])
    before, distances = others @ js_divergence(b[asked], b[seed]), js_divergence(base, b[seed])
    spread = _variance(now, stacked) + remaining * (distances.var() - distances[asked].var())
    scale = np.full(len(stacked), _seed_scale(b, seed) ** 2)
    return {
        "crystallinity": (before - others @ now, before),
        "susceptibility": (len(b) * np.maximum(spread, 0.0), scale),
    }


def _variance(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.maximum(weights @ values**2 - (weights @ values) ** 2, 0.0)
