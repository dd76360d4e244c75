"""What the figures of a scan show: measures by stage, with intervals, from a run and `scan.json`.

Axes: S stages by step, of those that were measured, P prompts, C choices, R bootstrap replicates.
Intervals are over prompts, which each task resamples on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.analysis.stage_measures import task_measures
from crystalmon.metrics.bootstrap import bootstrap_interval, bootstrap_weights, uniform_weights
from crystalmon.runs.reader import Run

TASK_RESAMPLES = 200
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
    """

    names: tuple[str, ...]
    tasks: Mapping[str, TaskStages] = field(repr=False)
    proxy_stage: str | None


@dataclass(frozen=True)
class StageBand:
    """A measure by stage: [S] values and the ends of their 95% intervals; NaN is a gap."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


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
    return ScanStages(tuple(listed.values()), tasks, found["proxy_stage"])


def measure(task: TaskStages, key: str, weights: np.ndarray) -> np.ndarray | None:
    """One of `stage_measures.task_measures`: [R, S] values for weights [R, P] of the prompts.

    None where the task has no such measure: without a seed, a proxy or a second prompt.
    """
    found = task_measures(task.q[0], task.seed, task.proxy).get(key)
    if found is None:
        return None
    values = np.stack([found(q, weights) for q in task.q], axis=-1)
    return None if np.isnan(values[0, 0]) else values


def mean_band(tasks: Iterable[TaskStages], key: str) -> tuple[StageBand, int] | None:
    """The mean over the tasks that have a measure, and how many have it; None if none has."""
    rng = np.random.default_rng(0)  # one for all: the tasks' resamples must not be the same
    found: list[np.ndarray] = []
    for task in tasks:
        count = task.q.shape[1]
        drawn = bootstrap_weights(count, TASK_RESAMPLES, rng)
        values = measure(task, key, np.concatenate([uniform_weights(count)[None], drawn]))
        if values is not None:
            found.append(values)
    if not found:
        return None
    mean = np.mean(found, axis=0)
    ends = [bootstrap_interval(float(column[0]), column[1:]) for column in mean.T]
    return StageBand(mean[0], *np.array(ends).T), len(found)
