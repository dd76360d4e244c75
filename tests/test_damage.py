"""A run folder that something has damaged: what still fits is read, and the rest is named."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from crystalmon.analysis.replay import detect_run
from crystalmon.cli.main import main
from crystalmon.report.detection import format_detection
from crystalmon.report.live.feed import RunFeed
from crystalmon.report.live.terminal import screen
from crystalmon.report.page import write_report
from crystalmon.report.summary import format_stage_table, stage_table
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.reader import read_run
from crystalmon.runs.reference import TENSOR_FILE

OLD = Path(__file__).parent / "data" / "run_before_rooms"
RECORDS, EVENTS, RUN = "records.jsonl", "events.jsonl", "run.json"
Where = tuple[str | int, ...]


def records(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def write(folder: Path, name: str, lines: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a short run of two tasks, free to be damaged."""
    return shutil.copytree(OLD, tmp_path / "out") / "crystalmon"


def put(data: Any, where: Where, value: Any) -> None:
    for key in where[:-1]:
        data = data[key]
    data[where[-1]] = value


def named(folder: Path, use: Callable[[], object]) -> None:
    """It works, or says in a sentence what is wrong in which file."""
    said = None
    try:
        use()
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
    assert said is None or str(folder.parent) in said


def read_by_all(folder: Path) -> None:
    """What the commands `detect`, `report`, `summary`, `send` and `watch` do with a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _read_by_all(folder)


def _read_by_all(folder: Path) -> None:
    run = read_run(folder)
    uses: list[Callable[[], object]] = [
        lambda: format_detection(detect_run(run)),
        lambda: format_stage_table(stage_table([run])),
        lambda: write_report([folder], folder / "report.html"),
    ]
    for use in uses:
        named(folder, use)
    news = RunFeed([folder]).news()
    json.dumps(news.payload, allow_nan=False)
    screen(news)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("metrics", "order"), None, "metrics 'order' must be a number, got None"),
        (("metrics", "order"), "high", "metrics 'order' must be a number, got 'high'"),
        (("metrics", "order"), True, "metrics 'order' must be a number, got True"),
        (("metrics", "order"), 10**400, "a whole number must be below"),
        (("metrics",), [1], "metrics must be a mapping"),
        (("ci", "order"), [1], "ci 'order' must be two numbers"),
        (("step",), 1.0, "step must be a whole number from 0, got 1.0"),
        (("step",), True, "step must be a whole number from 0, got True"),
        (("step",), "NaN", "step must be a whole number from 0, got 'NaN'"),
        (("step",), 2**80, "a whole number must be below"),
        (("epoch",), {}, "epoch must be a number"),
        (("phase",), "gas", "phase must be one of"),
        (("phase",), ["liquid"], "phase must be one of"),
        (("tasks",), {}, "task 'coin' must have as many answers as in the other records"),
        (("tasks",), [], "tasks must be a mapping"),
        (("tasks", "coin"), None, "task 'coin': a task must be a mapping, got None"),
        (("tasks", "coin", "phase"), 1, "task 'coin': phase must be one of"),
        (("tasks", "coin", "seed"), "NaN", "task 'coin': seed must be one of"),
        (("tasks", "coin", "view"), 3, "task 'coin': view must be a text"),
        (("tasks", "coin", "q"), [[0.5, 0.5], [1.0]], "task 'coin': q must be a table of numbers"),
        (("tasks", "coin", "q"), [[0.5, 0.5]], "task 'coin' must have as many answers as"),
        (("tasks", "coin", "q"), [], "task 'coin': q must be of shape [P, C]"),
        (("tasks", "coin", "q", 0, 0), None, "task 'coin': q must be a table of numbers"),
        (("tasks", "coin", "q", 0, 0), 7.5, "task 'coin': q must have rows on the simplex"),
    ],
)
def test_a_record_that_does_not_fit_is_left_out_and_named(folder, where, value, told, capsys):
    lines = records(folder, RECORDS)
    put(lines[2], where, value)
    write(folder, RECORDS, lines)
    with pytest.warns(UserWarning, match="line 3") as caught:
        run = read_run(folder)
    (warning,) = [str(each.message) for each in caught]
    assert f"{folder / RECORDS}, line 3 " in warning
    assert told in warning
    assert [record.step for record in run.records] == [0, 4, 12, 16, 20, 24, 28]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for command in ("detect", "summary"):
            assert main([command, str(folder)]) == 0
            assert told in capsys.readouterr().err
    read_by_all(folder)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("evidence",), [1], "evidence must be a mapping"),
        (("message",), 3, "message must be a text"),
        (("kind",), None, "kind must be a text"),
        (("task",), 3, "task must be a text"),
        (("step",), "8", "step must be a whole number"),
    ],
)
def test_an_event_that_does_not_fit_is_left_out_and_named(folder, where, value, told):
    lines = records(folder, EVENTS)
    count = len(read_run(folder).events)
    put(lines[0], where, value)
    write(folder, EVENTS, lines)
    with pytest.warns(UserWarning, match=rf"events\.jsonl, line 1 .*{re.escape(told)}"):
        assert len(read_run(folder).events) == count - 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", "28"),
        ("suite_texts", ["coin"]),
        ("suite_texts", {"coin": {"prompts": "abc", "choices": None}}),
        ("stages", {"base": 0}),
        ("stages", [{"step": "0", "name": "base"}]),
        ("model", 7),
        ("suite", ["two"]),
        ("config", "raw"),
        ("training", [0.1]),
    ],
)
def test_what_run_json_must_not_hold_is_left_out_and_named(folder, key, value):
    info = json.loads((folder / RUN).read_text())
    (folder / RUN).write_text(json.dumps(info | {key: value}))
    with pytest.warns(UserWarning, match=rf"run\.json: {key} must be .*left out"):
        assert key not in read_run(folder).info
    read_by_all(folder)


def test_what_a_run_began_with_is_named_if_it_is_damaged(folder, capsys):
    info = json.loads((folder / RUN).read_text())
    (folder / RUN).write_text(json.dumps(info | {"inherited": {"coin": 1}}))
    assert main(["detect", str(folder)]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert "inherited in run.json" in said


def test_a_live_page_stays_when_a_line_is_damaged(folder):
    feed = RunFeed([folder])
    probes = len(feed.news().runs[0].records)
    line = records(folder, RECORDS)[-1] | {"step": 32, "metrics": {"order": None}}
    with (folder / RECORDS).open("a") as file:
        file.write(json.dumps(line) + "\n")
    news = feed.news()
    assert news.payload is not None
    assert len(news.runs[0].records) == probes
    assert any("metrics 'order' must be a number" in note for note in news.notes)


def leaves(data: Any, before: Where = ()) -> list[Where]:
    """Where the values of nested JSON lie, those within it included."""
    if not isinstance(data, dict | list):
        return [before]
    items = data.items() if isinstance(data, dict) else enumerate(data)
    inner = [leaf for key, value in items for leaf in leaves(value, (*before, key))]
    return [before, *inner] if before else inner


JSON = {
    name: [json.loads(line) for line in (OLD / "crystalmon" / name).read_bytes().splitlines()]
    if name != RUN
    else [json.loads((OLD / "crystalmon" / name).read_bytes())]
    for name in (RECORDS, EVENTS, RUN)
}
VALUES = st.sampled_from(
    [None, True, 0, -1, 2, 2**70, 0.5, -1e300, 1e308, "NaN", "-Infinity", "", "x\x1b[2J\ud800"]
) | st.sampled_from([[], {}, [[]], [None], {"a": None}, {"": 0}, [["x"]], [0.5, "NaN"]])


@st.composite
def damaged_leaf(draw) -> tuple[str, int, Where, Any]:
    name = draw(st.sampled_from([*JSON]))
    line = draw(st.integers(0, len(JSON[name]) - 1))
    return name, line, draw(st.sampled_from(leaves(JSON[name][line]))), draw(VALUES)


LIGHT = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.long
@LIGHT
@given(damaged_leaf())
@example((RECORDS, 1, ("metrics", "order"), None))
@example((RECORDS, 1, ("tasks", "coin", "metrics"), {}))
@example((RUN, 0, ("schema_version",), "Infinity"))
def test_a_wrong_value_anywhere_is_left_out_or_named(tmp_path_factory, damage):
    name, number, where, value = damage
    folder = shutil.copytree(OLD, tmp_path_factory.mktemp("leaf") / "out") / "crystalmon"
    lines = json.loads(json.dumps(JSON[name]))
    put(lines[number], where, value)
    write(folder, name, lines)
    check(folder)


@pytest.mark.long
@LIGHT
@given(st.sampled_from([*JSON, f"reference/{TENSOR_FILE}"]), st.integers(0), st.binary(max_size=3))
def test_wrong_bytes_anywhere_are_left_out_or_named(tmp_path_factory, name, place, content):
    folder = shutil.copytree(OLD, tmp_path_factory.mktemp("byte") / "out") / "crystalmon"
    whole = (folder / name).read_bytes()
    place %= len(whole)
    (folder / name).write_bytes(whole[:place] + content + whole[place + 1 :])
    check(folder)


def check(folder: Path) -> None:
    """Everything reads the folder, or says in a sentence what is wrong with it."""
    named(folder, lambda: read_by_all(folder))
    shutil.rmtree(folder.parent)


EVIL = "\x1b]0;owned\x07\x9b2J\rx\u202e"


def test_a_terminal_obeys_no_run_folder(folder, capsys):
    """Texts and names of a run are printed with their control characters spelled out."""
    base, events = read_base_answers(folder), records(folder, EVENTS)
    renamed = [
        line | {"tasks": {name + EVIL: task for name, task in line["tasks"].items()}}
        for line in records(folder, RECORDS)
        if "tasks" in line
    ]
    write(folder, EVENTS, [e | {"message": EVIL, "kind": f"melting{EVIL}"} for e in events])
    info = json.loads((folder / RUN).read_text())
    texts = {
        name: {"prompts": [f"{EVIL}{p}" for p in range(q.shape[0])], "choices": [EVIL] * q.shape[1]}
        for name, q in base.items()
    }
    info |= {"suite": EVIL, "model": EVIL, "max_steps": EVIL, "suite_texts": texts}
    (folder / RUN).write_text(json.dumps(info))
    shown = Console(width=200, color_system=None)
    for lines in (records(folder, RECORDS), renamed, [*renamed, {"step": EVIL}]):
        write(folder, RECORDS, lines)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for command in ("detect", "summary"):
                main([command, str(folder)])
            with shown.capture() as captured:
                shown.print(screen(RunFeed([folder]).news()))
        said = capsys.readouterr()
        for text in (said.out, said.err, captured.get()):
            assert not [c for c in text if not c.isprintable() and c not in "\n\t"]
    assert "\\x1b" in said.err
    assert "\\x1b" in captured.get()
