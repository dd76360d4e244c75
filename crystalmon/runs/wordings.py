"""The words of a suite's tasks, as far as a run or its suite still tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crystalmon.runs.reader import Run
from crystalmon.suites.tasks import TaskSuite, load_suite


@dataclass(frozen=True)
class TaskTexts:
    """What a task's prompts and choices are called.

    Args:
        prompts: [P] their texts.
        choices: [C] their texts.
    """

    prompts: tuple[str, ...]
    choices: tuple[str, ...]


def task_texts(
    runs: Sequence[Run], suite: TaskSuite | None = None
) -> tuple[dict[str, TaskTexts], bool]:
    """The texts of every task that was probed, and whether all of them are the real ones.

    They are taken from `suite` if it is given, else from what `run.json` keeps under
    `suite_texts`, else from the bundled suite of the run's name and hash. Where none of these
    fits, prompts and choices are numbered.

    Args:
        runs: the runs, later ones winning.
        suite: the suite, for runs of a suite file that `run.json` does not quote.
    """
    texts: dict[str, TaskTexts] = {}
    known = True
    for run in runs:
        found = _from_suite(suite) if suite is not None else _from_run(run)
        for name, task in run.records[-1].tasks.items() if run.records else ():
            shape = task.q.shape
            text = found.get(name)
            if text is None or (len(text.prompts), len(text.choices)) != shape:
                known = False
                text = texts.get(name) or _numbered(*shape)
            texts[name] = text
    return texts, known


def _from_suite(suite: TaskSuite) -> dict[str, TaskTexts]:
    return {task.name: TaskTexts(task.prompts, task.choice_texts) for task in suite}


def _from_run(run: Run) -> dict[str, TaskTexts]:
    kept = run.info.get("suite_texts")
    if isinstance(kept, Mapping):
        pairs = {name: _from_json(value) for name, value in kept.items()}
        return {name: text for name, text in pairs.items() if text is not None}
    try:
        suite = load_suite(str(run.info.get("suite")))
    except (ValueError, OSError):
        return {}
    return _from_suite(suite) if suite.hash == run.info.get("suite_hash") else {}


def _from_json(value: Any) -> TaskTexts | None:
    try:
        return TaskTexts(tuple(map(str, value["prompts"])), tuple(map(str, value["choices"])))
    except (TypeError, KeyError):
        return None


def _numbered(prompts: int, choices: int) -> TaskTexts:
    return TaskTexts(
        tuple(f"prompt {index}" for index in range(prompts)),
        tuple(f"choice {index}" for index in range(choices)),
    )
