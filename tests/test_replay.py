"""Replaying a stored run: a real one, trained here for a few steps, repeats its live events."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from crystalmon.analysis.replay import detect_run
from crystalmon.cli.main import main
from crystalmon.monitor.probe import Monitor
from crystalmon.report.detection import format_detection
from crystalmon.runs.reader import read_run
from crystalmon.runs.store import RunStore
from crystalmon.scoring.models import load_model


@pytest.fixture(scope="module")
def stored(tmp_path_factory, suite):
    """A model driven into its own biases, probed along the way."""
    model, tokenizer = load_model("liquid-tiny")
    monitor = Monitor(model, tokenizer, suite, reference="initial")
    folder = tmp_path_factory.mktemp("run") / "crystalmon"
    store = RunStore.open(folder, {"suite": suite.name}, resume_step=None)
    monitor.reference.save(store.folder / "reference")
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    for step, share in enumerate(np.repeat([1.0, 0.98, 0.5, 0.2, 0.05], [3, 1, 1, 1, 7])):
        head.data = before * share
        with pytest.MonkeyPatch.context() as patch:  # the answers become rare, and count even so
            patch.setattr("crystalmon.monitor.probe.MEASURABLE", 0.0)
            store.append(monitor.probe(step), monitor.events)
    return store.folder


@pytest.fixture
def run(stored, tmp_path):
    """A copy of it, free to be damaged."""
    return read_run(shutil.copytree(stored, tmp_path / "crystalmon"))


def test_an_event_has_the_interval_of_its_record(run):
    first = next(iter(run.records[0].tasks))
    told = {e.step: e.evidence for e in run.events if e.task == first}
    told = {step: each["order_interval"] for step, each in told.items() if "order_interval" in each}
    assert told, "nothing happened, so nothing is tested"
    for record in run.records:
        if record.step in told:
            assert told[record.step] == pytest.approx(record.tasks[first].ci["order"], abs=1e-9)


def test_a_replay_repeats_the_live_events(run):
    found = detect_run(run)
    assert found.events, "nothing happened, so nothing is tested"
    assert found.repeats_live
    assert [e.to_json() for e in found.events if e.task] == [
        e.to_json() for e in run.events if e.task
    ]
    last = run.records[-1]
    assert {name: task.seed for name, task in found.tasks.items()} == {
        name: task.seed for name, task in last.tasks.items()
    }
    assert {name: task.phase for name, task in found.tasks.items()} == {
        name: task.phase for name, task in last.tasks.items()
    }
    assert found.phases[-1][1] == last.phase


def test_records_on_disk_are_replayed_as_those_in_memory(run):
    streamed = read_run(run.folder, stream=True)
    assert detect_run(streamed).to_json() == detect_run(run).to_json()
    assert [each.to_json() for each in streamed.records] == [each.to_json() for each in run.records]
    assert [each.step for each in streamed.records[1:3]] == [each.step for each in run.records[1:3]]


def test_a_streamed_run_says_that_its_records_are_gone(run):
    streamed = read_run(run.folder, stream=True)
    file = run.folder / "records.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="was replaced while it was read"):
        detect_run(streamed)


def test_the_command_prints_words_or_json(run, capsys):
    assert main(["detect", str(run.folder)]) == 0
    text = capsys.readouterr().out
    assert "nucleation_onset" in text
    assert "the same as those stored while training" in text
    assert "may end on: the base's wordings" in text
    found = detect_run(run)
    assert text.strip() == format_detection(found).strip()
    for seed, legend in ((None, False), (3, True)):
        tasks = {name: replace(task, seed=seed) for name, task in found.tasks.items()}
        told = format_detection(replace(found, tasks=tasks))
        assert ("margin: how many times worse" in told) == legend
    assert ": 1 probe\n" in format_detection(replace(found, probes=1))
    assert main(["detect", str(run.folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["repeats_live"] is True
    assert len(data["events"]) == len(run.events)
    assert set(data["tasks"]) == set(run.records[0].tasks)


def test_the_likeliest_wording_is_quoted(run):
    words = {
        name: {
            "prompts": [f"{name} in wording {k}" for k in range(task.q.shape[0])],
            "choices": [f"choice {c}" for c in range(task.q.shape[1])],
        }
        for name, task in run.records[0].tasks.items()
    }
    assert "likeliest wording" not in format_detection(detect_run(run)), "no column of nothing"
    file = run.folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "suite_texts": words}))
    found = detect_run(read_run(run.folder))
    scanned = format_detection(replace(found, stages={0: "base"}))
    assert "the same as those stored by the scan" in scanned, "nothing was trained"
    likeliest = {name: task.seed_set[0] for name, task in found.tasks.items() if task.seed_set}
    quoted = [f"{name} in wording {k}" for name, k in likeliest.items() if k is not None]
    assert quoted
    text = format_detection(found)
    assert all(repr(prompt) in text for prompt in quoted)


def test_events_of_another_detector_are_told(run):
    events = run.folder / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[1:]))
    found = detect_run(read_run(run.folder))
    assert not found.repeats_live
    assert found.differing == 1
    assert "not the same as those stored while training: 1 " in format_detection(found)


def test_an_event_in_other_words_is_the_same_event(run):
    events = run.folder / "events.jsonl"
    events.write_text(events.read_text().replace(" tasks", " task"))
    assert run.events != read_run(run.folder).events
    assert detect_run(read_run(run.folder)).repeats_live


def test_probes_in_doubt_are_told(run):
    assert "may be wrong" not in format_detection(detect_run(read_run(run.folder)))
    records = run.folder / "records.jsonl"
    records.write_text(records.read_text() + '{"doubtful_after": 1}\n')
    assert "at steps 2 to" in format_detection(detect_run(read_run(run.folder)))


def test_a_run_without_its_reference_says_what_is_missing(run, capsys):
    (run.folder / "reference" / "reference.safetensors").unlink()
    assert main(["detect", str(run.folder)]) == 2
    assert "no reference in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_damaged_reference_is_one_sentence(run, capsys, damage):
    (run.folder / "reference" / "reference.safetensors").write_bytes(damage)
    assert main(["detect", str(run.folder)]) == 2
    assert "must be readable, got" in capsys.readouterr().err


def test_a_reference_of_another_suite_is_refused(run):
    file = run.folder / "reference" / "reference.safetensors"
    name = f"log_choice/{next(iter(run.records[0].tasks))}".encode()
    file.write_bytes(file.read_bytes().replace(name, name[:-1] + b"#", 1))
    with pytest.raises(ValueError, match="must hold the tasks of its run, got none of"):
        detect_run(run)


def test_a_run_without_probes_is_refused(tmp_path):
    store = RunStore.open(tmp_path / "crystalmon", {}, resume_step=None)
    with pytest.raises(ValueError, match="has no probe yet"):
        detect_run(read_run(store.folder))
