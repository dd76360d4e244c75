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


def _measure_task(
    found: Mapping[str, TaskRecord], b: np.ndarray, target: np.ndarray, seed: int | None
) -> dict[str, Any]:
    """One task, whose records are `found` by stage, against the base's answers b [P, C].

    `target` [C] is the proxy seed, NaN without one; `seed` is the one that has won in the end.
    """
    w = uniform_weights(len(b))

    def by_stage(measure: Callable[[TaskRecord], Any]) -> dict[str, Any]:
        return {stage: measure(task) for stage, task in found.items()}

    measured = {
        "variety": by_stage(lambda task: float(variety(task.q, w))),
        "seed_mse": by_stage(lambda task: task.metrics["seed_mse"]),
        "seed_mass": by_stage(lambda task: task.metrics["seed_mass"]),
        "proxy_mse": by_stage(lambda task: float(squared_error(task.q, target, w))),
        "proxy_mass": by_stage(lambda task: float(support_mass(task.q, target, w))),
        "proxy_seed": target.tolist(),
        "histogram": by_stage(lambda task: task.q.mean(axis=0).tolist()),
        "final_seed": seed,
    }
    if seed is not None:
        end, others = b[seed], without_prompt(w, seed)
        measured["final_seed_mse"] = by_stage(lambda t: float(squared_error(t.q, end, others)))
        measured["final_seed_mass"] = by_stage(lambda t: float(support_mass(t.q, end, w)))
    return measured


def _mean(tasks: Mapping[str, Any], key: str, stages: Iterable[str]) -> dict[str, float]:
    """By stage, over the tasks that have it; NaN if none has."""
    having = [task[key] for task in tasks.values() if key in task]
    return {
        stage: float(np.mean([values[stage] for values in having])) if having else float("nan")
        for stage in stages
    }
