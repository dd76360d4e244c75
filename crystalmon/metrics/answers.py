"""What is measured on the answers to one task: pure functions, one formula each.

Axes: P prompts, C choices. `q` [P, C] holds a distribution over the choices in each row; `b` is the
same from the base. Prompts are averaged with weights `w` [..., P] that sum to 1: uniform weights
give the estimate, multinomial ones a bootstrap replicate, so that a metric and its interval come
from one formula. Entropies and divergences are in nats, in float64. `README.md` beside this file
has every definition and its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import DISSIMILARITY_WINDOWS
from crystalmon.metrics.divergences import entropy, linear_dissimilarity, ratio
from crystalmon.metrics.diversity import diversity_metrics
from crystalmon.metrics.seeds import nearest_seed, seed_distances, seed_metrics

LEFT = 0.2
"""Share of its liquidity to the plain prompts that a view is taken to leave a base at the least:
with less, its answers are as alike as those of a crystallized task."""
ORDERED_LIQUIDITY = 0.01
"""A base is already ordered when its liquidity is under this share of log C: there is too
little liquidity left to lose."""

MEASURABLE = 0.1
"""Coverage from which a wording's answers tell what the model answers."""
MAJORITY = 0.5
"""Share of a task's wordings that must be measurable for the task to be, and of a suite's tasks."""


def liquidity(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Generalised Jensen–Shannon divergence among the prompts, in nats; at least 0.

    H(Σ_p w_p q_p) − Σ_p w_p H(q_p): the mutual information between prompt and answer (Lin 1991).
    0 when every prompt answers alike, at most min(log P, log C).

    >>> float(liquidity(np.eye(2), uniform_weights(2)))  # the prompt decides the answer: log 2
    0.6931471805599453
    >>> float(liquidity(np.full((2, 2), 0.5), uniform_weights(2)))  # the prompt does not matter
    0.0
    """
    return np.maximum(entropy(w @ q) - w @ entropy(q), 0.0)


def is_ordered(b: np.ndarray) -> bool:
    """Whether the base itself is too ordered for `order` to mean anything.

    True when liquidity(b) < ORDERED_LIQUIDITY · log C.

    >>> is_ordered(np.eye(2)), is_ordered(np.full((2, 2), 0.5))
    (False, True)
    """
    return bool(liquidity(b, uniform_weights(len(b))) < ORDERED_LIQUIDITY * np.log(b.shape[1]))


def order(
    q: np.ndarray, b: np.ndarray, w: np.ndarray, in_view: np.ndarray | None = None
) -> np.ndarray:
    """1 − liquidity(q) / liquidity(b): 0 as liquid as the base, 1 all prompts alike.

    Negative when the prompts differ more than in the base; NaN when liquidity(b) is 0
    to rounding. With `in_view` it is relative to `held_against`.

    >>> alike, unlike, w = np.full((2, 2), 0.5), np.eye(2), uniform_weights(2)
    >>> float(order(unlike, unlike, w)), float(order(alike, unlike, w))
    (0.0, 1.0)
    """
    before = held_against(q, b, w, in_view)
    return ratio(before - liquidity(q, w), before)


def held_against(
    q: np.ndarray, b: np.ndarray, w: np.ndarray, in_view: np.ndarray | None = None
) -> np.ndarray:
    """The base's liquidity that q's is held against, in nats: L(b), unless there is `in_view`.

    A base that does not answer in the view of a run is asked the plain prompts too: b. Between its
    liquidity there and in the view, what the format does cannot be told from what training does. So
    q is held against the nearest value of that range: within it `order` is 0, outside it counts
    from the nearer end. The range ends at `LEFT` · L(b): the few answers that a base gives in the
    view may be all alike, and answers that have become so are alike whatever has made them so.

    Args:
        q, b, w: see `order`.
        in_view: [P, C] the base's answers in the view, if b are those to the plain prompts.

    >>> b, w = np.array([[0.9, 0.1], [0.1, 0.9]]), uniform_weights(2)
    >>> half = np.array([[0.7, 0.3], [0.3, 0.7]])
    >>> found = held_against(half, b, w, in_view=np.full((2, 2), 0.5))
    >>> bool(found == liquidity(half, w)), round(float(held_against(half, b, w)), 3)
    (True, 0.368)
    """
    plain = liquidity(b, w)
    if in_view is None:
        return plain
    other = np.maximum(liquidity(in_view, w), LEFT * plain)
    return np.clip(liquidity(q, w), np.minimum(plain, other), np.maximum(plain, other))


def is_measurable(coverage: np.ndarray) -> bool:
    """Whether at least `MAJORITY` of a task's wordings have a coverage of `MEASURABLE`.

    >>> is_measurable(np.array([0.9, 0.01])), is_measurable(np.array([0.9, 0.01, 0.01]))
    (True, False)
    """
    return bool((coverage >= MEASURABLE).mean() >= MAJORITY)


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


def dissimilarities(history: np.ndarray) -> dict[str, np.ndarray]:
    """Per-prompt change between the last windows of probes and the ones before them.

    Args:
        history: [S, P, C] the latest S probes, oldest first, the current one last; NaN where a
            prompt was not asked.

    Returns:
        `dissimilarity_<l>` [P] for each length l in `DISSIMILARITY_WINDOWS` with 2·l <= S: the
        linear dissimilarity between the mean of the last l probes and of the l before; NaN of a
        prompt that was not asked at all of them.

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
        ratios: by key of a metric that is a ratio, what is divided and by what, [1 + R] each, the
            point estimate first.
    """

    metrics: Mapping[str, float]
    replicates: Mapping[str, np.ndarray]
    ratios: Mapping[str, tuple[np.ndarray, np.ndarray]]


def measure_task(
    q: np.ndarray,
    b: np.ndarray,
    per_prompt: Mapping[str, np.ndarray],
    weights: np.ndarray,
    seed: int | None = None,
    *,
    asked: np.ndarray | None = None,
    in_view: np.ndarray | None = None,
    changes: Mapping[str, np.ndarray] | None = None,
) -> TaskMeasurement:
    """Every metric of one task, with its bootstrap over prompts.

    Args:
        q: [p, C] choice distributions now.
        b: [P, C] the base's.
        per_prompt: [p] values by key that are averaged over prompts as they are (`coverage`,
            `free_energy`, …). A prompt with NaN makes the mean NaN.
        weights: [R, p] bootstrap weights, rows summing to 1.
        seed: the base prompt that metrics of the seed refer to: the one that a detector
            holds; the nearest one if None.
        asked: [p] which of the base's prompts q answers; all, in their order, if None. What is
            relative to the base is relative to its answers to the same prompts. `liquidity` is
            then an estimate of what all prompts would show: few differ less among each other
            than many, so it is that of the prompts asked, times L(b) / L(b[asked]), and
            `entropy_mixture`, β and γ diversity follow from it.
        in_view: [P, C] the base's answers in the view, if b are those to the plain prompts; see
            `held_against`.
        changes: [p] values by key, of which the mean is over the prompts that have one; see
            `dissimilarities`.

    Returns:
        The keys of `catalogue` that belong to one task. The seed is held fixed over the replicates,
        and both parts of a ratio share their resample.

    >>> b, w = np.array([[0.9, 0.1], [0.1, 0.9]]), uniform_weights(2)[None]
    >>> found = measure_task(np.full((2, 2), 0.5), b, {}, w).metrics
    >>> round(found["entropy"], 3), found["liquidity"], found["order"]
    (0.693, 0.0, 1.0)
    """
    stacked = np.concatenate([uniform_weights(len(q))[None, :], weights])
    asked = np.arange(len(q)) if asked is None else asked
    seed = nearest_seed(q, b, asked) if seed is None else seed
    values = {key: _mean(stacked, value) for key, value in per_prompt.items()}
    values |= {key: _mean_of_known(stacked, value) for key, value in (changes or {}).items()}
    now, before = _liquidities(q, b, stacked, asked, in_view)
    values["entropy"] = stacked @ entropy(q)
    values["liquidity"] = np.minimum(now, np.log(min(b.shape)))  # scaled, it may be more
    pooled = values["entropy"] + values["liquidity"]
    values["entropy_mixture"] = np.minimum(pooled, np.log(b.shape[1]))
    values |= diversity_metrics(values, q, b[asked], stacked)
    of_seed, to_seed = seed_metrics(q, b, seed, stacked, asked)
    ratios = {"order": (before - now, before), **to_seed}
    values |= of_seed | {key: ratio(*parts) for key, parts in ratios.items()}
    metrics = {key: float(value[0]) for key, value in values.items()}
    metrics["seed"] = float(seed) if np.isfinite(q).all() else float("nan")
    return TaskMeasurement(metrics, {key: value[1:] for key, value in values.items()}, ratios)


def _liquidities(
    q: np.ndarray,
    b: np.ndarray,
    stacked: np.ndarray,
    asked: np.ndarray,
    in_view: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """[1 + R] now and in the base, both as all prompts would show it; see `measure_task`."""
    scale, view = _to_whole(b, asked), None if in_view is None else in_view[asked]
    return scale * liquidity(q, stacked), scale * held_against(q, b[asked], stacked, view)


def _to_whole(b: np.ndarray, asked: np.ndarray) -> float:
    """L(b) / L(b[asked]); 1 of an ordered base, of which that would be noise."""
    if len(asked) == len(b) or is_ordered(b):
        return 1.0
    whole, part = (liquidity(each, uniform_weights(len(each))) for each in (b, b[asked]))
    return float(whole / part) if part > 0 else 1.0


def mean_over_tasks(measured: Sequence[TaskMeasurement], key: str) -> tuple[float, np.ndarray]:
    """A metric of a suite: the mean over its tasks, at least one; with it its replicates [R].

    Of ratios it is the ratio of the means: 1 − mean liquidity / mean liquidity of the base is the
    suite's `order`. In a mean of ratios, a task whose base has hardly any liquidity may decide.
    """
    if key in measured[0].ratios:
        above, below = (sum(task.ratios[key][part] for task in measured) for part in (0, 1))
        found = ratio(np.asarray(above), np.asarray(below))
    else:
        found = np.mean([[task.metrics[key], *task.replicates[key]] for task in measured], axis=0)
    return float(found[0]), found[1:]


def round_significant(values: np.ndarray, digits: int = 8) -> np.ndarray:
    """Values to `digits` significant decimal digits; NaN stays NaN.

    >>> round_significant(np.array([0.123456789, 12345.6789]), 3).tolist()
    [0.123, 12300.0]
    """
    rounded = [float(f"{value:.{digits}g}") for value in values.ravel()]
    return np.array(rounded, dtype=np.float64).reshape(values.shape)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ_p w_p x_p with 0 · inf = 0: a replicate without an infinite prompt is finite."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0.0, weights * values).sum(axis=-1)


def _mean_of_known(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ_p w_p x_p / Σ_p w_p over the prompts with a value; NaN without one."""
    known = np.isfinite(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known)


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
