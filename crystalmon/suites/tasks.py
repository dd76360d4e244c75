"""Suites of random tasks: parsed from YAML or made in Python, validated, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crystalmon.suites.checks import check_keys, check_name, check_text, check_unique, read_yaml
from crystalmon.suites.forms import PARTS, widen

SUITES_DIR = Path(__file__).parent


class SuiteError(ValueError):
    """A suite that cannot be used; the message names the file and the place."""


@dataclass(frozen=True)
class Choice:
    """One allowed answer and the surface forms that count as it.

    Args:
        text: the answer's name, unique within its task.
        forms: what a completion may begin with; by default the text, and a space and the text.
    """

    text: str
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("choice", self.text, SuiteError)
        if self.forms == ():
            object.__setattr__(self, "forms", (self.text, f" {self.text}"))
        _check_filled(f"forms of choice {self.text!r}", self.forms, tuple)
        for form in self.forms:
            check_text(f"a form of choice {self.text!r}", form, SuiteError)
        check_unique(f"forms of choice {self.text!r}", self.forms, SuiteError)


@dataclass(frozen=True)
class Task:
    """A closed set of choices and the prompts that ask for one of them at random.

    Args:
        name: unique within the suite.
        prompts, choices: P texts, each continued as it stands, and C >= 2 answers.
    """

    name: str
    prompts: tuple[str, ...]
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        check_name("task name", self.name, SuiteError)
        _check_filled(f"task {self.name!r}: prompts", self.prompts, tuple)
        _check_filled(f"task {self.name!r}: choices", self.choices, tuple)
        for prompt in self.prompts:
            check_text(f"task {self.name!r}: prompt", prompt, SuiteError)
        check_unique(f"task {self.name!r}: prompts", self.prompts, SuiteError)
        if len(self.choices) < 2:
            raise SuiteError(
                f"task {self.name!r}: choices must be at least 2, got {len(self.choices)}. "
                "A single choice has no distribution to watch."
            )
        check_unique(f"task {self.name!r}: choices", self.choice_texts, SuiteError)
        owner: dict[str, str] = {}
        for choice in self.choices:
            for form in choice.forms:
                if form in owner:
                    raise SuiteError(
                        f"task {self.name!r}: form {form!r} is shared by choices {owner[form]!r} "
                        f"and {choice.text!r}. Give it to one of them."
                    )
                owner[form] = choice.text

    @property
    def choice_of_form(self) -> dict[str, int]:
        """By form, the index of the choice that it counts for."""
        return {form: place for place, choice in enumerate(self.choices) for form in choice.forms}

    @property
    def choice_texts(self) -> tuple[str, ...]:
        """The C choice names, in order."""
        return tuple(choice.text for choice in self.choices)


@dataclass(frozen=True)
class TaskSuite:
    """A named set of tasks, at least one, whose names are unique."""

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        check_name("suite name", self.name, SuiteError)
        _check_filled(f"suite {self.name!r}: tasks", self.tasks, tuple)
        check_unique(
            f"suite {self.name!r}: task names", [task.name for task in self.tasks], SuiteError
        )

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"suite {self.name!r} has no task {name!r}")

    @property
    def num_prompts(self) -> int:
        """The number of prompts over all tasks."""
        return sum(len(task.prompts) for task in self.tasks)

    def with_forms(self, *parts: str) -> TaskSuite:
        """The same suite with more surface forms of each answer; see `forms.PARTS`.

        Raises:
            SuiteError: if a part is unknown.
        """
        if unknown := [part for part in parts if part not in PARTS]:
            raise SuiteError(
                f"forms must be some of {', '.join(PARTS)}, got {unknown[0]!r}. Take it out."
            )
        tasks = (_widened(task, parts) for task in self.tasks)
        return replace(self, tasks=tuple(tasks)) if parts else self

    @property
    def hash(self) -> str:
        """SHA-256 over names, prompts, choices and forms, in order; 16 hex digits."""
        content = [[t.name, t.prompts, [[c.text, c.forms] for c in t.choices]] for t in self.tasks]
        text = json.dumps([self.name, content], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_suites() -> list[str]:
    """The names of the bundled suites."""
    return sorted(path.stem for path in SUITES_DIR.glob("*.yaml"))


def load_suite(name_or_path: str | Path | TaskSuite) -> TaskSuite:
    """Load a bundled suite by name, or any suite from a YAML file.

    Args:
        name_or_path: a name from `list_suites()`, or a path to a YAML file with the keys `name`,
            `tasks` (`{name, prompts: [str], choices: [str or {text, forms}]}`, or the name of a
            bundled suite, whose tasks they are) and maybe `forms` (see `TaskSuite.with_forms`), or
            a suite.

    Raises:
        FileNotFoundError: if there is no such suite or file.
        SuiteError: if the file is faulty.
    """
    if isinstance(name_or_path, TaskSuite):
        return name_or_path
    if not isinstance(name_or_path, str | Path):
        raise TypeError(
            f"suite must be a name, a path or a TaskSuite, got {type(name_or_path).__name__}."
        )
    path, bundled = Path(name_or_path), list_suites()
    if str(name_or_path) in bundled:
        path = SUITES_DIR / f"{name_or_path}.yaml"
    elif not path.is_file():
        raise FileNotFoundError(
            f"suite {str(name_or_path)!r} is neither a bundled suite ({', '.join(bundled)}) nor a "
            "file. Check the name or the path."
        )
    return read_yaml(path, _parse_suite, SuiteError)


def _parse_suite(data: Any) -> TaskSuite:
    check_keys("the suite", data, ("name", "tasks"), SuiteError, ("forms",))
    given = data["tasks"]
    if isinstance(given, str):
        if given not in list_suites():
            raise SuiteError(f"tasks must be a list or a bundled suite's name, got {given!r}.")
        tasks = load_suite(given).tasks
    else:
        entries = enumerate(_check_filled("tasks", given))
        tasks = tuple(_parse_task(task, place) for place, task in entries)
    forms = _check_filled("forms", data["forms"]) if "forms" in data else ()
    return TaskSuite(data["name"], tasks).with_forms(*map(str, forms))


def _widened(task: Task, parts: Sequence[str]) -> Task:
    forms = widen([choice.forms for choice in task.choices], parts)
    pairs = zip(task.choices, forms, strict=True)
    return replace(task, choices=tuple(Choice(choice.text, own) for choice, own in pairs))


def _parse_task(data: Any, index: int) -> Task:
    check_keys(f"tasks[{index}]", data, ("choices", "name", "prompts"), SuiteError)
    check_text(f"tasks[{index}]: task name", data["name"], SuiteError)
    place = f"task {data['name']!r}"
    prompts = _check_filled(f"{place}: prompts", data["prompts"])
    choices = _check_filled(f"{place}: choices", data["choices"])
    parsed = (_parse_choice(each, f"{place}: choices[{i}]") for i, each in enumerate(choices))
    return Task(data["name"], tuple(prompts), tuple(parsed))


def _parse_choice(data: Any, place: str) -> Choice:
    if isinstance(data, Mapping):
        check_keys(place, data, ("forms", "text"), SuiteError)
        text, forms = data["text"], tuple(_check_filled(f"{place}: forms", data["forms"]))
    elif isinstance(data, str):
        text, forms = data, ()
    else:
        raise SuiteError(
            f"{place} must be a string or {{text, forms}}, got {data!r}. "
            "Quote it: YAML reads bare 7, yes and on as other types."
        )
    try:
        return Choice(text=text, forms=forms)
    except SuiteError as error:
        raise SuiteError(f"{place}: {error}") from error


def _check_filled(what: str, value: Any, kind: type = list) -> Any:
    """The value, if it is a list (in a file; a tuple in Python) of at least one entry."""
    if not isinstance(value, kind):
        error = SuiteError if kind is list else TypeError
        raise error(f"{what} must be a {kind.__name__}, got {type(value).__name__}.")
    if not value:
        raise SuiteError(f"{what} must not be empty. Add at least one entry.")
    return value
