"""Every metric of one task, by all of its prompts or by a few of them, and means over tasks.

Axes and notation are those of `answers`; p prompts are asked, P are the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalmon.metrics.answers import held_against, is_ordered, liquidity
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import BY_KEY, DISSIMILARITY_WINDOWS
from crystalmon.metrics.divergences import entropy, linear_dissimilarity, ratio
from crystalmon.metrics.diversity import diversity_of, mean_diversity
from crystalmon.metrics.seeds import mean_seed_metrics, nearest_seed, seed_ratios


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
    of_base: Mapping[str, np.ndarray] | None = None,
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
        asked: [p] which of the base's prompts q answers; all, in their order, if None. Metrics
            relative to the base compare with its answers to the same prompts. Others estimate
            what all prompts would show: `liquidity` is that of the prompts asked, times
            L(b) / L(b[asked]), as few differ less among each other than many; for means over
            prompts see `brought_to_all`.
        in_view: [P, C] the base's answers in the view, if b are those to the plain prompts; see
            `held_against`.
        of_base: what some of `per_prompt` are in the base, [P] by key: those that `brought_to_all`
            may bring to all prompts.
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
    now, before = _liquidities(q, b, stacked, asked, in_view)
    remaining = float(np.clip(np.nan_to_num(ratio(now, before)[0], nan=1.0), 0.0, 1.0))
    values, base = _means(q, b, per_prompt, seed, stacked, asked), b if in_view is None else in_view
    if len(asked) < len(b):
        known = of_base or {}
        some = {key: value[asked] for key, value in known.items()}
        all_rows, few = (uniform_weights(count)[None] for count in (len(b), len(asked)))
        whole = _means(base, b, known, seed, all_rows, np.arange(len(b)))
        part = _means(base[asked], b, some, seed, few, asked)
        values = brought_to_all(values, whole, part, remaining, b.shape[1])
        # also where all answers are alike, it depends on which of the base's they are held against
        other = q.mean(axis=0) @ (b.mean(axis=0) - b[asked].mean(axis=0))
        values["collision_base"] = values["collision_base"] + (1.0 - remaining) * other
    values |= {key: _mean_of_known(stacked, value) for key, value in (changes or {}).items()}
    shown = _liquidity_scale(base, asked) * liquidity(q, stacked)
    values["liquidity"] = np.minimum(shown, np.log(min(b.shape)))  # scaled, it may be more
    pooled = values["entropy"] + values["liquidity"]
    values["entropy_mixture"] = np.minimum(pooled, np.log(b.shape[1]))
    values |= diversity_of(values, b.shape[1])
    ratios = {"order": (before - now, before)}
    ratios |= seed_ratios(q, b, seed, stacked, asked, base, remaining)
    values |= {key: ratio(*parts) for key, parts in ratios.items()}
    metrics = {key: float(value[0]) for key, value in values.items()}
    metrics["seed"] = float(seed) if np.isfinite(q).all() else float("nan")
    return TaskMeasurement(metrics, {key: value[1:] for key, value in values.items()}, ratios)


def _means(
    q: np.ndarray,
    b: np.ndarray,
    per_prompt: Mapping[str, np.ndarray],
    seed: int,
    stacked: np.ndarray,
    asked: np.ndarray,
) -> dict[str, np.ndarray]:
    """What is a mean over the prompts asked, [1 + R] by key; see `measure_task`."""
    values = {key: _mean(stacked, value) for key, value in per_prompt.items()}
    values["entropy"] = stacked @ entropy(q)
    values |= mean_diversity(q, b[asked], stacked)
    return values | mean_seed_metrics(q, b, seed, stacked, asked)


def brought_to_all(
    values: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    part: Mapping[str, np.ndarray],
    remaining: float,
    choices: int,
) -> dict[str, np.ndarray]:
    """Means over the prompts asked as means over all: the base shows how far the two are apart.

    x + ρ · (x̄(base) − x̄(base[asked])). A model that answers like its base then has the values of
    all prompts; once all prompts get the same answers, those asked stand for all as they are.

    Args:
        values: [1 + R] by key, over the prompts asked.
        whole, part: those of the base [1], over all prompts and over those asked.
        remaining: ρ, the share of the base's liquidity that remains, from 0 to 1.
        choices: C.
    """
    found = dict(values)
    for key in values.keys() & whole.keys():
        most = np.log(choices) if key == "entropy" else BY_KEY[key].high
        found[key] = values[key] + remaining * (whole[key] - part[key])
        found[key][0] = np.clip(found[key][0], BY_KEY[key].low, most)  # an interval has its own
    return found


def _liquidities(
    q: np.ndarray,
    b: np.ndarray,
    stacked: np.ndarray,
    asked: np.ndarray,
    in_view: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """[1 + R] now and in the base, both as all prompts would show it; see `measure_task`."""
    scale, view = _liquidity_scale(b, asked), None if in_view is None else in_view[asked]
    return scale * liquidity(q, stacked), scale * held_against(q, b[asked], stacked, view)


def _liquidity_scale(b: np.ndarray, asked: np.ndarray) -> float:
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


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ_p w_p x_p with 0 · inf = 0: a replicate without an infinite prompt is finite."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0.0, weights * values).sum(axis=-1)


def _mean_of_known(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ_p w_p x_p / Σ_p w_p over the prompts with a value; NaN without one."""
    known = np.isfinite(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known)
