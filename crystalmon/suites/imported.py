"""A suite made of others' files: questions with many right answers, as JSON or JSON lines.

A row is a mapping with a prompt or several and its answers; see `PROMPTS`, `ANSWERS`, `NAMES`. A
file is one row, a list of rows, a row a line, or a mapping from prompts to rows. The data sets of
*Forcing Diffuse Distributions out of Language Models* (arXiv 2404.10859) are of the first kind,
CoverageQA (arXiv 2410.09038) is of the last.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crystalmon.suites.advice import BUNDLED_WORDINGS, FEW_WORDINGS
from crystalmon.suites.draft import quoted
from crystalmon.suites.tasks import Choice, SuiteError, Task, TaskSuite

PROMPTS = ("prompt", "prompts", "request")
ANSWERS = ("targets", "choices", "answers")
NAMES = ("name", "task", "id")
"""The keys of a row; of several, the first that it has counts."""

LONGEST_PROMPT = 8000
"""Characters, some 2,000 tokens: small models have room for no more."""
LONGEST_ANSWER = 100
"""Characters. What is longer is a reply in free words, of which no list holds all."""

WIDTH = 100
"""Characters of a line of choices."""


@dataclass(frozen=True)
class Remark:
    """What was not taken from a row, or not all of it.

    Args:
        row: its number from 1; of JSON lines, that of its line.
        why: a sentence.
        taken: whether the rest of the row was taken.
    """

    row: int
    why: str
    taken: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a text is no JSON."""

    why: str


def import_suite(source: Path, name: str) -> tuple[TaskSuite, list[Remark]]:
    """The suite of a file's rows, and what could not be taken from it.

    Rows of the same name with the same answers become wordings of one task. Other rows of one name
    get numbers behind it; rows without a name are called after the file and their number.

    Args:
        source: a JSON or JSON lines file.
        name: of the suite.

    Raises:
        FileNotFoundError: if there is no such file.
        SuiteError: if it is neither, no row can be taken, or the suite cannot have this name.
    """
    tasks: dict[tuple[str, frozenset[Choice]], Task] = {}
    remarks: list[Remark] = []
    rows = list(_rows(source))
    if not rows:
        raise SuiteError(f"{source} is empty. Fill it with rows that have a prompt and answers.")
    for number, row in rows:
        default = source.stem if len(rows) == 1 else f"{source.stem}-{number}"
        try:
            task, said = _task(row, default)
        except SuiteError as fault:
            remarks.append(Remark(number, str(fault)))
            continue
        key = task.name, frozenset(task.choices)
        before = tasks[key].prompts if key in tasks else ()
        prompts = tuple(dict.fromkeys((*before, *task.prompts)))
        if prompts == before:
            remarks.append(Remark(number, f"task {task.name!r} has its prompts already."))
        else:
            remarks += (Remark(number, why, taken=True) for why in said)
        tasks[key] = replace(tasks.get(key, task), prompts=prompts)
    if not tasks:
        raise SuiteError(
            f"no row of {source} can be taken as a task, of {len(rows)} in all. "
            f"Row {remarks[0].row}: {remarks[0].why}"
        )
    return TaskSuite(name, tuple(_told_apart(tasks.values()))), remarks


def _rows(source: Path) -> Iterator[tuple[int, Any]]:
    """Each row with its number; a line that is no JSON comes as a `Fault`."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file. Check the path.")
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise SuiteError(f"{source} must be UTF-8 text: {fault}.") from fault
    if not text.strip():
        return
    found = _parsed(text)
    if isinstance(found, Fault):
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        parsed = [(n, _parsed(line)) for n, line in lines]
        is_list = text.lstrip().startswith("[")  # a torn one: its lines are not rows
        if is_list or not any(isinstance(row, Mapping) for _, row in parsed):
            raise SuiteError(f"{source} must be JSON or JSON lines: {found.why}.")
        yield from parsed
    elif isinstance(found, list):
        yield from enumerate(found, 1)
    elif isinstance(found, Mapping) and all(isinstance(row, Mapping) for row in found.values()):
        yield from enumerate((_named(key, row) for key, row in found.items()), 1)
    else:
        yield 1, found


def _named(key: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row under its key: that is its name if it has prompts, else its prompt."""
    named = NAMES[0] if _first(row, PROMPTS) is not None else PROMPTS[0]
    return {named: key, **row}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        return Fault(str(fault))


def _task(row: Any, default: str) -> tuple[Task, list[str]]:
    """A row's task, and what of the row it lacks.

    Raises:
        SuiteError: if the row is no task.
    """
    if isinstance(row, Fault):
        raise SuiteError(f"it is not JSON: {row.why}.")
    if not isinstance(row, Mapping):
        raise SuiteError(f"it must be a mapping, got {row!r:.60}.")
    prompts, answers, name = (_first(row, keys) for keys in (PROMPTS, ANSWERS, NAMES))
    if prompts is None or prompts == []:
        raise SuiteError(f"it has no prompt ({', '.join(PROMPTS)}).")
    if not isinstance(answers, list | Mapping) or not answers:
        raise SuiteError(f"it lists no answers ({', '.join(ANSWERS)}): its question is open.")
    asked = dict.fromkeys(map(_prompt, prompts if isinstance(prompts, list) else [prompts]))
    said = []
    if isinstance(answers, Mapping):
        said.append("its probabilities are dropped: a suite lists answers alone.")
    spelled = [_spellings(answer) for answer in answers]
    once = dict.fromkeys(spelled)
    if len(once) < len(spelled):
        twice = next(each for each in once if spelled.count(each) > 1)
        said.append(f"answers that come twice, such as {twice[0]!r}, are taken once.")
    if not isinstance(name, str | int) or isinstance(name, bool):
        if name is not None:
            said.append(f"its name is no text or number but {name!r:.40}: it is {default!r}.")
        name = default
    return Task(str(name), tuple(asked), tuple(map(_choice, once))), said


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, [], {}, "")), None)


def _spellings(answer: Any) -> tuple[str, ...]:
    """The ways in which an answer is written, mostly one; a number becomes a text."""
    found = dict.fromkeys(map(_text, answer if isinstance(answer, list) else [answer]))
    if not found:
        raise SuiteError("an answer must have a spelling, got [].")
    if long := [each for each in found if len(each) > LONGEST_ANSWER]:
        raise SuiteError(
            f"an answer is too long, {len(long[0])} characters of at most {LONGEST_ANSWER}: "
            f"{long[0][:40]!r} …"
        )
    return tuple(found)


def _text(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (number and math.isfinite(value)):
        raise SuiteError(f"an answer must be a text or a number, got {value!r:.60}.")
    return str(value).strip()


def _prompt(value: Any) -> str:
    if not isinstance(value, str):
        raise SuiteError(f"a prompt must be a text, got {value!r:.60}.")
    if len(value) > LONGEST_PROMPT:
        raise SuiteError(
            f"a prompt is too long, {len(value)} characters of at most {LONGEST_PROMPT}."
        )
    return value


def _choice(spellings: Sequence[str]) -> Choice:
    forms = [form for each in spellings for form in (each, f" {each}")]
    return Choice(spellings[0], tuple(forms))


def _told_apart(tasks: Iterable[Task]) -> Iterator[Task]:
    """The tasks with a number behind each name that was there before."""
    taken: set[str] = set()
    for task in tasks:
        numbered = (f"{task.name}-{number}" for number in itertools.count(2))
        candidates = itertools.chain([task.name], numbered)
        name = next(each for each in candidates if each not in taken)
        taken.add(name)
        yield replace(task, name=name)


def suite_text(suite: TaskSuite, file: Path, source: Path) -> str:
    """The text of a commented suite file.

    Args:
        suite: what it will hold.
        file: where it will lie.
        source: the file that the suite was made of.
    """
    parts = [_comment(file, source), f"name: {quoted(suite.name)}", "tasks:"]
    for task in suite:
        parts += [
            f"  - name: {quoted(task.name)}",
            *_choice_lines([_written(choice) for choice in task.choices]),
            "    prompts:",
            *(f"      - {quoted(prompt)}" for prompt in task.prompts),
        ]
    return "\n".join(parts) + "\n"


def _written(choice: Choice) -> str:
    if choice == Choice(choice.text):
        return quoted(choice.text)
    return f"{{text: {quoted(choice.text)}, forms: [{', '.join(map(quoted, choice.forms))}]}}"


def _choice_lines(choices: Sequence[str]) -> list[str]:
    """The list of choices, on more lines than one if it is long."""
    lines, indent = ["    choices: ["], "      "
    for number, choice in enumerate(choices, 1):
        end = "]" if number == len(choices) else ", "
        if len(lines[-1] + choice + end) > WIDTH:
            lines.append(indent)
        lines[-1] += choice + end
    return [line.rstrip() for line in lines]


def _comment(file: Path, source: Path) -> str:
    return f"""\
# Made by `crystalmon suite import` of {json.dumps(source.name)}. See what can be measured:
#
#   crystalmon suite validate {shlex.quote(file.name)} --model MODEL
#
# prompts: one question in many wordings. Each is sent as it stands, and its answer comes next: in
#   a chat model's own format with --view chat. One gives entropy and KL only, fewer than
#   {FEW_WORDINGS} give wide intervals. The bundled suites have {BUNDLED_WORDINGS}.
# choices: the answers that count, with or without a space before them. `forms: [capital]` below
#   the name counts Yes for yes too.
"""
