"""The paper's measurements, stage by stage, from a scan's run folder alone.

Axes: P prompts, C choices. The paper (arXiv 2606.29933) gives no formulas for its MSE and ProbMass;
`seed_mse` and `seed_mass` are this project's, and `proxy_mse` and `proxy_mass` are the same
with another seed.
Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from crystalmon.analysis.verdicts import find_seeds
from crystalmon.metrics.answers import js_divergence, support
from crystalmon.runs.reader import Run
from crystalmon.runs.reference import read_base_answers

PROXY_STAGE = "sft"
_SUITE_KEYS = ("order", "crystallinity", "seed_mass", "seed_mse", "liquidity", "free_energy")
_TASK_KEYS = ("variety", "seed_mse", "seed_mass", "proxy_mse", "proxy_mass")
_FINAL_KEYS = ("final_seed_mse", "final_seed_mass")


def prompt_variety(q: np.ndarray) -> float:
    """Mean over pairs of prompts of JS(q_p, q_r), in nats; NaN for a single prompt.

    Args:
        q: [P, C] choice distributions.
    """
    if len(q) < 2:
        return float("nan")
    return float(js_divergence(q[:, None], q[None])[np.triu_indices(len(q), 1)].mean())


def distribution_mse(q: np.ndarray, target: np.ndarray) -> float:
    """Mean over prompts and choices of (q_pc − t_c)².

    Args:
        q: [P, C] choice distributions.
        target: [C].
    """
    return float(np.mean((q - target) ** 2))


def distribution_mass(q: np.ndarray, target: np.ndarray) -> float:
    """Mean over prompts of the mass on the support of a distribution; NaN if that is NaN.

    Args:
        q: [P, C] choice distributions.
        target: [C].
    """
    if np.isnan(target).any():
        return float("nan")
    return float(q[:, support(target)].sum(axis=1).mean())


def final_seed_measures(q: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float]:
    """`seed_mse` and `seed_mass` of `metrics.measure_task`, of a seed that is the same throughout.

    Args:
        q: [P, C] choice distributions.
        b: [P, C] the base's.
        seed: index into the base's prompts; its own answer counts for the mass alone.
    """
    others = np.delete(q, seed, axis=0) if len(q) > 1 else q
    return distribution_mse(others, b[seed]), distribution_mass(q, b[seed])


def stage_names(run: Run) -> dict[int, str]:
    """By step, the stage's name; of a run that is no scan, the step itself."""
    named = {stage["step"]: stage["name"] for stage in run.info.get("stages", ())}
    return {record.step: named.get(record.step, str(record.step)) for record in run.records}


def find_proxy_stage(names: Mapping[int, str], listed: Iterable[str] = ()) -> int | None:
    """The step of the last stage named `sft` or within `sft/`; else the first after the base.

    Args:
        names: by step, of the stages that were measured.
        listed: of all. If there is an `sft` among them and none was measured, no other stands for
            it: None.
    """
    named = [s for s, name in names.items() if _is_proxy(name)]
    if named:
        return named[-1]
    later = [] if any(map(_is_proxy, listed)) else [s for s in names if s > 0]
    return min(later, default=None)


def _is_proxy(name: str) -> bool:
    return name.lower().split("/")[0] == PROXY_STAGE


def measure_stages(run: Run) -> dict[str, Any]:
    """All of it, ready for JSON.

    Args:
        run: of a scan, with at least the base.

    Returns:
        `stages`: one entry a stage with its suite-level figures; `proxy_stage`: whose mean
        answers are the proxy seed; `mean` and, within `tasks`, each task's: by stage `variety`
        (mean pairwise JS over prompts), `seed_mse` and `seed_mass` (as recorded, of the seed that
        was held or nearest at that stage), `proxy_mse`, `proxy_mass`, and where the task has
        crystallized on a seed (`verdicts.find_seeds`), `final_seed_mse` and `final_seed_mass` of
        that one at every stage, whose `mean` is over the tasks that have one; a task's
        `final_seed`, `choices`, `proxy_seed` [C] and `histogram`, by stage the answers [C] pooled
        over prompts.
    """
    names = stage_names(run)
    proxy = find_proxy_stage(names, [stage["name"] for stage in run.info.get("stages", ())])
    base = read_base_answers(run.folder)
    base = {name: base[name] for name in run.records[0].tasks}
    seeds = {name: found.seed for name, found in find_seeds(run, base).items()}
    tasks = {
        name: _measure_task(run, name, names, proxy)
        | _of_final(run, name, names, b, seeds.get(name))
        for name, b in base.items()
    }
    return {
        "stages": [
            {"name": names[record.step], "step": record.step, "phase": record.phase}
            | {key: record.metrics.get(key, float("nan")) for key in _SUITE_KEYS}
            for record in run.records
        ],
        "proxy_stage": None if proxy is None else names[proxy],
        "mean": {key: _mean(tasks, key, names) for key in (*_TASK_KEYS, *_FINAL_KEYS)},
        "tasks": tasks,
    }


def _mean(tasks: Mapping[str, Any], key: str, names: Mapping[int, str]) -> dict[str, float]:
    """By stage, over the tasks that have it; NaN if none has."""
    having = [task[key] for task in tasks.values() if key in task]
    return {
        stage: float(np.mean([values[stage] for values in having])) if having else float("nan")
        for stage in names.values()
    }


def _of_final(
    run: Run, task: str, names: Mapping[int, str], b: np.ndarray, seed: int | None
) -> dict[str, Any]:
    if seed is None:
        return {"final_seed": None}
    found = {names[r.step]: final_seed_measures(r.tasks[task].q, b, seed) for r in run.records}
    by_key = {
        key: {stage: values[place] for stage, values in found.items()}
        for place, key in enumerate(_FINAL_KEYS)
    }
    return {"final_seed": seed, **by_key}


def _measure_task(
    run: Run, task: str, names: Mapping[int, str], proxy: int | None
) -> dict[str, Any]:
    found = {record.step: record.tasks[task] for record in run.records}
    count = found[run.records[0].step].q.shape[1]
    target = np.full(count, np.nan) if proxy is None else found[proxy].q.mean(axis=0)
    texts = run.info.get("suite_texts", {}).get(task, {})
    return {
        "choices": texts.get("choices", [str(index) for index in range(count)]),
        "variety": {names[step]: prompt_variety(each.q) for step, each in found.items()},
        "seed_mse": {names[step]: each.metrics["seed_mse"] for step, each in found.items()},
        "seed_mass": {names[step]: each.metrics["seed_mass"] for step, each in found.items()},
        "proxy_mse": {
            names[step]: distribution_mse(each.q, target) for step, each in found.items()
        },
        "proxy_mass": {
            names[step]: distribution_mass(each.q, target) for step, each in found.items()
        },
        "proxy_seed": target.tolist(),
        "histogram": {names[step]: each.q.mean(axis=0).tolist() for step, each in found.items()},
    }
