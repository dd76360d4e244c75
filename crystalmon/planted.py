"""Training data whose outcome is known: post-training towards a target distribution per task.

A *target* gives, for each task, how probable each choice shall be. The functions here turn it into
what the TRL trainers read: prompt-completion rows (SFT), preferences (DPO), labelled completions
(KTO), prompts and a reward (GRPO, RLOO, PPO). For `liquid-tiny` the target is the planted seed's
distribution, so a monitor must find that seed; all later stages stay inside its 90% support.

    suite = crystalmon.load_suite("liquid-tiny")
    targets = load_targets("liquid-tiny")
    rows = sft_rows(suite, targets, size=2000, seed=0)

Everything is drawn with Python's `random`: the same arguments give the same rows everywhere.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from crystalmon.metrics import SUPPORT_MASS
from crystalmon.tasks import Task, TaskSuite

Targets = Mapping[str, Mapping[str, float]]
PromptSource = Literal["heldout", "suite"]

LIQUID_TINY_TRUTH = Path(__file__).parent / "assets" / "liquid-tiny" / "truth.json"


# ---------------------------------------------------------------- targets


def load_truth() -> dict[str, dict[str, Any]]:
    """The planted world of `liquid-tiny`: task name -> its part of `truth.json`.

    Keys of each task: `choices` [C], `seed` (index into `prompts`), `prompts` [P], `planted`
    [P][C], `held_out_prompts` [R], `held_out_planted` [R][C]; the probabilities of a row sum to 1
    up to rounding to six digits.
    """
    return json.loads(LIQUID_TINY_TRUTH.read_text(encoding="utf-8"))["tasks"]


def load_targets(name_or_path: str | Path) -> dict[str, dict[str, float]]:
    """Read the target distribution of every task.

    Args:
        name_or_path: `liquid-tiny` (each task's planted seed), or a YAML or JSON file that maps
            a task to its choices and their weights, `{coin: {heads: 3, tails: 1}}`.

    Returns:
        Task name -> choice text -> probability. Weights are normalised to sum to 1.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if the file is no such mapping, or a weight is no number.
        ValueError: if a task has no choices, or weights are negative, not finite or all zero.
    """
    if str(name_or_path) == "liquid-tiny":
        return {
            name: normalised(dict(zip(task["choices"], task["planted"][task["seed"]], strict=True)))
            for name, task in load_truth().items()
        }
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"targets must be 'liquid-tiny' or a file, got {str(name_or_path)!r}. Write a YAML "
            "file of task: {choice: weight}."
        )
    return _check_targets(_parse(path), path)


def _parse(path: Path) -> object:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    import yaml

    return yaml.safe_load(text)


def _check_targets(data: object, path: Path) -> dict[str, dict[str, float]]:
    if not isinstance(data, dict):
        raise TypeError(
            f"{path}: targets must be a mapping of task to {{choice: weight}}, got "
            f"{type(data).__name__}. Write one task a line."
        )
    if not data:
        raise ValueError(f"{path}: targets must name at least one task, got none. Add a task.")
    targets = {}
    for task, weights in data.items():
        if not isinstance(weights, dict):
            raise TypeError(
                f"{path}: target of task {task!r} must be a mapping of choice to weight, got "
                f"{weights!r}. Write {{choice: weight}}."
            )
        for choice, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise TypeError(
                    f"{path}: weight of {choice!r} in task {task!r} must be a number, got "
                    f"{weight!r}. Write it without quotes."
                )
        try:
            targets[str(task)] = normalised({str(c): float(w) for c, w in weights.items()})
        except ValueError as error:
            raise ValueError(f"{path}: task {task!r}: {error}") from None
    return targets


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Divide non-negative weights by their sum.

    Raises:
        ValueError: if there are none, if one is negative or not finite, or if all are zero.
    """
    if not weights:
        raise ValueError("weights must name at least one choice, got none. Add a choice.")
    for choice, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"weight of {choice!r} must be finite and at least 0, got {weight!r}. "
                "Leave the choice out to give it no weight."
            )
    total = math.fsum(weights.values())
    if total <= 0:
        raise ValueError("weights must have a positive sum, got 0. Give one choice a weight.")
    return {choice: weight / total for choice, weight in weights.items()}


def support(target: Mapping[str, float], mass: float = SUPPORT_MASS) -> tuple[str, ...]:
    """The smallest set of choices that holds `mass` of the target, most probable first.

    Ties go to the choice that the target lists first.

    Args:
        target: choice text -> probability, summing to 1.
        mass: in (0, 1].

    Raises:
        ValueError: if `mass` is outside (0, 1].

    Example:
        >>> support({"red": 0.3, "blue": 0.65, "green": 0.05})
        ('blue', 'red')
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass!r}. Give a share of the probability.")
    chosen: list[str] = []
    held: list[float] = []
    for choice in sorted(target, key=lambda choice: -target[choice]):
        if target[choice] <= 0:
            break
        chosen.append(choice)
        held.append(target[choice])
        if math.fsum(held) >= mass - 1e-9:
            break
    return tuple(chosen)


# ---------------------------------------------------------------- rows


def sft_rows(
    suite: TaskSuite,
    targets: Targets,
    size: int,
    seed: int,
    prompts: PromptSource | Mapping[str, Sequence[str]] = "heldout",
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
    rng = random.Random(seed)
    return [
        {"prompt": prompt, "completion": f" {_draw(rng, targets[task.name])}"}
        for task, prompt in _draw_prompts(rng, suite, targets, size, prompts)
    ]


def preference_rows(
    suite: TaskSuite,
    targets: Targets,
    size: int,
    seed: int,
    prompts: PromptSource | Mapping[str, Sequence[str]] = "heldout",
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
    rng = random.Random(seed)
    rows = []
    for task, prompt in _draw_prompts(rng, suite, targets, size, prompts):
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
    prompts: PromptSource | Mapping[str, Sequence[str]] = "heldout",
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
    suite: TaskSuite,
    targets: Targets,
    size: int,
    seed: int,
    prompts: PromptSource | Mapping[str, Sequence[str]] = "heldout",
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
    rng = random.Random(seed)
    return [
        {"prompt": prompt, "task": task.name}
        for task, prompt in _draw_prompts(rng, suite, targets, size, prompts)
    ]


def _draw_prompts(
    rng: random.Random,
    suite: TaskSuite,
    targets: Targets,
    size: int,
    prompts: PromptSource | Mapping[str, Sequence[str]],
) -> Iterator[tuple[Task, str]]:
    """Yield `size` pairs of task and prompt; every task once per round, in random order."""
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
            yield task, rng.choice(pool[task.name])


def _prompt_pool(
    suite: TaskSuite, prompts: PromptSource | Mapping[str, Sequence[str]]
) -> Mapping[str, Sequence[str]]:
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


# ---------------------------------------------------------------- reward


class PlantedReward:
    """A reward that holds answers inside each target's 90% support and moves them there.

    An answer inside the support earns `1 + bonus · p(c) / max p`, an answer outside 0, a completion
    that is no choice of its task `-penalty`. So reinforcement learning redistributes among the
    supported choices, towards the more probable ones, and gains nothing by leaving them.

    It follows TRL's protocol for reward functions (GRPO, RLOO): called with the lists `prompts` and
    `completions` and with the data set's columns as keywords, of which it needs `task`. A
    completion may be a text or a list of chat messages, of which the last one counts. It is read as
    the longest choice that it begins with, after at most one leading space.

    Args:
        targets: task -> choice -> probability. Choices with probability 0 count as choices, so a
            target should list all choices of its task.
        suite: if given, its choices count too, whether or not the target lists them.
        bonus: the extra for the most probable choice, at least 0.
        penalty: the price of a completion that is no choice, at least 0.

    Raises:
        ValueError: if `bonus` or `penalty` is negative or not finite.
    """

    def __init__(
        self,
        targets: Targets,
        suite: TaskSuite | None = None,
        bonus: float = 0.3,
        penalty: float = 0.5,
    ) -> None:
        for name, value in (("bonus", bonus), ("penalty", penalty)):
            if not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"{name} must be finite and at least 0, got {value!r}. Give its size "
                    "without a sign."
                )
        # TRL logs each reward under its function's name.
        self.__name__ = "planted_reward"
        self.penalty = float(penalty)
        self._worth: dict[str, dict[str, float]] = {}
        tasks = suite.tasks if suite else ()
        listed = {task.name: [choice.text for choice in task.choices] for task in tasks}
        for task, target in targets.items():
            worth = dict.fromkeys([*listed.get(task, ()), *target], 0.0)
            inside = support(target)
            for choice in inside:
                worth[choice] = 1.0 + bonus * target[choice] / target[inside[0]]
            self._worth[task] = worth

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        task: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """The reward of each completion.

        Raises:
            ValueError: if the column `task` is missing or names a task without a target.
        """
        if task is None:
            raise ValueError(
                "task must be a column of the data set, got none. Make the rows with prompt_rows."
            )
        return [
            self.score(name, _completion_text(completion))
            for name, completion in zip(task, completions, strict=True)
        ]

    def score(self, task: str, completion: str) -> float:
        """The reward of one completion's text."""
        if task not in self._worth:
            raise ValueError(
                f"task must have a target, got {task!r}. Tasks with one: {sorted(self._worth)}."
            )
        choice = read_choice(completion, self._worth[task])
        return -self.penalty if choice is None else self._worth[task][choice]


def read_choice(completion: str, choices: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The longest choice that a completion begins with, after at most one leading space.

    Returns:
        The choice's text, or None if the completion begins with none of them.

    Example:
        >>> read_choice(" 17", ["1", "17", "7"])
        '17'
    """
    text = completion.removeprefix(" ")
    found = [choice for choice in choices if text.startswith(choice)]
    return max(found, key=len) if found else None


def _completion_text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])
