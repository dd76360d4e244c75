"""Suites: what parses, what is refused and where, and what the hash depends on."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from crystalmon.suites.tasks import Choice, SuiteError, Task, TaskSuite, list_suites, load_suite

GOOD = """
name: small
tasks:
- name: coin
  prompts: ["Flip a coin:", "Heads or tails?"]
  choices:
  - heads
  - {text: tails, forms: ["tails", " Tails"]}
"""


@pytest.fixture
def write(tmp_path):
    """Write a suite file and return its path."""

    def write_suite(text: str | bytes) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_suite


def coin(**changes) -> Task:
    parts = {
        "name": "coin",
        "prompts": ("Flip a coin:", "Heads or tails?"),
        "choices": (Choice("heads"), Choice("tails")),
    }
    return Task(**(parts | changes))


def with_task(prompts: str = "[p, r]", choices: str = "[a, b]", name: str = "t") -> str:
    return f"name: s\ntasks:\n- name: {name}\n  prompts: {prompts}\n  choices: {choices}\n"


# --- what parses -----------------------------------------------------------------------------


def test_a_file_parses_to_the_tasks_that_it_lists(write):
    suite = load_suite(write(GOOD))
    assert suite == TaskSuite(
        "small",
        (
            Task(
                "coin",
                ("Flip a coin:", "Heads or tails?"),
                (Choice("heads", ("heads", " heads")), Choice("tails", ("tails", " Tails"))),
            ),
        ),
    )
    assert suite["coin"].choice_texts == ("heads", "tails")
    assert suite.num_prompts == 2
    assert len(suite) == 1
    assert [task.name for task in suite] == ["coin"]


def test_path_given_as_text_or_path_and_a_suite_as_it_is(write):
    path = write(GOOD)
    suite = load_suite(path)
    assert load_suite(str(path)) == suite
    assert load_suite(suite) is suite


def test_forms_default_to_the_text_and_the_text_after_one_space():
    assert Choice("New York").forms == ("New York", " New York")
    assert Choice("7", ("7", "seven")).forms == ("7", "seven")


def test_prompts_and_choices_keep_their_whitespace_and_non_ascii_text(write):
    suite = load_suite(write(with_task(prompts=r'["Q:\n\nA:", "Wähle ½ "]', choices="[é, 漢]")))
    assert suite["t"].prompts == ("Q:\n\nA:", "Wähle ½ ")
    assert suite["t"].choice_texts == ("é", "漢")


def test_a_missing_task_is_named(write):
    with pytest.raises(KeyError, match=r"suite 'small' has no task 'dice'"):
        load_suite(write(GOOD))["dice"]


def test_data_classes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        coin().name = "other"  # type: ignore[misc]
    assert hash(coin()) == hash(coin())


# --- the bundled suites ----------------------------------------------------------------------


def test_bundled_suites_are_listed():
    assert {"randomness", "randomness-wide", "liquid-tiny"} <= set(list_suites())


@pytest.mark.parametrize("name", list_suites())
def test_bundled_suite_parses_and_is_fit_to_measure(name):
    suite = load_suite(name)
    assert suite.name == name
    assert len(suite) >= 10
    for task in suite:
        assert len(task.prompts) >= 10, task.name
        assert len(task.choices) >= 2, task.name


@pytest.mark.parametrize("name", list_suites())
def test_bundled_prompts_end_where_a_tokenizer_would_end_a_token(name):
    ends = [p for task in load_suite(name) for p in task.prompts if p != p.rstrip()]
    assert ends == []


# --- the hash --------------------------------------------------------------------------------


def test_hash_is_a_fixed_value_of_the_content():
    """A golden value: references on disk are refused when it changes."""
    suite = TaskSuite("small", (coin(),))
    assert suite.hash == "a53397b073f5573a"


def test_hash_does_not_depend_on_the_process_or_the_layout_of_the_file(write):
    path = write(GOOD)
    here = load_suite(path).hash
    code = f"import crystalmon.suites.tasks as t; print(t.load_suite({str(path)!r}).hash)"
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert there.strip() == here
    relaid = yaml.safe_dump(yaml.safe_load(GOOD), default_flow_style=True, sort_keys=True)
    assert load_suite(write(relaid)).hash == here


@pytest.mark.parametrize(
    "other",
    [
        TaskSuite("other", (coin(),)),
        TaskSuite("small", (coin(name="toss"),)),
        TaskSuite("small", (coin(prompts=("Heads or tails?", "Flip a coin:")),)),
        TaskSuite("small", (coin(prompts=("Flip a coin:",)),)),
        TaskSuite("small", (coin(prompts=("Flip a coin: ", "Heads or tails?")),)),
        TaskSuite("small", (coin(choices=(Choice("tails"), Choice("heads"))),)),
        TaskSuite("small", (coin(choices=(Choice("heads", ("heads",)), Choice("tails"))),)),
        TaskSuite(
            "small", (coin(choices=(Choice("heads", (" heads", "heads")), Choice("tails"))),)
        ),
        TaskSuite("small", (coin(), coin(name="toss"))),
    ],
    ids=[
        "suite name",
        "task name",
        "prompt order",
        "one prompt less",
        "a space",
        "choice order",
        "one form less",
        "form order",
        "one task more",
    ],
)
def test_hash_changes_with_every_part_and_its_order(other):
    assert other.hash != TaskSuite("small", (coin(),)).hash


def test_hash_depends_on_the_order_of_tasks_and_on_where_texts_are_cut():
    a, b = coin(name="a"), coin(name="b")
    assert TaskSuite("s", (a, b)).hash != TaskSuite("s", (b, a)).hash
    assert coin_hash(("x,y", "z")) != coin_hash(("x", "y,z"))


def coin_hash(prompts: tuple[str, ...]) -> str:
    return TaskSuite("s", (coin(prompts=prompts),)).hash


# --- what is refused -------------------------------------------------------------------------

FAULTS = {
    # the suite
    "empty file": ("", r"the suite must be a mapping, got NoneType"),
    "a list": ("- a\n", r"the suite must be a mapping, got list"),
    "unknown key": (GOOD + "seed: 3\n", r"the suite: unknown key 'seed'. Allowed: .*, forms"),
    "non-string key": (GOOD + "7: 3\n", r"line 9: key must be a string, got 7"),
    "no name": ("tasks: []\n", r"the suite: key 'name' is missing. Add it"),
    "no tasks": ("name: s\n", r"the suite: key 'tasks' is missing"),
    "tasks not a list": ("name: s\ntasks: {a: b}\n", r"tasks must be a list, got dict"),
    "tasks empty": ("name: s\ntasks: []\n", r"tasks must not be empty. Add at least one"),
    "tasks null": ("name: s\ntasks:\n", r"tasks must be a list, got NoneType"),
    "name a number": (
        GOOD.replace("small", "3"),
        r"suite name must be a non-blank string, got 3. Quote or fill it",
    ),
    "name blank": (GOOD.replace("small", "' '"), r"suite name must be a non-blank string, got ' '"),
    # a task
    "task not a mapping": ("name: s\ntasks: [coin]\n", r"tasks\[0\] must be a mapping, got str"),
    "task unknown key": (with_task() + "  view: raw\n", r"tasks\[0\]: unknown key 'view'"),
    "task without choices": (
        "name: s\ntasks:\n- {name: t, prompts: [p]}\n",
        r"tasks\[0\]: key 'choices' is missing",
    ),
    "task names repeated": (
        with_task() + with_task().partition("tasks:\n")[2],
        r"suite 's': task names must be unique, got 't' twice. Remove or rename one",
    ),
    "task name a number": (
        with_task(name="3"),
        r"tasks\[0\]: task name must be a non-blank string, got 3",
    ),
    "task name blank": (
        with_task(name="''"),
        r"tasks\[0\]: task name must be a non-blank string, got ''",
    ),
    # prompts
    "prompts empty": (with_task(prompts="[]"), r"task 't': prompts must not be empty"),
    "prompts a string": (with_task(prompts="p"), r"task 't': prompts must be a list, got str"),
    "prompt a number": (
        with_task(prompts="[p, 7]"),
        r"task 't': prompt must be a non-blank string, got 7. Quote or fill it",
    ),
    "prompt blank": (with_task(prompts="[p, '']"), r"task 't': prompt must be a non-blank string"),
    "prompt a list": (with_task(prompts="[p, [q]]"), r"task 't': prompt must be .* got \['q'\]"),
    "prompts repeated": (
        with_task(prompts="[p, r, p]"),
        r"task 't': prompts must be unique, got 'p' twice",
    ),
    # choices
    "choices empty": (with_task(choices="[]"), r"task 't': choices must not be empty"),
    "choices a string": (with_task(choices="ab"), r"task 't': choices must be a list, got str"),
    "one choice": (
        with_task(choices="[a]"),
        r"task 't': choices must be at least 2, got 1. A single choice has no distribution",
    ),
    "choice a number": (
        with_task(choices="[1, 2]"),
        r"task 't': choices\[0\] must be a string or \{text, forms\}, got 1. Quote it",
    ),
    "choice a truth value": (
        with_task(choices="[maybe, no]"),
        r"task 't': choices\[1\] must be a string or \{text, forms\}, got False. Quote it",
    ),
    "choice null": (with_task(choices="[a, ~]"), r"task 't': choices\[1\] must be .* got None"),
    "choice blank": (
        with_task(choices="[a, ' ']"),
        r"task 't': choices\[1\]: choice must be a non-blank string, got ' '",
    ),
    "choices repeated": (
        with_task(choices="[a, {text: a, forms: [x]}]"),
        r"task 't': choices must be unique, got 'a' twice",
    ),
    "choice unknown key": (
        with_task(choices="[a, {text: b, forms: [b], weight: 2}]"),
        r"task 't': choices\[1\]: unknown key 'weight'. Allowed: forms, text",
    ),
    "choice without text": (
        with_task(choices="[a, {forms: [b]}]"),
        r"task 't': choices\[1\]: key 'text' is missing",
    ),
    "choice text a number": (
        with_task(choices="[a, {text: 2, forms: [b]}]"),
        r"task 't': choices\[1\]: choice must be a non-blank string, got 2",
    ),
    # forms
    "forms empty": (
        with_task(choices="[a, {text: b, forms: []}]"),
        r"task 't': choices\[1\]: forms must not be empty",
    ),
    "forms a string": (
        with_task(choices="[a, {text: b, forms: b}]"),
        r"task 't': choices\[1\]: forms must be a list, got str",
    ),
    "form a number": (
        with_task(choices="[a, {text: b, forms: [b, 2]}]"),
        r"task 't': choices\[1\]: a form of choice 'b' must be a non-blank string, got 2. Quote",
    ),
    "form blank": (
        with_task(choices="[a, {text: b, forms: [' ']}]"),
        r"task 't': choices\[1\]: a form of choice 'b' must be a non-blank string, got ' '",
    ),
    "forms repeated": (
        with_task(choices="[a, {text: b, forms: [x, x]}]"),
        r"task 't': choices\[1\]: forms of choice 'b' must be unique, got 'x' twice",
    ),
    "form shared": (
        with_task(choices="[a, {text: b, forms: [b, ' a']}]"),
        r"task 't': form ' a' is shared by choices 'a' and 'b'. Give it to one of them",
    ),
    "form shared by default": (
        with_task(choices="[a, ' a']"),
        r"task 't': form ' a' is shared by choices 'a' and ' a'",
    ),
    # YAML itself
    "key twice": (GOOD + "name: other\n", r"line 9: key 'name' appears twice. Remove one"),
    "key twice in a choice": (
        with_task(choices="[a, {text: b, text: c, forms: [b]}]"),
        r"line 5: key 'text' appears twice",
    ),
    "unhashable key": ("? [a, b]\n: 3\n", r"line 1: key must be a string, got \['a', 'b'\]"),
    "broken": ("name: [s\n", r"not valid YAML: while parsing a flow sequence .* line 1"),
    "tab": ("name: s\n\ttasks: 3\n", r"not valid YAML: .* line 2"),
    "two documents": ("name: s\n---\nname: t\n", r"not valid YAML: expected a single document"),
    "python object": ("!!python/object:os.x {}\n", r"not valid YAML: could not determine"),
    "control character": ("name: a\x07\n", r"not valid YAML: unacceptable character #x0007"),
    "not UTF-8": (b"name: \xff\n", r"must be UTF-8 text: 'utf-8' codec can't decode byte 0xff"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_refused_with_file_and_place(write, text, message):
    path = write(text)
    with pytest.raises(SuiteError, match=f"^{re.escape(str(path))}: {message}") as caught:
        load_suite(path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_bundled_nor_a_file_lists_what_is():
    with pytest.raises(
        FileNotFoundError,
        match=r"suite 'randomnes' is neither a bundled suite \(.*randomness.*\) nor a file",
    ):
        load_suite("randomnes")


def test_a_folder_is_no_suite(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nor a file. Check the name or the path"):
        load_suite(tmp_path)


def test_another_type_is_refused():
    with pytest.raises(TypeError, match=r"suite must be a name, a path or a TaskSuite, got int"):
        load_suite(3)  # type: ignore[arg-type]


def test_suite_error_is_a_value_error():
    assert issubclass(SuiteError, ValueError)


# --- the same rules hold for suites made in Python -------------------------------------------


def test_a_suite_made_in_python_is_validated_too():
    with pytest.raises(SuiteError, match=r"suite 's': tasks must not be empty"):
        TaskSuite("s", ())
    with pytest.raises(SuiteError, match=r"task 'coin': prompts must not be empty"):
        coin(prompts=())
    with pytest.raises(SuiteError, match=r"task 'coin': choices must be at least 2, got 1"):
        coin(choices=(Choice("heads"),))
    with pytest.raises(SuiteError, match=r"form ' heads' is shared by choices 'heads' and 'h'"):
        coin(choices=(Choice("heads"), Choice("h", ("h", " heads"))))
    with pytest.raises(SuiteError, match=r"choice must be a non-blank string, got None"):
        Choice(None)  # type: ignore[arg-type]


def test_a_bare_string_is_not_taken_for_a_list_of_characters():
    with pytest.raises(TypeError, match=r"task 'coin': prompts must be a tuple, got str"):
        coin(prompts="Flip")
    with pytest.raises(TypeError, match=r"forms of choice 'a' must be a tuple, got str"):
        Choice("a", "ab")  # type: ignore[arg-type]


def test_aliases_of_aliases_are_refused_at_once(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    file = tmp_path / "suite.yaml"
    file.write_text("\n".join([*levels, "name: s", "tasks: [{name: *a8, prompts: [p]}]"]))
    began = time.monotonic()
    with pytest.raises(SuiteError, match=r"suite\.yaml: line \d+: aliases must spell out to"):
        load_suite(file)
    assert time.monotonic() - began < 5
    file.write_text("name: s\ntasks: &t [*t]")
    with pytest.raises(SuiteError, match="aliases must spell out"):
        load_suite(file)


def test_ordinary_aliases_work(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(
        "name: s\ntasks:\n- {name: a, prompts: [p], choices: &sides [heads, tails]}\n"
        "- {name: b, prompts: [p], choices: *sides}\n"
    )
    assert load_suite(file)["b"].choice_texts == ("heads", "tails")


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x9bb", "a\u202eb"])
def test_a_name_must_be_fit_for_a_table(name):
    choices = (Choice("heads"), Choice("tails"))
    with pytest.raises(SuiteError, match="task name must have no control characters"):
        Task(name, ("p",), choices)
    with pytest.raises(SuiteError, match="suite name must have no control characters"):
        TaskSuite(name, (Task("coin", ("p",), choices),))


def test_a_suite_may_take_anothers_tasks_and_more_forms(tmp_path):
    file = tmp_path / "wide.yaml"
    file.write_text("name: mine\ntasks: liquid-tiny\nforms: [capital, bold]\n")
    plain, wide = load_suite("liquid-tiny"), load_suite(file)
    assert wide.name == "mine"
    assert [task.prompts for task in wide] == [task.prompts for task in plain]
    assert [task.choice_texts for task in wide] == [task.choice_texts for task in plain]
    assert wide["coin"].choices[0].forms[:3] == ("heads", " heads", "Heads")
    assert " **Heads" in wide["coin"].choices[0].forms
    assert wide.hash != plain.hash


def test_a_form_that_would_stand_for_two_choices_is_not_added():
    task = Task("letter", ("Pick:",), (Choice("a"), Choice("A"), Choice("b")))
    forms = [c.forms for c in TaskSuite("s", (task,)).with_forms("capital")["letter"].choices]
    assert forms == [("a", " a"), ("A", " A"), ("b", " b", "B", " B")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntasks: nothing\n", "tasks must be a list or a bundled suite's name"),
        ("name: x\ntasks: randomness\nforms: [loud]\n", "forms must be some of capital, newline"),
        ("name: x\ntasks: randomness\nforms: []\n", "forms must not be empty"),
    ],
)
def test_faulty_forms(tmp_path, text, message):
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(SuiteError, match=message):
        load_suite(file)
