"""The texts of a suite's prompts and choices, as far as a run or its suite still tells them."""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crystalmon.runs.plurals import counted
from crystalmon.runs.run import Run, names_of
from crystalmon.suites.tasks import Choice, Task, TaskSuite, load_suite

SHOWN = 48
"""Characters of a prompt that are shown."""


@dataclass(frozen=True)
class TaskTexts:
    """What a task's prompts [P] and choices [C] say."""

    prompts: tuple[str, ...]
    choices: tuple[str, ...]


def task_texts(run: Run, suite: TaskSuite | None = None) -> tuple[dict[str, TaskTexts], bool]:
    """The texts of every task that was probed, and whether all of them are the real ones.

    They are taken from `suite` if it is given, else from what `run.json` keeps under
    `suite_texts`, else from the bundled suite of the run's name and hash. Where none of these
    fits, prompts and choices are numbered.

    Args:
        run: the run.
        suite: the suite, for a run of a suite file that `run.json` does not quote.
    """
    texts: dict[str, TaskTexts] = {}
    known = True
    found = _told_by(run) if suite is None else texts_of(suite)
    for name, task in run.records[-1].tasks.items() if run.records else ():
        text = found.get(name)
        if text is None or not task.fits(len(text.prompts), len(text.choices)):
            known = False
            text = _numbered(_prompt_count(run, name), task.q.shape[1])
        texts[name] = text
    return texts, known


def told_apart(
    runs: Sequence[Run], suite: TaskSuite | None = None
) -> tuple[list[dict[str, str]], dict[str, TaskTexts], bool]:
    """What the tasks of several runs are called beside each other.

    Tasks of one name are one task if their prompts and choices are the same. Else their names tell
    the suites too: `right (judge)`.

    Args:
        runs, suite: see `task_texts`.

    Returns:
        By run, its tasks' own names and those that they have here; the texts by the latter;
        whether all are the real ones.
    """
    told = [task_texts(run, suite) for run in runs]
    own = [(run, texts) for run, (texts, _) in zip(runs, told, strict=True)]
    found = [
        {name: _lent(run, name, text, own) for name, text in texts.items()} for run, texts in own
    ]
    variants: dict[str, dict[TaskTexts, int]] = {}
    for index, texts in enumerate(found):
        for name, text in texts.items():
            variants.setdefault(name, {}).setdefault(text, index)
    suites, folders = suite_names(runs), names_of(runs)
    called: dict[tuple[str, TaskTexts], str] = {}
    for name, each in variants.items():
        labels = [suites[index] for index in each.values()]
        if len(set(labels) - {""}) < len(labels):
            labels = [folders[index] for index in each.values()]
        for text, label in zip(each, labels, strict=True):
            called[name, text] = f"{name} ({label})" if len(each) > 1 else name
    names = [{name: called[name, text] for name, text in texts.items()} for texts in found]
    texts = {shown: text for (_, text), shown in called.items()}
    return names, texts, all(known for _, known in told)


def suite_names(runs: Sequence[Run]) -> list[str]:
    """By run, its suite's name; of other suites of that name, with the beginning of its hash.

    A run that does not tell its suite has none.
    """
    names = [str(run.info.get("suite", "")) for run in runs]
    hashes = [str(run.info.get("suite_hash", "")) for run in runs]
    kinds = Counter(name for name, _ in set(zip(names, hashes, strict=True)))
    return [
        f"{name} {digest[:4]}" if kinds[name] > 1 and digest else name
        for name, digest in zip(names, hashes, strict=True)
    ]


def _lent(
    run: Run, name: str, own: TaskTexts, others: Sequence[tuple[Run, Mapping[str, TaskTexts]]]
) -> TaskTexts:
    """A task's texts; where they are not known, those that another run of its suite has."""
    if not _is_numbered(own):
        return own
    task, suite = run.records[-1].tasks[name], run.info.get("suite_hash")
    fitting = [own]
    for other, texts in others:
        text, theirs = texts.get(name, own), other.info.get("suite_hash")
        alike = theirs == suite or None in (theirs, suite)
        if alike and task.fits(len(text.prompts), len(text.choices)):
            fitting.append(text)
    return max(fitting, key=lambda text: (not _is_numbered(text), len(text.prompts)))


def texts_of(suite: TaskSuite) -> dict[str, TaskTexts]:
    """The texts of a suite's tasks, by name."""
    return {task.name: TaskTexts(task.prompts, task.choice_texts) for task in suite}


def quoted_suite(run_info: Mapping[str, Any]) -> TaskSuite | None:
    """The suite of a run, from what its `run.json` quotes of it; None if that is not all of it."""
    try:
        tasks = []
        for name, texts in run_info["suite_texts"].items():
            forms = run_info.get("suite_forms", {}).get(name, [()] * len(texts["choices"]))
            pairs = zip(texts["choices"], forms, strict=True)
            choices = tuple(Choice(text, tuple(own)) for text, own in pairs)
            tasks.append(Task(name, tuple(texts["prompts"]), choices))
        suite = TaskSuite(run_info["suite"], tuple(tasks))
        return suite if suite.hash == run_info.get("suite_hash") else None
    except (AttributeError, KeyError, TypeError, ValueError):  # left out, or damaged
        return None


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


def _is_numbered(text: TaskTexts) -> bool:
    return text == _numbered(len(text.prompts), len(text.choices))


def _numbered(prompts: int, choices: int) -> TaskTexts:
    return TaskTexts(
        tuple(f"prompt {index}" for index in range(prompts)),
        tuple(f"choice {index}" for index in range(choices)),
    )
