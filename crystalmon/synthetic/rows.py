"""Training rows towards a target, in the shapes that the TRL trainers read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from crystalmon.suites.tasks import Task, TaskSuite
from crystalmon.synthetic.targets import Targets, load_truth, normalised, support

Prompts = Literal["heldout", "suite"] | Mapping[str, Sequence[str]]
"""Held-out wordings, the suite's own, or by task."""


def sft_rows(
    suite: TaskSuite, targets: Targets, size: int, seed: int, prompts: Prompts = "heldout"
) -> list[dict[str, str]]:
    """Prompt-completion rows whose answers are drawn from each task's target.

    Args:
        suite: names the tasks; its prompts are used if `prompts` is `"suite"`.
        targets: task -> choice -> probability; tasks of the suite without a target are left out.
        size: number of rows. Tasks take turns, so each block of as many rows as there are tasks
            holds each task once, in random order.
        seed: of the random numbers.
        prompts: `"heldout"` for wordings that the probe never shows (known for `liquid-tiny`
            only), `"suite"` for the suite's own, or a mapping from task to prompts.

    Returns:
        Rows `{"prompt": str, "completion": " answer"}`, as `trl.SFTTrainer` reads them.

    Raises:
        ValueError: if a size is not positive, or suite, targets and prompts do not fit.
    """
    return [
        {"prompt": prompt, "completion": f" {_draw(rng, targets[task.name])}"}
        for rng, task, prompt in _draw_prompts(suite, targets, size, seed, prompts)
    ]


def preference_rows(
    suite: TaskSuite,
    targets: Targets,
    size: int,
    seed: int,
    prompts: Prompts = "heldout",
    inside: float = 0.2,
) -> list[dict[str, str]]:
    """Preferences that keep answers inside each target's 90% support.

    The chosen answer is drawn from the target restricted to its support. The rejected one is drawn
    uniformly from the choices outside; with probability `inside`, from the whole task instead.

    Args:
        suite: see `sft_rows`.
        targets: see `sft_rows`.
        size: number of rows.
        seed: of the random numbers.
        prompts: see `sft_rows`.
        inside: share of rows, in [0, 1], whose rejected answer may be a supported one too. These
            let the distribution move inside the support.

    Returns:
        Rows `{"prompt": str, "chosen": " answer", "rejected": " answer"}`, the two never alike, as
        `trl.DPOTrainer` reads them.

    Raises:
        ValueError: see `sft_rows`; also if `inside` is outside [0, 1], or a task has one choice.
    """
    if not 0 <= inside <= 1:
        raise ValueError(f"inside must be in [0, 1], got {inside!r}. Give a share of the rows.")
    rows = []
    for rng, task, prompt in _draw_prompts(suite, targets, size, seed, prompts):
        kept = _restricted(targets[task.name])
        chosen = _draw(rng, kept)
        others = [choice.text for choice in task.choices if choice.text != chosen]
        outside = [choice for choice in others if choice not in kept]
        if not others:
            raise ValueError(
                f"task {task.name!r} must have at least 2 choices, got 1. Without a second one "
                "there is nothing to reject."
            )
        anywhere = rng.random() < inside or not outside
        rejected = rng.choice(others if anywhere else outside)
        rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows


def feedback_rows(
    suite: TaskSuite,
    targets: Targets,
    size: int,
    seed: int,
    prompts: Prompts = "heldout",
    inside: float = 0.2,
) -> list[dict[str, str | bool]]:
    """The preferences of `preference_rows`, one answer a row with its label, for KTO.

    Wanted and unwanted answers alternate, half of the rows each (one more wanted if `size` is
    odd).

    Args:
        suite: see `sft_rows`.
        targets: see `sft_rows`.
        size: number of rows.
        seed: of the random numbers.
        prompts: see `sft_rows`.
        inside: see `preference_rows`.

    Returns:
        Rows `{"prompt": str, "completion": " answer", "label": bool}`, as `trl.KTOTrainer` reads
        them.

    Raises:
        ValueError: see `preference_rows`.
    """
    rows: list[dict[str, str | bool]] = []
    for index, pair in enumerate(preference_rows(suite, targets, size, seed, prompts, inside)):
        wanted = index % 2 == 0
        answer = pair["chosen"] if wanted else pair["rejected"]
        rows.append({"prompt": pair["prompt"], "completion": answer, "label": wanted})
    return rows


def prompt_rows(
    suite: TaskSuite, targets: Targets, size: int, seed: int, prompts: Prompts = "heldout"
) -> list[dict[str, str]]:
    """Prompts with their task's name, for GRPO, RLOO and PPO with `PlantedReward`.

    Args:
        suite: see `sft_rows`.
        targets: see `sft_rows`.
        size: number of rows.
        seed: of the random numbers.
        prompts: see `sft_rows`.

    Returns:
        Rows `{"prompt": str, "task": str}`; TRL passes the column `task` on to the reward.

    Raises:
        ValueError: see `sft_rows`.
    """
    return [
        {"prompt": prompt, "task": task.name}
        for rng, task, prompt in _draw_prompts(suite, targets, size, seed, prompts)
    ]


def _draw_prompts(
    suite: TaskSuite, targets: Targets, size: int, seed: int, prompts: Prompts
) -> Iterator[tuple[random.Random, Task, str]]:
    """Yield `size` times a task and a prompt; every task once per round, in random order.

    With them comes the one generator of random numbers, for what else is drawn of the row.
    """
    rng = random.Random(seed)
    if size < 1:
        raise ValueError(f"size must be positive, got {size!r}. Ask for at least one row.")
    pool = _prompt_pool(suite, prompts)
    tasks = _targeted_tasks(suite, targets)
    missing = [task.name for task in tasks if not pool.get(task.name)]
    if missing:
        raise ValueError(
            f"prompts must cover every task with a target, got none for {missing}. Add prompts or "
            "leave the task out of the targets."
        )
    for start in range(0, size, len(tasks)):
        order = rng.sample(tasks, len(tasks))
        for task in order[: size - start]:
            yield rng, task, rng.choice(pool[task.name])


def _prompt_pool(suite: TaskSuite, prompts: Prompts) -> Mapping[str, Sequence[str]]:
    if isinstance(prompts, Mapping):
        return prompts
    if prompts == "suite":
        return {task.name: task.prompts for task in suite.tasks}
    if prompts != "heldout":
        raise ValueError(
            f"prompts must be 'heldout', 'suite' or a mapping of task to prompts, got {prompts!r}. "
            "Use 'suite' for the prompts of the suite."
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
        stray = sorted(set(targets[task.name]) - {choice.text for choice in task.choices})
        if stray:
            raise ValueError(
                f"target of task {task.name!r} must name its choices, got {stray}. Its choices: "
                f"{[choice.text for choice in task.choices]}."
            )
    return tasks


def _restricted(target: Mapping[str, float]) -> dict[str, float]:
    return normalised({choice: target[choice] for choice in support(target)})


def _draw(rng: random.Random, target: Mapping[str, float]) -> str:
    return rng.choices(list(target), weights=list(target.values()))[0]
