"""The texts of a suite's prompts and choices, as far as a run or its suite still tells them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crystalmon.runs.run import Run
from crystalmon.suites.tasks import TaskSuite, load_suite


@dataclass(frozen=True)
class TaskTexts:
    """What a task's prompts [P] and choices [C] say."""

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
        found = _told_by(run) if suite is None else _of_suite(suite)
        for name, task in run.records[-1].tasks.items() if run.records else ():
            text = found.get(name)
            if text is None or not task.fits(len(text.prompts), len(text.choices)):
                known = False
                text = texts.get(name) or _numbered(_prompt_count(run, name), task.q.shape[1])
            texts[name] = text
    return texts, known


def _of_suite(suite: TaskSuite) -> dict[str, TaskTexts]:
    return {task.name: TaskTexts(task.prompts, task.choice_texts) for task in suite}


def _told_by(run: Run) -> dict[str, TaskTexts]:
    kept = run.info.get("suite_texts")
    if not isinstance(kept, Mapping):
        try:
            suite = load_suite(str(run.info.get("suite")))
        except (ValueError, OSError):
            return {}
        return _of_suite(suite) if suite.hash == run.info.get("suite_hash") else {}
    texts = {}
    for name, value in kept.items():
        with contextlib.suppress(TypeError, KeyError):
            prompts, choices = (tuple(map(str, value[part])) for part in ("prompts", "choices"))
            texts[name] = TaskTexts(prompts, choices)
    return texts


def _prompt_count(run: Run, name: str) -> int:
    """Of a task: as a probe of all prompts tells it, or else as far as any was asked."""
    count = 0
    for record in run.records:
        task = record.tasks[name]
        count = max(count, int(task.rows[-1]) + 1)
        if task.asked is None:
            break
    return count


def _numbered(prompts: int, choices: int) -> TaskTexts:
    return TaskTexts(
        tuple(f"prompt {index}" for index in range(prompts)),
        tuple(f"choice {index}" for index in range(choices)),
    )
