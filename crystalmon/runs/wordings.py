"""The texts of a suite's prompts and choices, as far as a run or its suite still tells them."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crystalmon.runs.plurals import counted
from crystalmon.runs.run import Run
from crystalmon.suites.tasks import TaskSuite, load_suite

SHOWN = 48
"""Characters of a prompt that are shown."""


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
        found = _told_by(run) if suite is None else texts_of(suite)
        for name, task in run.records[-1].tasks.items() if run.records else ():
            text = found.get(name)
            if text is None or not task.fits(len(text.prompts), len(text.choices)):
                known = False
                text = texts.get(name) or _numbered(_prompt_count(run, name), task.q.shape[1])
            texts[name] = text
    return texts, known


def texts_of(suite: TaskSuite) -> dict[str, TaskTexts]:
    """The texts of a suite's tasks, by name."""
    return {task.name: TaskTexts(task.prompts, task.choice_texts) for task in suite}


def end_words(seed_set: Sequence[int | None], prompts: Sequence[str] = ()) -> str:
    """Where a task's answers may end, in words; nothing before the onset.

    Args:
        seed_set: base wordings, and None for none of them, the likeliest first.
        prompts: [P] the wordings; the likeliest is quoted from them.

    >>> end_words([2, 0, None])
    '2 wordings or none'
    >>> end_words([None]), end_words([1], ["A digit:", "Any digit:"])
    ('none of the base', "1 wording, 'Any digit:'")
    """
    if not seed_set:
        return ""
    likeliest, number = seed_set[0], len(seed_set) - list(seed_set).count(None)
    if not number:
        return "none of the base"
    words = counted(number, "wording")
    if likeliest is None:
        return f"none or {words}"
    words += " or none" if None in seed_set else ""
    if not prompts:
        return words
    return f"{words}, {'likeliest ' if len(seed_set) > 1 else ''}{quoted(prompts[likeliest])}"


def quoted(prompt: str) -> str:
    """The beginning of a prompt, in quotes."""
    return repr(textwrap.shorten(prompt, SHOWN, placeholder="…"))


def _told_by(run: Run) -> dict[str, TaskTexts]:
    kept = run.info.get("suite_texts")
    if not isinstance(kept, Mapping):
        try:
            suite = load_suite(str(run.info.get("suite")))
        except (ValueError, OSError):
            return {}
        return texts_of(suite) if suite.hash == run.info.get("suite_hash") else {}
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
