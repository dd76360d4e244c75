"""The paper's measurements, stage by stage, from a scan's run folder alone.

Axes: S stages, P prompts, C choices, R sets of weights. The paper (arXiv 2606.29933) gives no
formulas for its MSE and ProbMass; `seed_mse` and `seed_mass` are this project's, and `proxy_mse`
and `proxy_mass` are the same with the mean answers after SFT in place of a seed's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.analysis.verdicts import find_seeds
from crystalmon.metrics import answers, seeds
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.records import TaskRecord
from crystalmon.runs.run import Run

PROXY_STAGE = "sft"
_SEED_KEYS = ("seed_mse", "seed_mass")
_SUITE_KEYS = ("order", "crystallinity", "seed_mass", "seed_mse", "liquidity", "free_energy")


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

    @property
    def won(self) -> np.ndarray:
        """[C] the base's answers at the seed; NaN without one."""
        return np.full(self.q.shape[2], np.nan) if self.seed is None else self.q[0, self.seed]


Measure = Callable[[TaskStages, np.ndarray], np.ndarray]
"""(task, [R, P] weights of prompts) → [R, S]; all NaN where the task has no such measure."""


def variety(task: TaskStages, weights: np.ndarray) -> np.ndarray:
    """`answers.variety` of the prompts."""
    return np.stack([answers.variety(q, weights) for q in task.q], axis=-1)


def seed_mse(task: TaskStages, weights: np.ndarray) -> np.ndarray:
    """`seeds.squared_error` from the winning seed, over prompts but its own."""
    others = weights if task.seed is None else seeds.without_prompt(weights, task.seed)
    return seeds.squared_error(task.q, task.won, others)


def seed_mass(task: TaskStages, weights: np.ndarray) -> np.ndarray:
    """Mass on the support of the winning seed, mean over prompts."""
    return seeds.support_mass(task.q, task.won, weights)


def proxy_mse(task: TaskStages, weights: np.ndarray) -> np.ndarray:
    """`seeds.squared_error` from the proxy seed."""
    return seeds.squared_error(task.q, task.proxy, weights)


def proxy_mass(task: TaskStages, weights: np.ndarray) -> np.ndarray:
    """Mass on the support of the proxy seed, mean over prompts."""
    return seeds.support_mass(task.q, task.proxy, weights)


_MEASURES: dict[str, Measure] = {
    "variety": variety,
    "proxy_mse": proxy_mse,
    "proxy_mass": proxy_mass,
    "final_seed_mse": seed_mse,
    "final_seed_mass": seed_mass,
}


def stage_names(run: Run) -> dict[int, str]:
    """By step, the stage's name; of a run that is no scan, the step itself."""
    named = run.stages
    return {record.step: named.get(record.step, str(record.step)) for record in run.records}


def find_proxy_stage(names: Mapping[int, str], listed: Iterable[str] = ()) -> int | None:
    """The step of the last stage named `sft` or within `sft/`; else the first after the base.

    Args:
        names: by step, of the stages that were measured.
        listed: the names of all stages. If there is an `sft` among them and none was measured, no
            other stands for it: None.
    """
    named = [step for step, name in names.items() if _is_proxy(name)]
    later = [] if any(map(_is_proxy, listed)) else [step for step in names if step > 0]
    return named[-1] if named else min(later, default=None)


def _is_proxy(name: str) -> bool:
    return name.lower().split("/")[0] == PROXY_STAGE


def measure_stages(run: Run) -> dict[str, Any]:
    """All of it, ready for JSON, from a scan that has at least its base.

    Returns:
        `stages`: for each stage its suite-level metrics. `proxy_stage`: whose mean answers are the
        proxy seed. `mean` and, within `tasks`, each task's, by stage: `variety`; `seed_mse` and
        `seed_mass` as recorded, of the seed that was held or nearest at that stage; `proxy_mse`
        and `proxy_mass`; and where the task has crystallized on a seed (`verdicts.find_seeds`),
        `final_seed_mse` and `final_seed_mass` of that one at every stage, whose `mean` is over the
        tasks that have one. Of each task also `final_seed`, `choices`, `proxy_seed` [C] and
        `histogram`, by stage the answers [C] pooled over prompts.
    """
    names = stage_names(run)
    proxy = find_proxy_stage(names, run.stages.values())
    base = read_base_answers(run.folder, run.records[0].tasks)
    held = {name: found.seed for name, found in find_seeds(run, base).items()}
    texts = run.info.get("suite_texts", {})
    tasks = {}
    for name, b in base.items():
        found = {names[record.step]: record.tasks[name] for record in run.records}
        target = np.full(b.shape[1], np.nan)
        if proxy is not None:
            target = found[names[proxy]].q.mean(axis=0)
        choices = texts.get(name, {}).get("choices", [str(index) for index in range(b.shape[1])])
        q = np.stack([task.q for task in found.values()])
        tasks[name] = _measure_task(found, TaskStages(tuple(choices), q, held.get(name), target))
    return {
        "stages": [
            {"name": names[record.step], "step": record.step, "phase": record.phase}
            | {key: record.metrics.get(key, float("nan")) for key in _SUITE_KEYS}
            for record in run.records
        ],
        "proxy_stage": None if proxy is None else names[proxy],
        "mean": {key: _mean(tasks, key, names.values()) for key in (*_SEED_KEYS, *_MEASURES)},
        "tasks": tasks,
    }


def _measure_task(found: Mapping[str, TaskRecord], task: TaskStages) -> dict[str, Any]:
    """One task, whose records are `found` by stage."""
    weights = uniform_weights(task.q.shape[1])[None]
    measured = {key: measure(task, weights)[0].tolist() for key, measure in _MEASURES.items()}
    for key in _SEED_KEYS:
        measured[key] = [each.metrics[key] for each in found.values()]
        if task.seed is None:
            del measured[f"final_{key}"]
    measured["histogram"] = task.q.mean(axis=1).tolist()
    by_stage = {key: dict(zip(found, each, strict=True)) for key, each in measured.items()}
    told = {
        "choices": list(task.choices),
        "proxy_seed": task.proxy.tolist(),
        "final_seed": task.seed,
    }
    return told | by_stage


def _mean(tasks: Mapping[str, Any], key: str, stages: Iterable[str]) -> dict[str, float]:
    """By stage, over the tasks that have it; NaN if none has."""
    having = [task[key] for task in tasks.values() if key in task]
    return {
        stage: float(np.mean([values[stage] for values in having])) if having else float("nan")
        for stage in stages
    }
