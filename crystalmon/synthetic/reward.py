"""A reward that keeps answers inside each target's support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crystalmon.suites.tasks import TaskSuite
from crystalmon.synthetic.targets import Targets, support


class PlantedReward:
    """A reward that holds answers inside each target's 90% support and moves them there.

    An answer c inside the support earns 1 + bonus · p(c) / max p, an answer outside it 0, and a
    completion that is no choice of its task −penalty. So nothing is gained by leaving the support,
    and inside it probability moves towards the more probable choices.

    TRL (GRPO, RLOO) calls it with `prompts`, `completions` and the data set's columns, of which it
    needs `task`. A completion is a text, or chat messages of which the last one counts.

    Args:
        targets: task -> choice -> probability; those with probability 0 count as choices too.
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
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}.")
        self.__name__ = "planted_reward"  # TRL logs each reward under its function's name
        self.penalty = float(penalty)
        self._worth: dict[str, dict[str, float]] = {}
        listed = {task.name: task.choice_texts for task in suite.tasks} if suite else {}
        for task, target in targets.items():
            worth = dict.fromkeys([*listed.get(task, ()), *target], 0.0)
            inside = support(target)
            worth |= {choice: 1.0 + bonus * target[choice] / target[inside[0]] for choice in inside}
            self._worth[task] = worth

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        task: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """The reward of each completion; a `ValueError` without a column `task`."""
        if task is None:
            raise ValueError(
                "task must be a column of the data set, got none. Make the rows with prompt_rows."
            )
        return [
            self.score(name, each if isinstance(each, str) else str(each[-1]["content"]))
            for name, each in zip(task, completions, strict=True)
        ]

    def score(self, task: str, completion: str) -> float:
        """The reward of a text by the longest choice it begins with, after at most one space."""
        if task not in self._worth:
            raise ValueError(
                f"task must have a target, got {task!r}. Tasks with one: {sorted(self._worth)}."
            )
        text = completion.removeprefix(" ")
        begun = [choice for choice in self._worth[task] if text.startswith(choice)]
        return self._worth[task][max(begun, key=len)] if begun else -self.penalty
