"""What is measured on the answers to one task: pure functions, one formula each.

Axes: P prompts, C choices. `q` [P, C] holds a distribution over the choices in each row; `b` is the
same from the base. Prompts are averaged with weights `w` [..., P] that sum to 1: uniform weights
give the estimate, multinomial ones a bootstrap replicate, so that a metric and its interval come
from one formula. Entropies and divergences are in nats, in float64. `README.md` beside this file
has every definition and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import DISSIMILARITY_WINDOWS

SUPPORT_MASS = 0.9
"""Share of the seed's mass that its support must hold."""

NOISE_FLOOR = 0.1
"""A prompt counts as crystallized when its distance to the seed is under this share of the
reference's mean distance to it."""

ORDERED_LIQUIDITY = 0.01
"""A reference is already ordered when its liquidity is under this share of log C: there is too
little liquidity left to lose."""

SCARCE = 0.05
"""Coverage below which the answers of a task are hardly ever given."""

RESOLUTION = 1e-12
"""Below this a reference's liquidity or distance, in nats, is rounding error."""


def entropy(q: np.ndarray) -> np.ndarray:
    """Shannon entropy H(q) = −Σ_c q_c log q_c over the last axis, in nats; 0 log 0 = 0.

    >>> float(entropy(np.array([0.5, 0.5, 0.0])))  # log 2
    0.6931471805599453
    """
    return -np.sum(_x_log_y(q, q), axis=-1)


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


def entropy_mixture(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """H(Σ_p w_p q_p): the entropy of the answers pooled over prompts. `w` [..., P] → [...].

    >>> float(entropy_mixture(np.eye(2), uniform_weights(2)))  # each sure, of another answer
    0.6931471805599453
    """
    return entropy(w @ q)


def liquidity(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Generalised Jensen–Shannon divergence among the prompts, in nats; at least 0.

    H(Σ_p w_p q_p) − Σ_p w_p H(q_p): the mutual information between prompt and answer (Lin 1991).
    0 when every prompt answers alike, at most min(log P, log C).

    >>> float(liquidity(np.eye(2), uniform_weights(2)))  # the prompt decides the answer: log 2
    0.6931471805599453
    >>> float(liquidity(np.full((2, 2), 0.5), uniform_weights(2)))  # the prompt does not matter
    0.0
    """
    return np.maximum(entropy_mixture(q, w) - w @ entropy(q), 0.0)


def is_ordered(b: np.ndarray) -> bool:
    """Whether the reference itself is too ordered for `order` to mean anything.

    True when liquidity(b) < ORDERED_LIQUIDITY · log C.

    >>> is_ordered(np.eye(2)), is_ordered(np.full((2, 2), 0.5))
    (False, True)
    """
    return bool(liquidity(b, uniform_weights(len(b))) < ORDERED_LIQUIDITY * np.log(b.shape[1]))


def order(q: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """1 − liquidity(q) / liquidity(b): 0 as liquid as the reference, 1 all prompts alike.

    Negative when the prompts differ more than in the reference; NaN when liquidity(b) is 0
    to rounding.

    >>> alike, unlike, w = np.full((2, 2), 0.5), np.eye(2), uniform_weights(2)
    >>> float(order(unlike, unlike, w)), float(order(alike, unlike, w))
    (0.0, 1.0)
    """
    return 1.0 - _ratio(liquidity(q, w), liquidity(b, w))


def seed_distances(q: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P, P] matrix of JS(q_p, b_k): prompt p now, candidate seed k of the reference.

    >>> seed_distances(np.eye(2), np.eye(2)).round(3).tolist()
    [[0.0, 0.693], [0.693, 0.0]]
    """
    return js_divergence(q[:, None, :], b[None, :, :])


def mean_over_others(distances: np.ndarray) -> np.ndarray:
    """[P] mean over p ≠ k of a [P, P] matrix d[p, k]: `seed_jsd` of every candidate k.

    Prompt k itself is left out, since it starts on the seed. With P = 1 it is all there is.

    >>> mean_over_others(np.array([[0.0, 2.0], [4.0, 0.0]])).tolist()
    [4.0, 2.0]
    """
    count = len(distances)
    if count == 1:
        return distances[:, 0]
    return (distances.sum(axis=0) - np.diagonal(distances)) / (count - 1)


def noise_floor(b: np.ndarray, seed: int) -> float:
    """NOISE_FLOOR · mean over p ≠ seed of JS(b_p, b_seed): nearer than this counts as the same.

    >>> round(noise_floor(np.eye(2), seed=0), 4)  # a tenth of log 2
    0.0693
    """
    return NOISE_FLOOR * float(mean_over_others(seed_distances(b, b))[seed])


def nearest_seed(q: np.ndarray, b: np.ndarray) -> int:
    """The reference prompt k with the smallest mean over p ≠ k of JS(q_p, b_k).

    >>> nearest_seed(np.array([[0.1, 0.9], [0.0, 1.0]]), np.eye(2))
    1
    """
    return int(np.argmin(mean_over_others(seed_distances(q, b))))


def support(b_k: np.ndarray, mass: float = SUPPORT_MASS) -> np.ndarray:
    """[C] mask of the smallest set of choices that holds `mass` of the distribution `b_k` [C].

    >>> support(np.array([0.05, 0.7, 0.25])).tolist()
    [False, True, True]
    """
    ranked = np.argsort(-b_k, kind="stable")
    held = np.cumsum(b_k[ranked])
    count = int(np.searchsorted(held, mass * held[-1] * (1 - 1e-12))) + 1
    mask = np.zeros(len(b_k), dtype=bool)
    mask[ranked[:count]] = True
    return mask


def variety(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over pairs of prompts of JS(q_p, q_r), in nats; NaN for a single prompt.

    P / (P − 1) · Σ_p Σ_r w_p w_r JS(q_p, q_r): a pair drawn without replacement when the weights
    are uniform. `w` [..., P] → [...].

    >>> round(float(variety(np.array([[1.0, 0.0], [0.0, 1.0]]), uniform_weights(2))), 4)
    0.6931
    """
    count = len(q)
    pairs = count / (count - 1) if count > 1 else np.nan
    return np.einsum("...p,pr,...r->...", w, seed_distances(q, q), w) * pairs


def without_prompt(w: np.ndarray, prompt: int) -> np.ndarray:
    """Weights `w` [..., P] shared among the other prompts; those of a single prompt stay.

    Metrics of a seed leave out its own prompt, which starts on it. NaN where no other prompt has
    a weight.

    >>> without_prompt(uniform_weights(3), 0).tolist()
    [0.0, 0.5, 0.5]
    """
    others = w.copy()
    if w.shape[-1] > 1:
        others[..., prompt] = 0.0
    return _ratio(others, others.sum(axis=-1, keepdims=True))


def squared_error(q: np.ndarray, target: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over prompts and choices of (q_pc − t_c)².

    With `without_prompt(w, k)` and target b_k it is `seed_mse`.

    Args:
        q: [..., P, C] choice distributions.
        target: [C].
        w: [P], or [R, P] for [R, ...] values.

    >>> q = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(squared_error(q, np.array([1.0, 0.0]), uniform_weights(2)))
    0.5
    """
    return w @ np.mean((q - target) ** 2, axis=-1).T


def support_mass(q: np.ndarray, target: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over prompts of the mass on the `support` of a distribution; with b_k, `seed_mass`.

    Shapes are those of `squared_error`. NaN if the target is.

    >>> q = np.array([[0.9, 0.1], [0.5, 0.5]])
    >>> float(support_mass(q, np.array([1.0, 0.0]), uniform_weights(2)))
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
    return 1.0 - _ratio(now, np.full_like(now, scale))


def _seed_scale(b: np.ndarray, seed: int) -> float:
    """Mean over p ≠ seed of JS(b_p, b_seed)."""
    return js_divergence(b, b[seed]).sum() / max(len(b) - 1, 1)


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


def dissimilarities(history: np.ndarray) -> dict[str, np.ndarray]:
    """Per-prompt change between the last windows of probes and the ones before them.

    Args:
        history: [S, P, C] the latest S probes, oldest first, the current one last.

    Returns:
        `dissimilarity_<l>` [P] for each length l in `DISSIMILARITY_WINDOWS` with 2·l <= S: the
        linear dissimilarity between the mean of the last l probes and of the l before.

    >>> {k: v.tolist() for k, v in dissimilarities(np.array([[[1.0, 0]], [[0, 1.0]]])).items()}
    {'dissimilarity_1': [1.0]}
    """
    return {
        f"dissimilarity_{length}": linear_dissimilarity(
            history[-2 * length : -length].mean(axis=0), history[-length:].mean(axis=0)
        )
        for length in DISSIMILARITY_WINDOWS
        if 2 * length <= len(history)
    }


@dataclass(frozen=True)
class TaskMeasurement:
    """The point estimates of one task and their bootstrap replicates.

    Args:
        metrics: value by key.
        replicates: [R] values by key.
    """

    metrics: Mapping[str, float]
    replicates: Mapping[str, np.ndarray]


def measure_task(
    q: np.ndarray,
    b: np.ndarray,
    per_prompt: Mapping[str, np.ndarray],
    weights: np.ndarray,
    seed: int | None = None,
) -> TaskMeasurement:
    """Every metric of one task, with its bootstrap over prompts.

    Args:
        q: [P, C] choice distributions now.
        b: [P, C] the reference's.
        per_prompt: [P] values by key that are averaged over prompts as they are (`coverage`,
            `free_energy`, …). A prompt with NaN makes the mean NaN.
        weights: [R, P] bootstrap weights, rows summing to 1.
        seed: the reference prompt that metrics of the seed refer to: the one that a detector
            holds; the nearest one if None.

    Returns:
        The keys of `catalogue` that belong to one task. The seed is held fixed over the replicates,
        and both parts of a ratio share their resample.

    >>> b, w = np.array([[0.9, 0.1], [0.1, 0.9]]), uniform_weights(2)[None]
    >>> found = measure_task(np.full((2, 2), 0.5), b, {}, w).metrics
    >>> round(found["entropy"], 3), found["liquidity"], found["order"]
    (0.693, 0.0, 1.0)
    """
    uniform = uniform_weights(len(q))
    stacked = np.concatenate([uniform[None, :], weights])
    seed = nearest_seed(q, b) if seed is None else seed
    values = {key: _mean(stacked, value) for key, value in per_prompt.items()}
    values["entropy"] = stacked @ entropy(q)
    values["entropy_mixture"] = entropy_mixture(q, stacked)
    values["liquidity"] = liquidity(q, stacked)
    values["order"] = order(q, b, stacked)
    values |= _seed_metrics(q, b, seed, stacked)
    metrics = {key: float(value[0]) for key, value in values.items()}
    metrics["seed"] = float(seed) if np.isfinite(q).all() else float("nan")
    return TaskMeasurement(metrics, {key: value[1:] for key, value in values.items()})


def _seed_metrics(
    q: np.ndarray, b: np.ndarray, seed: int, stacked: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics relative to reference prompt `seed`; `stacked` [R, P] → [R] each.

    `NOISE_FLOOR` and the mean distance in each prompt's own crystallinity belong to the reference
    and are not resampled.
    """
    others = without_prompt(stacked, seed)
    now, before = js_divergence(q, b[seed]), js_divergence(b, b[seed])
    near = now < NOISE_FLOOR * _seed_scale(b, seed)
    own = prompt_crystallinity(q, b, seed)
    return {
        "seed_jsd": others @ now,
        "seed_mse": squared_error(q, b[seed], others),
        "crystallinity": 1.0 - _ratio(others @ now, others @ before),
        "seed_mass": support_mass(q, b[seed], stacked),
        "crystal_fraction": stacked @ np.where(np.isnan(now), np.nan, near),
        "susceptibility": len(q) * np.maximum(stacked @ own**2 - (stacked @ own) ** 2, 0.0),
    }


def round_significant(values: np.ndarray, digits: int = 8) -> np.ndarray:
    """Values to `digits` significant decimal digits; NaN stays NaN.

    >>> round_significant(np.array([0.123456789, 12345.6789]), 3).tolist()
    [0.123, 12300.0]
    """
    rounded = [float(f"{value:.{digits}g}") for value in values.ravel()]
    return np.array(rounded, dtype=np.float64).reshape(values.shape)


def _x_log_y(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == 0, 0.0, x * np.log(y))


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ_p w_p x_p with 0 · inf = 0: a replicate without an infinite prompt is finite."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0.0, weights * values).sum(axis=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is nothing but rounding error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator < RESOLUTION, np.nan, numerator / denominator)


def answer_distributions(log_choice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of choices as what is stored and detected on.

    Args:
        log_choice: [P, C], of each choice after each prompt.

    Returns:
        q [P, C], renormalised, to 8 significant digits; coverage [P], the choices' total.

    >>> q, coverage = answer_distributions(np.log([[0.1, 0.3]]))
    >>> q.tolist(), coverage.round(6).tolist()
    ([[0.25, 0.75]], [0.4])
    """
    coverage = np.minimum(np.exp(log_choice).sum(axis=1), 1.0)
    top = log_choice.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        q = np.exp(log_choice - top)
    return round_significant(q / q.sum(axis=1, keepdims=True)), coverage
