"""Trackers: what is logged is read back from the real backends' own files."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import make_event, make_record, make_task
from readback import read_tensorboard, read_wandb, wandb_history, wandb_summary

from crystalmon.metrics import catalogue
from crystalmon.report.page import write_report
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.records import PHASES, Event
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.runs.wordings import TaskTexts
from crystalmon.trackers.base import CompositeTracker, Tracker
from crystalmon.trackers.make import DESTINATIONS, TRACKERS, make_tracker
from crystalmon.trackers.panels import SUMMARIES, dashboard
from crystalmon.trackers.scalars_only import ScalarTracker
from crystalmon.trackers.tensorboard import TensorBoardTracker, tensorboard_folder
from crystalmon.trackers.trackio import TrackioTracker
from crystalmon.trackers.wandb import WandbTracker

METRICS = {
    "crystalmon/order": 0.25,
    "crystalmon/phase": 1.0,
    "crystalmon_tasks/coin flip/order": math.nan,
    "crystalmon_tasks/dice/order": math.inf,
}
EVIL = "<img src=x onerror=alert(1)>"


def snapshot(step: int = 5) -> Snapshot:
    tasks = {"coin": make_task(1), EVIL: make_task(2), "$a_$": make_task(3)}
    return Snapshot(
        make_record(step, tasks=tasks), {"coin": TaskTexts((), ("heads", "tails", "edge"))}
    )


def random_states() -> list[Any]:
    state: Any = np.random.get_state()
    return [random.getstate(), state[1].tolist(), state[2]]


# none of them is ours: the backends' own code on recent Pythons
backend = pytest.mark.filterwarnings("ignore")


class Recorder(Tracker):
    """A tracker that remembers, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.calls: list[str] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call(f"log {step} {dict(metrics)}")

    def show(self, snapshot: Snapshot) -> None:
        self._call(f"show {snapshot.record.step}")

    def event(self, event: Event) -> None:
        self._call(f"event {event.kind}")

    def close(self) -> None:
        self._call("close")

    def _call(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


def test_a_failing_tracker_neither_silences_the_others_nor_repeats_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, broken, last = Recorder(), Recorder(OSError("no network")), Recorder()
    composite = CompositeTracker({"first": first, "broken": broken, "last": last})
    with caplog.at_level(logging.WARNING):
        composite.log(1, {"a": 1.0})
        composite.event(make_event(1))
        composite.log(2, {"a": 2.0})
        composite.close()
    expected = ["log 1 {'a': 1.0}", "event nucleation_onset", "log 2 {'a': 2.0}", "close"]
    assert first.calls == last.calls == broken.calls == expected
    assert [record.name for record in caplog.records] == ["crystalmon.trackers.base"]
    assert "could not log to broken (OSError: no network)" in caplog.text


def test_answers_are_shown_once_training_ends() -> None:
    recorder = Recorder()
    composite = CompositeTracker({"x": recorder})
    for step in range(3):
        composite.show(Snapshot(make_record(step), {}))
    assert recorder.calls == []
    composite.catch_up()
    composite.close()
    assert recorder.calls == ["show 2", "close"]


@pytest.mark.parametrize(
    "kind", [kind for kind in TRACKERS.values() if issubclass(kind, ScalarTracker)]
)
def test_other_trackers_get_the_finite_scalars(
    kind: type[ScalarTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, float] = {}
    steps: list[int] = []

    def take(metrics: Mapping[str, float], step: int) -> None:
        got.update(metrics)
        steps.append(step)

    def scalar(title: str, series: str, value: float, iteration: int) -> None:
        take({f"{title}/{series}": value}, iteration)

    active: list[Any] = [None]
    experiment = types.SimpleNamespace(
        log_metrics=take, get_logger=lambda: types.SimpleNamespace(report_scalar=scalar)
    )
    fake: Any = types.SimpleNamespace(
        active_run=lambda: active[0],
        get_run=lambda: active[0],
        get_running_experiment=lambda: active[0],
        Task=types.SimpleNamespace(current_task=lambda: active[0]),
        log_metrics=take,
        log=take,
    )
    monkeypatch.setitem(sys.modules, kind.library, fake)
    tracker = kind()
    with pytest.raises(RuntimeError, match="before"):
        tracker.log(0, METRICS)
    active[0] = experiment
    tracker.log(7, {**METRICS, "crystalmon_tasks/<a>,b/order": 0.5})
    tracker.show(snapshot())
    tracker.event(make_event(7))
    tracker.close()
    is_mlflow = kind.library == "mlflow"
    odd = "crystalmon_tasks/_a__b/order" if is_mlflow else "crystalmon_tasks/<a>,b/order"
    assert got == {"crystalmon/order": 0.25, "crystalmon/phase": 1.0, odd: 0.5}
    assert set(steps) == {7}


def test_a_tracker_that_is_not_covered_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert make_tracker(["flyte", "none"], "out").trackers == {}
    assert "crystalmon does not log to flyte" in caplog.text
    assert len(caplog.records) == 1


def test_each_failing_tracker_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    composite = CompositeTracker({name: Recorder(ValueError(name)) for name in ("one", "two")})
    for step in range(3):
        composite.log(step, {})
    assert len(caplog.records) == 2


def test_a_keyboard_interrupt_is_not_a_failing_tracker() -> None:
    class Interrupted(Recorder):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CompositeTracker({"x": Interrupted()}).log(0, {})


def test_report_to_picks_the_trackers(tmp_path: Path) -> None:
    picked = make_tracker(["trackio", "mlflow", "tensorboard", "none"], str(tmp_path))
    assert tuple(picked.trackers) == ("tensorboard", "trackio", "mlflow")
    assert make_tracker([], str(tmp_path)).trackers == {}
    assert tuple(make_tracker(["wandb"], str(tmp_path)).trackers) == ("wandb",)


def test_a_missing_library_is_reported_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    tracker = make_tracker(["trackio"], str(tmp_path))
    tracker.log(0, METRICS)
    tracker.close()
    assert "could not log to trackio (ModuleNotFoundError" in caplog.text


def test_a_tracker_ignores_what_it_does_not_override(tmp_path: Path) -> None:
    tracker = Tracker(output_dir=str(tmp_path))
    tracker.log(0, METRICS)
    tracker.show(snapshot())
    tracker.event(make_event(0))
    tracker.alert("title", "text")
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="Tracker takes runs only while they are made"):
        tracker.opened_for(Run(tmp_path, {}, (), ()), "project")


def test_the_panels_follow_the_catalogue() -> None:
    shown = [
        curve for group in dashboard("x").values() for curves in group.values() for curve in curves
    ]
    suite = [curve.removeprefix("x/") for curve in shown]
    assert sorted(suite) == sorted(metric.key for metric in catalogue.METRICS if metric.panel)
    tasks = dashboard("x", "tasks")["Tasks"]
    assert tasks["Seed mass of each task"] == ["x_tasks/.*/seed_mass"]
    assert len(tasks) == len(catalogue.BRIEF)
    assert list(dashboard())[-1] == catalogue.COST


def test_the_summary_keeps_the_worst_value() -> None:
    assert SUMMARIES["order"] == SUMMARIES["free_energy"] == SUMMARIES["probe_share"] == "last,max"
    assert SUMMARIES["coverage"] == SUMMARIES["seed_mass"] == SUMMARIES["liquidity"] == "last,min"
    assert not {"phase", "tasks_liquid", "seed"} & set(SUMMARIES)


def test_stored_runs_can_be_sent_to_trackers_with_runs_of_their_own() -> None:
    assert DESTINATIONS == ("wandb", "tensorboard", "trackio")


def test_importing_the_trackers_imports_no_backend() -> None:
    code = (
        "import sys, crystalmon.trackers.make;"
        "print([m for m in ('torch', 'wandb', 'trackio', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# wandb


@backend
def test_wandb_gets_the_metrics_on_the_trainers_step_axis(wandb: Any, tmp_path: Path) -> None:
    run = wandb.init(project="p")
    # as transformers' own reporter does
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    tracker = WandbTracker()
    tracker.log(0, METRICS)
    run.log({"train/loss": 1.0, "train/global_step": 5})
    tracker.log(5, {**METRICS, "crystalmon/order": 0.5})
    tracker.event(make_event(5))
    tracker.event(make_event(5, kind="melting", task=None))
    tracker.close()
    assert wandb.run is run
    run.finish()
    wandb.teardown()
    records = read_wandb(tmp_path)
    history = wandb_history(records)
    ours = [row for row in history if "crystalmon/order" in row]
    assert [row["train/global_step"] for row in history] == [0, 5, 5]
    assert [row["crystalmon/order"] for row in ours] == [0.25, 0.5]
    assert all(set(METRICS) <= set(row) for row in ours)
    assert math.isnan(ours[0]["crystalmon_tasks/coin flip/order"])
    assert ours[0]["crystalmon_tasks/dice/order"] == math.inf
    axes = {
        r.metric.glob_name: r.metric.step_metric
        for r in records
        if r.WhichOneof("record_type") == "metric"
    }
    assert axes["crystalmon/*"] == axes["crystalmon_tasks/*"] == "train/global_step"
    summary = wandb_summary(records)
    assert summary["crystalmon/phase_name"] == PHASES[1]
    events = summary["crystalmon/events"]
    assert [event.split(": ")[1] for event in events] == [
        "nucleation_onset (coin)",
        "melting (suite)",
    ]


@backend
def test_wandb_gets_pictures_tables_alerts_and_the_report(wandb: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    store = RunStore.open(output / "crystalmon", {}, resume_step=None)
    store.append(make_record(0), [])
    wandb.init(project="p")
    before = random_states()
    tracker = WandbTracker(write_report=partial(write_report, [output / "crystalmon"]))
    tracker.log(5, METRICS)
    tracker.show(snapshot())
    tracker.event(make_event(5))
    tracker.event(make_event(6, kind="melting", task=None))
    tracker.close()
    assert random_states() == before
    wandb.run.finish()
    wandb.teardown()
    records = read_wandb(tmp_path)
    history = wandb_history(records)
    assert [row["train/global_step"] for row in history] == [5, 5]
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    media = {k.removeprefix("crystalmon_media/"): value for k, value in history[1].items()}
    assert (media["answers/_type"], media["answers/caption"]) == ("image-file", "step 5")
    assert (offline / "files" / media["answers/path"]).stat().st_size > 1000
    assert media["distributions/_type"] == "table-file"
    content = json.loads((offline / "files" / media["distributions/path"]).read_text())
    assert content["columns"] == ["step", "task", "phase", "choice", "share"]
    assert len(content["data"]) == 9
    assert content["data"][0][:4] == [5, "coin", "liquid", "heads"]
    assert sum(line[4] for line in content["data"][:3]) == pytest.approx(1, abs=1e-5)
    assert content["data"][3][1] == EVIL
    alerts = [r.alert for r in records if r.WhichOneof("record_type") == "alert"]
    assert [alert.title for alert in alerts] == ["crystalmon: melting"]
    assert alerts[0].text.startswith("step 6: melting (suite)")
    artifacts = [artifact for artifact in map(logged_artifact, records) if artifact is not None]
    (artifact,) = (artifact for artifact in artifacts if artifact.type == "report")
    assert [entry.path for entry in artifact.manifest.contents] == ["report.html"]
    kept = {
        r.metric.name: r.metric.summary
        for r in records
        if r.WhichOneof("record_type") == "metric" and r.metric.name
    }
    assert kept["crystalmon/order"].max
    assert kept["crystalmon/coverage"].min


def logged_artifact(record: Any) -> Any:
    if record.WhichOneof("record_type") == "artifact":
        return record.artifact
    request = record.request if record.WhichOneof("record_type") == "request" else None
    if request is not None and request.WhichOneof("request_type") == "log_artifact":
        return request.log_artifact.artifact
    return None


class FakeWandbRun:
    def __init__(self, name: str) -> None:
        self.id = name
        self.summary: dict[str, Any] = {}
        self.calls: list[tuple[Any, ...]] = []

    def alert(self, title: str, text: str) -> None:
        self.calls.append(("alert", title, text))

    def log(self, row: Mapping[str, Any], **options: Any) -> None:
        self.calls.append(("log", dict(row), options))

    def define_metric(self, name: str, **options: Any) -> None:
        self.calls.append(("define", name, options))


def test_wandb_is_told_of_the_step_once_a_run_and_never_passed_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = types.SimpleNamespace(run=FakeWandbRun("one"))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # pyright: ignore[reportArgumentType]
    tracker = WandbTracker()
    for step in (0, 3):
        tracker.log(step, {"crystalmon/order": 0.5})
    tracker.event(make_event(3))
    first, fake.run = fake.run, FakeWandbRun("two")
    tracker.event(make_event(7))
    defined = [call[1] for call in first.calls if call[0] == "define"]
    assert defined == [
        *(f"crystalmon{kind}/*" for kind in ("", "_tasks", "_experiments", "_media")),
        *(f"crystalmon/{key}" for key in SUMMARIES),
    ]
    assert [call for call in first.calls if call[0] == "log"] == [
        ("log", {"crystalmon/order": 0.5, "train/global_step": step}, {}) for step in (0, 3)
    ]
    assert len(fake.run.calls) == len(defined)
    assert len(fake.run.summary["crystalmon/events"]) == 1


@backend
def test_wandb_without_a_run_says_so(wandb: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="wandb has no active run"):
        WandbTracker().log(0, METRICS)
    make_tracker(["wandb"], "unused").log(0, METRICS)
    assert "could not log to wandb (RuntimeError: wandb has no active run" in caplog.text


# TensorBoard


@pytest.fixture
def trainers_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What transformers' reporter opens at the beginning of training."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path / "runs" / "Jan01_host"))
    writer.add_scalar("train/loss", 1.0, 0)
    return writer


@backend
def test_tensorboard_gets_the_metrics_beside_the_trainers_own(
    tmp_path: Path, trainers_writer: Any
) -> None:
    tracker = TensorBoardTracker(output_dir=str(tmp_path), logged="tasks")
    tracker.log(0, METRICS)
    tracker.log(5, METRICS)
    folder = tmp_path / "runs" / "Jan01_host" / "crystalmon"
    # each probe is on disk before the next
    assert len(read_tensorboard(folder).Scalars("crystalmon/order")) == 2
    tracker.event(make_event(5))
    tracker.event(make_event(5, task=None))
    events = read_tensorboard(folder)
    trainers_writer.close()
    tracker.close()
    assert set(events.Tags()["scalars"]) == set(METRICS)
    layout_pb2: Any = importlib.import_module("tensorboard.plugins.custom_scalar.layout_pb2")
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    assert [each.title for each in layout.category] == list(dashboard(logged="tasks"))
    patterns = [tag for part in layout.category for c in part.chart for tag in c.multiline.tag]
    assert [tag for tag in patterns if re.match(tag, "crystalmon/order")] == ["^crystalmon/order$"]
    assert not any(re.match(tag, "crystalmon/entropy_mixture") for tag in patterns)
    assert any(re.match(tag, "crystalmon_tasks/a b/order") for tag in patterns)
    order = [(scalar.step, scalar.value) for scalar in events.Scalars("crystalmon/order")]
    assert order == [(0, 0.25), (5, 0.25)]
    assert math.isnan(events.Scalars("crystalmon_tasks/coin flip/order")[1].value)
    assert events.Scalars("crystalmon_tasks/dice/order")[1].value == math.inf
    texts = events.Tensors("crystalmon_events/nucleation_onset/coin/text_summary")
    assert [text.step for text in texts] == [5]
    assert b"order passed 0.2" in texts[0].tensor_proto.string_val[0]
    assert "crystalmon_events/nucleation_onset/text_summary" in events.Tags()["tensors"]
    loss = read_tensorboard(folder.parent)
    assert loss.Tags()["scalars"] == ["train/loss"]


@backend
def test_tensorboard_gets_pictures(tmp_path: Path, trainers_writer: Any) -> None:
    trainers_writer.close()
    tracker = TensorBoardTracker(output_dir=str(tmp_path))
    tracker.show(snapshot())
    folder = tmp_path / "runs" / "Jan01_host" / "crystalmon"
    (image,) = read_tensorboard(folder).Images("crystalmon/answers")
    tracker.close()
    height, width, _ = snapshot().image.shape
    assert (image.step, image.height, image.width) == (5, height, width)


def test_a_choice_without_a_glyph_is_no_warning() -> None:
    record = make_record(0, tasks={"硬币": make_task()})
    assert Snapshot(record, {"硬币": TaskTexts((), ("正面", "反面", "边"))}).image.std() > 0


@backend
def test_tensorboard_goes_where_this_process_writes_now(
    tmp_path: Path, trainers_writer: Any
) -> None:
    runs = tmp_path / "runs"
    other = runs / "other" / f"events.out.tfevents.99.host.{os.getpid() + 1}.0"
    older = runs / "older" / f"events.out.tfevents.98.host.{os.getpid()}.0"
    ours = runs / "older" / "crystalmon" / f"events.out.tfevents.99.host.{os.getpid()}.0"
    for file, when in ((other, 4e9), (older, 1.0), (ours, 4e9)):
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (when, when))
    trainers_writer.close()
    assert tensorboard_folder(str(tmp_path)) == runs / "Jan01_host" / "crystalmon"


def test_tensorboard_follows_the_variable_or_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    assert tensorboard_folder(str(tmp_path)) == tmp_path / "runs" / "crystalmon"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "~/boards")
    assert tensorboard_folder(str(tmp_path)) == Path.home() / "boards" / "crystalmon"


@backend
def test_in_a_shared_tensorboard_folder_a_resume_supersedes_later_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    # event files are read in the order of their names, which begin with the second
    for second, steps, value in ((1e9, range(0, 8), 0.1), (1e9 + 1, range(4, 6), 0.9)):
        monkeypatch.setattr("time.time", partial(float, second))
        tracker = TensorBoardTracker()
        for step in steps:
            tracker.log(step, {"crystalmon/order": value})
        tracker.close()
    scalars = read_tensorboard(tmp_path / "crystalmon").Scalars("crystalmon/order")
    assert [(s.step, round(s.value, 1)) for s in scalars] == [
        *((step, 0.1) for step in range(4)),
        (4, 0.9),
        (5, 0.9),
    ]


def test_closing_an_unused_tensorboard_tracker_writes_nothing(tmp_path: Path) -> None:
    TensorBoardTracker(output_dir=str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == []


# trackio

TRACKIO_SCRIPT = """
import json, math, sys
sys.path.insert(0, {tests!r})
import trackio
from fake_runs import make_event
from readback import read_tensorboard, read_wandb, wandb_history, wandb_summary
from test_trackers import METRICS, snapshot
from crystalmon.trackers.trackio import TrackioTracker
trackio.init(project="p", name="r", embed=False, auto_log_cpu=False, auto_log_gpu=False)
tracker = TrackioTracker()
tracker.log(0, METRICS)
trackio.log({{"train/loss": 1.0, "train/global_step": 5}})
tracker.log(5, {{**METRICS, "crystalmon/order": 0.5}})
tracker.show(snapshot())
tracker.event(make_event(5))
tracker.event(make_event(6, "melting", None))
tracker.close()
trackio.finish()
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs("p", "r")
alerts = trackio.Api().alerts("p")
print("READ BACK", json.dumps([rows, alerts]))
"""


@backend
def test_trackio_gets_the_metrics_on_the_trainers_step_axis(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    # trackio fixes its folder on import, so that a process of its own is needed
    script = TRACKIO_SCRIPT.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, alerts = json.loads(done.stdout.split("READ BACK ")[1])
    assert [row["train/global_step"] for row in rows] == [0, 5, 5, 5]
    ours = [row for row in rows if "crystalmon/order" in row]
    assert [row["crystalmon/order"] for row in ours] == [0.25, 0.5]
    assert all(set(METRICS) <= set(row) for row in ours)
    assert math.isnan(ours[0]["crystalmon_tasks/coin flip/order"])
    assert ours[0]["crystalmon_tasks/dice/order"] == math.inf
    alert, loud = sorted(alerts, key=lambda alert: alert["level"])
    assert (alert["title"], alert["level"]) == ("nucleation_onset", "info")
    assert (loud["title"], loud["level"]) == ("melting", "warn")
    media = rows[-1]
    assert media["crystalmon_media/answers"]["caption"] == "step 5"
    (picture,) = tmp_path.rglob("*.png")
    assert picture.stat().st_size > 1000
    table = media["crystalmon_media/distributions"]["_value"]
    assert table[0]["choice"] == "heads"
    assert table[3]["task"] == EVIL
    assert alert["text"].startswith("step 5: nucleation_onset (coin): order passed 0.2")
    assert any(tmp_path.glob("*.db"))


TRAINED_SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
from test_callback import make_trainer
from crystalmon import CrystalCallback
from crystalmon.scoring.models import load_model
from crystalmon.suites.tasks import TaskSuite, load_suite
suite = TaskSuite("one", (load_suite("liquid-tiny")["coin"],))
model, tokenizer = load_model("liquid-tiny")
class Late(CrystalCallback):
    def on_step_end(self, *args, **kwargs):
        pass
    on_epoch_end = on_save = on_step_end
kind = Late if {late} else CrystalCallback
options = dict(report_to="trackio", project="p", run_name="r", max_steps=3)
make_trainer({output!r}, model, tokenizer, suite, [kind(suite)], **options).train()
from trackio.sqlite_storage import SQLiteStorage
print("READ BACK", json.dumps(SQLiteStorage.get_logs("p", "r")))
"""


@pytest.mark.long
@backend
@pytest.mark.parametrize("late", [False, True])
def test_trackio_has_the_last_probe_though_the_trainer_closes_it(tmp_path, late) -> None:
    pytest.importorskip("trackio")
    script = TRAINED_SCRIPT.format(
        tests=str(Path(__file__).parent), output=str(tmp_path / "out"), late=late
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "db"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.split("READ BACK ")[1])
    pictures = [row[key] for row in rows if (key := "crystalmon_media/answers") in row]
    assert [each["caption"] for each in pictures] == ([] if late else ["step 3"])
    said = [line for line in done.stderr.splitlines() if "could not log" in line]
    assert len(said) == late
    assert all("the trainer has closed its trackio run" in line for line in said)


@backend
def test_trackio_without_a_run_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("trackio")
    with pytest.raises(RuntimeError, match=r"trackio\.init"):
        TrackioTracker().log(0, METRICS)
    make_tracker(["trackio"], "unused").log(0, METRICS)
    assert "could not log to trackio (RuntimeError" in caplog.text
