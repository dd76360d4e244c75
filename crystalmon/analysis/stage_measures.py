"""The paper's measurements, stage by stage, from a scan's run folder alone.

Axes: P prompts, C choices. The paper (arXiv 2606.29933) gives no formulas for its MSE and ProbMass;
`seed_mse` and `seed_mass` are this project's, and `proxy_mse` and `proxy_mass` are the same with
the mean answers after SFT in place of a seed's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from crystalmon.analysis.verdicts import find_seeds
from crystalmon.metrics.answers import variety
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.seeds import squared_error, support_mass, without_prompt
from crystalmon.runs.reader import Run
from crystalmon.runs.records import TaskRecord
from crystalmon.runs.reference import read_base_answers

PROXY_STAGE = "sft"
_SUITE_KEYS = ("order", "crystallinity", "seed_mass", "seed_mse", "liquidity", "free_energy")
_TASK_KEYS = ("variety", "seed_mse", "seed_mass", "proxy_mse", "proxy_mass")
_FINAL_KEYS = ("final_seed_mse", "final_seed_mass")

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(answers q [..., P, C], weights w of the prompts [P] or [R, P]) → one value, or [R, ...]."""


def stage_names(run: Run) -> dict[int, str]:
    """By step, the stage's name; of a run that is no scan, the step itself."""
    named = {stage["step"]: stage["name"] for stage in run.info.get("stages", ())}
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
    proxy = find_proxy_stage(names, [stage["name"] for stage in run.info.get("stages", ())])
    base = read_base_answers(run.folder, run.records[0].tasks)
    seeds = {name: found.seed for name, found in find_seeds(run, base).items()}
    texts = run.info.get("suite_texts", {})
    tasks = {}
    for name, b in base.items():
        found = {names[record.step]: record.tasks[name] for record in run.records}
        target = np.full(b.shape[1], np.nan)
        if proxy is not None:
            target = found[names[proxy]].q.mean(axis=0)
        choices = texts.get(name, {}).get("choices", [str(index) for index in range(b.shape[1])])
        tasks[name] = {"choices": choices, **_measure_task(found, b, target, seeds.get(name))}
    return {
        "stages": [
            {"name": names[record.step], "step": record.step, "phase": record.phase}
            | {key: record.metrics.get(key, float("nan")) for key in _SUITE_KEYS}
            for record in run.records
        ],
        "proxy_stage": None if proxy is None else names[proxy],
        "mean": {key: _mean(tasks, key, names.values()) for key in (*_TASK_KEYS, *_FINAL_KEYS)},
        "tasks": tasks,
    }


def task_measures(base: np.ndarray, seed: int | None, proxy: np.ndarray) -> dict[str, Measure]:
    """By key, the measures on the answers to one task.

    Args:
        base: [P, C] the base's answers.
        seed: the base prompt that has won; None leaves out its measures.
        proxy: [C] the proxy seed; where it is NaN, so are its measures.
    """
    measures: dict[str, Measure] = {
        "variety": variety,
        "proxy_mse": lambda q, w: squared_error(q, proxy, w),
        "proxy_mass": lambda q, w: support_mass(q, proxy, w),
    }
    if seed is not None:
        end = base[seed]
        measures["final_seed_mse"] = lambda q, w: squared_error(q, end, without_prompt(w, seed))
        measures["final_seed_mass"] = lambda q, w: support_mass(q, end, w)
    return measures


def _measure_task(
    found: Mapping[str, TaskRecord], b: np.ndarray, proxy: np.ndarray, seed: int | None
) -> dict[str, Any]:
    """One task, whose records are `found` by stage; the rest as in `task_measures`."""
    w = uniform_weights(len(b))
    measured: dict[str, Any] = {"proxy_seed": proxy.tolist(), "final_seed": seed}
    for key in ("seed_mse", "seed_mass"):
        measured[key] = {stage: task.metrics[key] for stage, task in found.items()}
    for key, measure in task_measures(b, seed, proxy).items():
        measured[key] = {stage: float(measure(task.q, w)) for stage, task in found.items()}
    measured["histogram"] = {stage: task.q.mean(axis=0).tolist() for stage, task in found.items()}
    return measured


def _mean(tasks: Mapping[str, Any], key: str, stages: Iterable[str]) -> dict[str, float]:
    """By stage, over the tasks that have it; NaN if none has."""
    having = [task[key] for task in tasks.values() if key in task]
    return {
        stage: float(np.mean([values[stage] for values in having])) if having else float("nan")
        for stage in stages
    }
