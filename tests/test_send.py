"""A stored run or scan, sent to trackers and read back from their own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_runs import planted_chain
from readback import read_tensorboard, read_wandb, wandb_history, wandb_summary
from test_scan_figures import write_scan
from test_trackers import backend, logged_artifact
from test_verdicts import at_seed, liquid_base, settled

from crystalmon.cli.main import main
from crystalmon.runs.reader import read_run
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.trackers.send import send_run
from crystalmon.trackers.tensorboard import TensorBoardTracker

pytestmark = pytest.mark.long


@pytest.fixture
def scanned(tmp_path: Path) -> Run:
    """A scan of three stages, with words."""
    base = liquid_base()
    return write_scan(tmp_path / "scan", base, [at_seed(base), settled(base)])[0]


@backend
def test_tensorboard_gets_every_stage_of_a_scan(
    scanned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    assert main(["send", str(scanned.folder), "--to", "tensorboard"]) == 0
    place = Path(capsys.readouterr().out.split(": ")[-1].strip())
    found = read_tensorboard(place)
    order = found.Scalars("crystalmon/order")
    assert [s.step for s in order] == [record.step for record in scanned.records]
    told = [record.metrics["order"] for record in scanned.records]
    assert [s.value for s in order] == pytest.approx(told, abs=1e-6)
    assert found.Tags()["images"] == ["crystalmon/answers"]


@backend
def test_wandb_gets_a_run_of_its_own_with_events(wandb: Any, tmp_path: Path) -> None:
    (run,) = planted_chain(tmp_path, [("sft", [0, 0.2, 0.6, 0.9, 0.98], 10)])
    send_run(run, "wandb", project="p")
    assert wandb.run is None
    wandb.teardown()
    records = read_wandb(tmp_path)
    rows = [row for row in wandb_history(records) if "crystalmon/order" in row]
    assert [row["train/global_step"] for row in rows] == [0, 10, 20, 30, 40]
    assert [row["crystalmon/order"] for row in rows] == [r.metrics["order"] for r in run.records]
    summary = wandb_summary(records)
    assert summary["crystalmon/phase_name"] == run.records[-1].phase
    assert len(summary["crystalmon/events"]) == len(run.events) > 0
    own = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert own.display_name == "sft"


@backend
def test_wandb_gets_a_scans_configuration_pictures_and_report(
    wandb: Any, scanned: Run, tmp_path: Path
) -> None:
    send_run(scanned, "wandb", project="p")
    wandb.teardown()
    records = read_wandb(tmp_path)
    media = [row for row in wandb_history(records) if "crystalmon_media/answers/path" in row]
    steps = [row["train/global_step"] for row in media]
    assert steps[0] == 0
    assert steps[-1] == scanned.records[-1].step
    artifacts = [found for found in map(logged_artifact, records) if found is not None]
    (report,) = (found for found in artifacts if found.type == "report")
    assert [entry.path for entry in report.manifest.contents] == ["report.html"]
    kept = {
        item.key: item.value_json
        for r in records
        for item in (*r.run.config.update, *r.config.update)
    }
    assert json.loads(kept["stages"]) == scanned.info["stages"]
    assert "suite_texts" not in kept


@backend
def test_an_active_wandb_run_is_left_alone(wandb: Any, scanned: Run) -> None:
    with wandb.init(project="p") as active:
        with pytest.raises(ValueError, match="wandb has an active run"):
            send_run(scanned, "wandb")
        assert wandb.run is active


@backend
def test_a_sent_run_has_some_pictures_of_its_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    steps: list[int] = []
    monkeypatch.setattr(
        TensorBoardTracker, "show", lambda _, snapshot: steps.append(snapshot.record.step)
    )
    (run,) = planted_chain(tmp_path, [("sft", [i / 60 for i in range(61)], 1)])
    send_run(run, "tensorboard")
    changes = [b.step for a, b in pairwise(run.records) if a.phase != b.phase]
    assert {0, 60, *changes} <= set(steps)
    assert len(steps) < 15


@backend
def test_runs_do_not_supersede_each_other_in_a_chosen_tensorboard_folder(
    scanned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    (run,) = planted_chain(tmp_path, [("sft", [0, 0.5], 10)])
    places = {send_run(each, "tensorboard"): each for each in (scanned, run)}
    assert len(places) == 2
    for place, each in places.items():
        found = read_tensorboard(Path(place)).Scalars("crystalmon/order")
        assert [s.step for s in found] == [record.step for record in each.records]


@backend
def test_a_scan_is_named_as_in_training_whatever_its_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    base = liquid_base()
    write_scan(tmp_path / "scan", base, [at_seed(base)])
    renamed = read_run(tmp_path / "scan").folder.rename(tmp_path / "crystalmon-olmo")
    monkeypatch.chdir(renamed)
    place = send_run(read_run("."), "tensorboard")
    assert Path(place) == renamed / "runs" / "crystalmon"


@backend
def test_trackio_gets_every_probe(scanned: Run, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    # trackio fixes its folder on import, so that a process of its own is needed
    script = (
        "import json, sys\n"
        "from crystalmon.cli.main import main\n"
        f"sent = main(['send', {str(scanned.folder)!r}, '--to', 'trackio', '--project', 'p'])\n"
        "assert sent == 0\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = SQLiteStorage.get_runs('p')\n"
        "print('READ BACK', json.dumps(SQLiteStorage.get_logs('p', run)))\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "t"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.split("READ BACK ")[1])
    ours = [row for row in rows if "crystalmon/order" in row]
    assert [row["train/global_step"] for row in ours] == [r.step for r in scanned.records]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("WANDB_MODE", "disabled", "wandb is disabled"),
        ("WANDB_MODE", "nonsense", "wandb does not take the run: 1 validation error for Settings"),
    ],
)
@backend
def test_a_wandb_that_takes_nothing_is_one_sentence(
    wandb: Any,
    scanned: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(setting, value)
    assert main(["send", str(scanned.folder), "--to", "wandb"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "crystalmon: " in one]
    assert message in line
    assert wandb.run is None or wandb.run.disabled


@backend
def test_one_destination_that_fails_does_not_cost_the_others(
    scanned: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main(["send", str(scanned.folder), "--to", "trackio", "tensorboard"]) == 2
    out, err = capsys.readouterr()
    assert "not sent to trackio" in err
    assert "tensorboard: 3 probes" in out


def test_a_folder_that_cannot_be_written_is_named(
    scanned: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (scanned.folder / "runs").write_text("in the way")
    assert main(["send", str(scanned.folder), "--to", "tensorboard"]) == 2
    assert "set TENSORBOARD_LOGGING_DIR" in capsys.readouterr().err


def test_a_run_without_a_probe_is_refused(tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "crystalmon", {}, resume_step=None)
    store.close()
    with pytest.raises(ValueError, match="has no probe"):
        send_run(read_run(tmp_path), "tensorboard")


def test_another_destination_is_refused(scanned: Run) -> None:
    with pytest.raises(ValueError, match="destination must be one of wandb, tensorboard, trackio"):
        send_run(scanned, "mlflow")


def test_a_library_that_is_missing_is_named(
    scanned: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main(["send", str(scanned.folder), "--to", "trackio"]) == 2
    assert "Run `pip install trackio`." in capsys.readouterr().err
