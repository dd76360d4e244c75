"""What the figures of a scan show: measures by stage, with intervals, from a run and `scan.json`.

Axes: S stages by step, of those that were measured, P prompts, C choices, R bootstrap replicates.
Intervals are over prompts, which each task resamples on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.analysis.stage_measures import Measure, TaskStages
from crystalmon.metrics import bootstrap
from crystalmon.runs.run import Run


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
            proxy=np.array(task["proxy_seed"], dtype=np.float64),  # "NaN" is read as NaN
        )
        for name, task in found["tasks"].items()
    }
    return ScanStages(tuple(listed.values()), tasks, found["proxy_stage"])


def mean_band(tasks: Iterable[TaskStages], measure: Measure) -> tuple[StageBand, int] | None:
    """The mean over the tasks that have a measure, and how many have it; None if none has."""
    rng = np.random.default_rng(0)  # one for all: the tasks' resamples must not be the same
    found: list[np.ndarray] = []
    prompts: list[int] = []
    for task in tasks:
        count = task.q.shape[1]
        drawn = bootstrap.bootstrap_weights(count, bootstrap.REPLICATES, rng)
        values = measure(task, np.concatenate([bootstrap.uniform_weights(count)[None], drawn]))
        if not np.isnan(values).all():
            found.append(values)
            prompts.append(count)
    if not found:
        return None
    mean, wider = np.mean(found, axis=0), bootstrap.expansion(prompts)
    ends = [bootstrap.bootstrap_interval(float(column[0]), column[1:], wider) for column in mean.T]
    return StageBand(mean[0], *np.array(ends).T), len(found)
