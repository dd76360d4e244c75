"""A run that version 0.1.0 wrote before the package had rooms reads, replays and resumes as then.

`data/run_before_rooms` is a short SFT of `liquid-tiny`, probed every 4 steps, stopped at step 20,
and resumed from step 16 up to 28. The figures below are those that the same version read from it.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from crystalmon import CrystalCallback, Monitor, read_run
from crystalmon.analysis.replay import detect_run
from crystalmon.cli.main import main
from crystalmon.phases.stored import replay_run, to_info
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.reference import TENSOR_FILE, load_reference
from crystalmon.suites.tasks import TaskSuite, load_suite

OLD = Path(__file__).parent / "data" / "run_before_rooms"
STEPS = [0, 4, 8, 12, 16, 20, 24, 28]
EVENTS = [
    (8, "coin", "nucleation_onset"),
    (8, "coin", "nucleation_complete"),
    (8, "color", "nucleation_onset"),
    (8, "color", "nucleation_complete"),
    (8, None, "nucleation_onset"),
    (8, None, "nucleation_complete"),
    (24, "color", "seed_locked"),
]
LOCK = {
    "seed": 19,
    "mass": 0.933579682,
    "nearest": 0.00882945714382611,
    "p_value": 0.04,
    "margin": 6.4858686765007665,
}


def mark(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.fixture
def old(tmp_path):
    """A copy of the output folder, free to be written to."""
    return shutil.copytree(OLD, tmp_path / "run_before_rooms")


@pytest.fixture
def two():
    """The suite of that run."""
    whole = load_suite("liquid-tiny")
    return TaskSuite("two", (whole["coin"], whole["color"]))


def test_records_and_events():
    run = read_run(OLD)
    assert [record.step for record in run.records] == STEPS
    assert run.superseded == 1, "step 20, which was probed before and after the resume"
    assert (run.name, run.info["trainer"], run.info["suite"]) == ("run_before_rooms", "SFT", "two")
    assert [(event.step, event.task, event.kind) for event in run.events] == EVENTS
    assert mark(np.stack([record.tasks["color"].q for record in run.records])) == "9782623daec1b3bc"
    assert run.series("free_energy")[1].tolist() == [
        0.0, 1.2616359352723263, 1.2986903846768811, 1.7814626003442555,
        1.3754977675486038, 1.1813950024077544, 1.2466671726436616, 1.2627311974747715,
    ]  # fmt: skip
    assert run.series("crystallinity", "color")[1][[1, -1]].tolist() == [
        0.7812457105981006,
        0.9647786752037232,
    ]
    assert run.intervals("order")[0][[1, -1]].tolist() == [0.9408587816110657, 0.9717839992908472]


def test_the_base_and_that_a_new_file_holds_the_same(tmp_path):
    run = read_run(OLD)
    base = read_base_answers(run.folder)
    assert {name: (q.shape, mark(q)) for name, q in base.items()} == {
        "coin": ((24, 2), "1dafa02793fb5185"),
        "color": ((24, 8), "521495991366819f"),
    }
    assert list(read_base_answers(run.folder, ["color"])) == ["color"]
    reference = load_reference(run.folder / "reference")
    assert reference.info.id == run.info["reference"] == "5449a1b754bf4c9f"
    rows = reference.log_p(np.arange(48))
    assert (rows.dtype, rows.shape, reference.shape) == (np.float32, (48, 768), (48, 768))
    assert mark(rows) == "5708017727300057"
    assert {name: (t.dtype, mark(t)) for name, t in reference.log_choice.items()} == {
        "coin": (np.float64, "e294702af51cc2f9"),
        "color": (np.float64, "8caa2093c24672e5"),
    }
    reference.in_memory().save(tmp_path)
    saved = load_reference(tmp_path).info
    assert saved == replace(reference.info, schema_version=saved.schema_version)
    before, after = (load_file(f / TENSOR_FILE) for f in (run.folder / "reference", tmp_path))
    assert {name: (t.dtype, t.shape, mark(t)) for name, t in after.items()} == {
        name: (t.dtype, t.shape, mark(t)) for name, t in before.items()
    }


def test_a_replay():
    run = read_run(OLD)
    found = detect_run(run)
    # kinds that it could not tell, and those of the seed, which is told by other rules now
    other = ("entropy_collapse", "free_energy_jump", "seed_locked", "seedless_collapse")

    def told(events):  # messages say wordings now where they said prompts
        return [
            (e.step, e.task, e.kind, e.message.replace("the prompts", "the wordings"))
            for e in events
            if e.kind not in other
        ]

    assert told(found.events) == told(run.events)
    of_others = [e for e in (*found.events, *run.events) if e.kind in other]
    assert found.differing == len(of_others) == 3, "and so are the numbers"
    assert found.phases == ((0, "liquid"), (8, "crystallized"))
    assert {name: (task.phase, task.seed) for name, task in found.tasks.items()} == {
        "coin": ("crystallized", None),
        "color": ("crystallized", 19),
    }
    assert found.tasks["color"].margin == pytest.approx(LOCK["margin"], rel=1e-9)
    assert found.tasks["color"].likeliest == "color?"
    base = read_base_answers(run.folder)
    tasks = replay_run(run, base).tasks
    kept = to_info({name: task.state.handed_on() for name, task in tasks.items()})
    assert kept["color"].pop("lock") == pytest.approx(LOCK, rel=1e-9)
    assert kept == {
        "coin": {"lock": None, "coverage": 0.9997355744013519, "raised": []},
        "color": {"coverage": 0.9981630410426009, "raised": []},
    }
    early = replay_run(run, base, until=12)
    assert early.phase == "crystallized"
    assert all(task.seed is None for task in early.tasks.values())


def test_a_report(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(OLD), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for part in ("PPjAp4rWp8Ba73fi3IHpaGzn0ZOY", "HShZaa5WLzxvGJMTIZ4VPWon", "seed_locked"):
        assert part in text, "the base's answers of coin, those of color, the last event"


def test_a_resume(old, model, tokenizer, two):
    callback = CrystalCallback(two)
    args = TrainingArguments(output_dir=str(old), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=40, global_step=24)
    callback.on_train_begin(args, state, TrainerControl(), model, tokenizer)
    assert callback.monitor.reference.info.id == "5449a1b754bf4c9f"
    tasks = callback.monitor.detector.tasks
    assert {name: (task.phase, task.seed) for name, task in tasks.items()} == {
        "coin": ("crystallized", None),
        "color": ("crystallized", 19),
    }
    run = read_run(old)
    assert [record.step for record in run.records] == STEPS[:-1]
    assert run.superseded == 2
    callback.on_train_end(args, state, TrainerControl())


def test_it_is_the_base_of_another_run(model, tokenizer, two):
    monitor = Monitor(model, tokenizer, two, reference=OLD)
    assert not monitor.is_own_base
    record = monitor.probe()
    assert record.metrics["free_energy"] == pytest.approx(0.0, abs=1e-6)
    assert monitor.base_coverage["color"] == pytest.approx(0.9981630410426009)
