"""Training rows towards a target, in the shapes that the TRL trainers read.

All makers of rows take the same arguments:

- `suite` names the tasks;
- `targets`: task -> choice -> probability. Tasks of the suite without a target are left out;
- `size` is the number of rows. Tasks take turns, each once a round, in random order;
- `random_seed` fixes what Python's `random` draws: the same rows on every machine;
- `prompts` is `"heldout"` for wordings that the probe never shows (known for `liquid-tiny` only),
  `"suite"` for the suite's own prompts, or a mapping from task to prompts.

They raise `ValueError` if the size is not positive, or suite, targets and prompts do not fit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Literal

from crystalmon.suites.tasks import Task, TaskSuite
from crystalmon.synthetic.targets import Targets, load_truth, normalised, support

Prompts = Literal["heldout", "suite"] | Mapping[str, Sequence[str]]


def sft_rows(
    suite: TaskSuite, targets: Targets, size: int, random_seed: int, prompts: Prompts = "heldout"
) -> list[dict[str, str]]:
    """Rows `{"prompt": str, "completion": " answer"}` for `trl.SFTTrainer`.

    The answers are drawn from each task's target.
    """
    return [
        {"prompt": prompt, "completion": f" {_draw(rng, targets[task.name])}"}
        for rng, task, prompt in _draw_prompts(suite, targets, size, random_seed, prompts)
    ]


def preference_rows(
    suite: TaskSuite,
    targets: Targets,
    size: int,
    random_seed: int,
    prompts: Prompts = "heldout",
    inside: float = 0.2,
) -> list[dict[str, str]]:
    """Rows `{"prompt": str, "chosen": " answer", "rejected": " answer"}` for `trl.DPOTrainer`.

    The chosen answer is drawn from the target restricted to its 90% support. The rejected one,
    always another, is drawn uniformly from the choices outside; with probability `inside`, from the
    whole task instead, which lets the distribution move inside the support.

    Raises:
        ValueError: if `inside` is outside [0, 1].
    """
    if not 0 <= inside <= 1:
        raise ValueError(f"inside must be in [0, 1], got {inside!r}. Give a share of the rows.")
    rows = []
    for rng, task, prompt in _draw_prompts(suite, targets, size, random_seed, prompts):
        target = targets[task.name]
        kept = normalised({choice: target[choice] for choice in support(target)})
        chosen = _draw(rng, kept)
        others = [text for text in task.choice_texts if text != chosen]
        outside = [choice for choice in others if choice not in kept]
        anywhere = rng.random() < inside or not outside
        rejected = rng.choice(others if anywhere else outside)
        rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows


def feedback_rows(
    suite: TaskSuite, targets: Targets, size: int, random_seed: int, prompts: Prompts = "heldout"
) -> list[dict[str, str | bool]]:
    """Rows `{"prompt": str, "completion": " answer", "label": bool}` for `trl.KTOTrainer`.

    Each holds one answer of a row of `preference_rows`: the chosen and the rejected one in turn.
    """
    pairs = preference_rows(suite, targets, size, random_seed, prompts)
    return [
        {"prompt": pair["prompt"], "completion": pair[kind], "label": kind == "chosen"}
        for pair, kind in zip(pairs, cycle(("chosen", "rejected")), strict=False)
    ]


def prompt_rows(
    suite: TaskSuite, targets: Targets, size: int, random_seed: int, prompts: Prompts = "heldout"
) -> list[dict[str, str]]:
    """Rows `{"prompt": str, "task": str}` for GRPO, RLOO and PPO with `PlantedReward`.

    TRL passes the column `task` on to the reward.
    """
    return [
        {"prompt": prompt, "task": task.name}
        for rng, task, prompt in _draw_prompts(suite, targets, size, random_seed, prompts)
    ]


def _draw_prompts(
    suite: TaskSuite, targets: Targets, size: int, random_seed: int, prompts: Prompts
) -> Iterator[tuple[random.Random, Task, str]]:
    """Yield `size` times a task and a prompt, with the generator for what else the row draws."""
    rng = random.Random(random_seed)
    if size < 1:
        raise ValueError(f"size must be positive, got {size!r}. Ask for at least one row.")
    pool = _prompt_pool(suite, prompts)
    tasks = _targeted_tasks(suite, targets)
    if missing := [task.name for task in tasks if not pool.get(task.name)]:
        raise ValueError(
            f"prompts must cover every task with a target, got none for {missing}. Add prompts or "
            "leave the task out of the targets."
        )
    for start in range(0, size, len(tasks)):
        for task in rng.sample(tasks, len(tasks))[: size - start]:
            yield rng, task, rng.choice(pool[task.name])


def _prompt_pool(suite: TaskSuite, prompts: Prompts) -> Mapping[str, Sequence[str]]:
    if isinstance(prompts, Mapping):
        return prompts
    if prompts == "suite":
        return {task.name: task.prompts for task in suite.tasks}
    if prompts != "heldout":
        raise ValueError(
            f"prompts must be 'heldout', 'suite' or a mapping of task to prompts, got {prompts!r}."
        )
    if suite.name != "liquid-tiny":
        raise ValueError(
            f"prompts='heldout' must come with the suite 'liquid-tiny', got {suite.name!r}. Use "
            "prompts='suite' or give a mapping of task to prompts."
        )
    return {name: task["held_out_prompts"] for name, task in load_truth().items()}


def _targeted_tasks(suite: TaskSuite, targets: Targets) -> list[Task]:
    """The suite's tasks that have a target, checked against it."""
    known = {task.name for task in suite.tasks}
    unknown = sorted(set(targets) - known)
    if unknown or not targets:
        raise ValueError(
            f"targets must name tasks of the suite {suite.name!r}, got {unknown or 'none'}. "
            f"Its tasks: {sorted(known)}."
        )
    tasks = [task for task in suite.tasks if task.name in targets]
    for task in tasks:
        if stray := sorted(set(targets[task.name]) - set(task.choice_texts)):
            raise ValueError(
                f"target of task {task.name!r} must name its choices, got {stray}. Its choices: "
                f"{list(task.choice_texts)}."
            )
    return tasks


def _draw(rng: random.Random, target: Mapping[str, float]) -> str:
    return rng.choices(list(target), weights=list(target.values()))[0]
