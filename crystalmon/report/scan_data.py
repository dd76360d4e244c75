"""What the figures of a scan show: measures by stage, with intervals, from a run and `scan.json`.

Axes: S stages, P prompts, C choices, R bootstrap replicates. Stages are in the order of their
steps; a stage that was not measured is not among them. Intervals are over prompts, the tasks
resampled apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.metrics import answers
from crystalmon.metrics.bootstrap import bootstrap_interval, bootstrap_weights, uniform_weights
from crystalmon.runs.reader import Run

REPLICATES = 200
"""Bootstrap resamples of the prompts behind an interval."""


@dataclass(frozen=True)
class TaskStages:
    """One task at every stage.

    Args:
        choices: [C] their texts.
        q: [S, P, C] the answers, the base's first.
        seed: the base prompt that has won, or None.
        proxy: [C] the mean answers of the stage that stands for SFT; NaN without one.
    """

    choices: tuple[str, ...]
    q: np.ndarray = field(repr=False)
    seed: int | None
    proxy: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ScanStages:
    """All tasks at every stage.

    Args:
        names: [S] of the stages.
        tasks: by name.
        proxy_stage: the name of the stage that stands for SFT, or None.
        steps: [S] their places in the list that was scanned.
    """

    names: tuple[str, ...]
    tasks: Mapping[str, TaskStages] = field(repr=False)
    proxy_stage: str | None
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """A measure by stage: [S] values and the ends of their 95% intervals; NaN is a gap."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


Measure = Callable[[TaskStages, np.ndarray], np.ndarray | None]
"""(task, [R, P] weights of prompts) → [R, S]; None where the task has no such measure."""


def read_stages(run: Run, found: Mapping[str, Any]) -> ScanStages:
    """The stages of a scan.

    Args:
        run: the scan's.
        found: the content of its `scan.json`.

    Raises:
        ValueError: if the two do not belong together.
    """
    listed = {stage["step"]: stage["name"] for stage in found["stages"]}
    if list(listed) != [record.step for record in run.records]:
        raise ValueError(
            f"scan.json must have the stages of the run {run.folder}, got "
            f"{', '.join(listed.values()) or 'none'}. Scan again: what is measured is kept."
        )
    tasks = {
        name: TaskStages(
            choices=tuple(task["choices"]),
            q=np.stack([record.tasks[name].q for record in run.records]),
            seed=task["final_seed"],
            proxy=np.array(task["proxy_seed"], dtype=np.float64),  # null is NaN
        )
        for name, task in found["tasks"].items()
    }
    return ScanStages(tuple(listed.values()), tasks, found["proxy_stage"], tuple(listed))


def variety(task: TaskStages, weights: np.ndarray) -> np.ndarray | None:
    """`answers.variety` of the prompts; None for a single prompt."""
    if task.q.shape[1] < 2:
        return None
    return np.stack([answers.variety(q, weights) for q in task.q], axis=-1)


def seed_mse(task: TaskStages, weights: np.ndarray) -> np.ndarray | None:
    """`answers.squared_error` from the winning seed, over prompts but its own."""
    if task.seed is None:
        return None
    others = answers.without_prompt(weights, task.seed)
    return answers.squared_error(task.q, task.q[0, task.seed], others)


def seed_mass(task: TaskStages, weights: np.ndarray) -> np.ndarray | None:
    """Mass on the support of the winning seed, mean over prompts."""
    if task.seed is None:
        return None
    return answers.support_mass(task.q, task.q[0, task.seed], weights)


def proxy_mse(task: TaskStages, weights: np.ndarray) -> np.ndarray | None:
    """`answers.squared_error` from the proxy seed."""
    if np.isnan(task.proxy).any():
        return None
    return answers.squared_error(task.q, task.proxy, weights)


def proxy_mass(task: TaskStages, weights: np.ndarray) -> np.ndarray | None:
    """Mass on the support of the proxy seed, mean over prompts."""
    if np.isnan(task.proxy).any():
        return None
    return answers.support_mass(task.q, task.proxy, weights)


def task_band(task: TaskStages, measure: Measure) -> Band | None:
    """One task's measure by stage; None where it has none."""
    found = _replicate(task, measure, np.random.default_rng(0))
    return None if found is None else _band(*found)


def mean_band(stages: ScanStages, measure: Measure) -> tuple[Band, int] | None:
    """The mean over the tasks that have a measure, and how many have it; None if none has."""
    rng = np.random.default_rng(0)  # one for all: the tasks' resamples must not be the same
    found = [_replicate(task, measure, rng) for task in stages.tasks.values()]
    having = [each for each in found if each is not None]
    if not having:
        return None
    values, replicates = zip(*having, strict=True)
    return _band(np.mean(values, axis=0), np.mean(replicates, axis=0)), len(having)


def _replicate(
    task: TaskStages, measure: Measure, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """[S] the point estimates, and [R, S] their replicates."""
    count = task.q.shape[1]
    drawn = bootstrap_weights(count, REPLICATES, rng)
    found = measure(task, np.concatenate([uniform_weights(count)[None], drawn]))
    return None if found is None else (found[0], found[1:])


def _band(value: np.ndarray, replicates: np.ndarray) -> Band:
    ends = [
        bootstrap_interval(float(each), replicates[:, stage]) for stage, each in enumerate(value)
    ]
    return Band(value, np.array([low for low, _ in ends]), np.array([high for _, high in ends]))
