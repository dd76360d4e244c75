"""Runs as data frames, and as the tables that `crystalmon export` writes."""

from __future__ import annotations

import math
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import make_record, make_task, planted_chain
from test_cli import run

from crystalmon.metrics.catalogue import BY_KEY
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import TaskRecord
from crystalmon.runs.store import RunStore

STAGES = (("sft", (0.0, 0.5, 0.9), 10), ("dpo", (0.9, 0.95), 5))


def write_run(folder, *records, **info):
    store = RunStore.open(folder / "crystalmon", {"suite": "s"} | info, resume_step=None)
    for record in records:
        store.append(record, [])
    return read_run(folder)


@pytest.fixture
def chain(tmp_path):
    return planted_chain(tmp_path, STAGES)


def arguments(runs):
    return [str(run.folder) for run in runs]


# --- in Python -------------------------------------------------------------------------------


def test_a_frame_has_what_series_and_intervals_have(chain):
    sft = chain[0]
    frame = sft.frame()
    places = ["step", "epoch", "time", "probe_seconds", "probe_share", "phase"]
    assert list(frame.columns[:6]) == places
    assert set(places[3:5]) < set(BY_KEY), "called as in the catalogue and in trackers"
    assert list(frame["probe_share"]) == [record.share for record in sft.records]
    keys = list(sft.records[0].metrics)
    ends = [f"{key}{end}" for key in keys for end in ("", "_low", "_high")]
    assert list(frame.columns[6:]) == ends
    for key in keys:
        steps, values = sft.series(key)
        low, high = sft.intervals(key)
        np.testing.assert_array_equal(frame["step"], steps)
        np.testing.assert_array_equal(frame[key], values)
        np.testing.assert_array_equal(frame[f"{key}_low"], low)
        np.testing.assert_array_equal(frame[f"{key}_high"], high)
    assert list(frame["phase"]) == [record.phase for record in sft.records]


def test_a_task_frame_has_what_series_and_intervals_have(chain):
    sft = chain[0]
    frame = sft.task_frame()
    assert list(frame.columns[:6]) == ["step", "task", "phase", "seed", "view", "asked"]
    tasks = sft.records[0].tasks
    assert len(frame) == len(sft.records) * len(tasks)
    for name in tasks:
        rows = frame[frame["task"] == name]
        for key in tasks[name].metrics:
            steps, values = sft.series(key, name)
            low, high = sft.intervals(key, name)
            np.testing.assert_array_equal(rows["step"], steps)
            np.testing.assert_array_equal(rows[key], values)
            np.testing.assert_array_equal(rows[f"{key}_low"], low)
            np.testing.assert_array_equal(rows[f"{key}_high"], high)
        seeds = [record.tasks[name].seed for record in sft.records]
        assert [None if pd.isna(seed) else seed for seed in rows["seed"]] == seeds
    assert frame["seed"].dtype == "Int64"
    assert 0 < frame["seed"].isna().sum() < len(frame)
    assert set(frame["asked"]) == {12}


def test_times_are_utc_and_what_is_missing_is_missing(tmp_path):
    first = make_record(0, time=1_700_000_000.25, epoch=None)
    later = make_record(5, time=math.inf, metrics={"entropy": 1.0}, ci={})
    frame = write_run(tmp_path, first, later).frame()
    assert frame["time"][0] == pd.Timestamp("2023-11-14T22:13:20.25", tz="UTC")
    assert pd.isna(frame["time"][1])
    assert frame["epoch"].tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)
    assert frame["entropy"].tolist() == pytest.approx([math.nan, 1.0], nan_ok=True)
    assert math.isnan(frame["order_low"][1])
    assert "entropy_low" not in frame


def test_the_metric_seed_does_not_hide_the_seed_that_is_held(tmp_path):
    q = make_task().q[:2]
    task = TaskRecord(q, {"seed": 3.0}, {}, "liquid", None, "chat", asked=(1, 4))
    found = write_run(tmp_path, make_record(0, tasks={"coin": task})).task_frame()
    assert pd.isna(found["seed"][0])
    assert found["seed_metric"][0] == 3.0
    assert (found["asked"][0], found["view"][0]) == (2, "chat")


def test_a_scan_has_its_stages_names(tmp_path):
    stages = [{"step": 0, "name": "base"}, {"step": 1, "name": "sft"}]
    scan = write_run(tmp_path, make_record(0), make_record(1), stages=stages)
    for frame in (scan.frame(), scan.task_frame()):
        assert list(frame.columns[:2]) == ["step", "stage"]
        assert frame["stage"].tolist() == ["base", "sft"]


def test_a_run_without_a_probe_has_the_columns_and_their_types(tmp_path):
    some, none = write_run(tmp_path / "a", make_record(0)), write_run(tmp_path / "b")
    for kind in ("frame", "task_frame"):
        filled, empty = getattr(some, kind)(), getattr(none, kind)()
        assert len(empty) == 0
        assert list(empty.columns) == list(filled.columns[:6])
        for column in ("step", *({"time", "epoch", "seed", "asked"} & set(empty.columns))):
            assert empty[column].dtype == filled[column].dtype


def test_records_left_on_disk_give_the_same_frames(chain):
    streamed = read_run(chain[0].folder, stream=True)
    pd.testing.assert_frame_equal(streamed.frame(), chain[0].frame())
    pd.testing.assert_frame_equal(streamed.task_frame(), chain[0].task_frame())


def test_without_pandas_it_says_what_to_install(chain, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for make in (chain[0].frame, chain[0].task_frame):
        with pytest.raises(ModuleNotFoundError, match="Run `pip install pandas`"):
            make()


# --- the command -----------------------------------------------------------------------------


def read_table(file):
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    return pd.read_csv(file)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("tasks", [False, True])
def test_a_table_comes_back_as_the_frame(capsys, tmp_path, chain, ending, tasks):
    file = tmp_path / f"table{ending}"
    more = ["--tasks"] if tasks else []
    status, out, _ = run(capsys, "export", str(chain[0].folder), "-o", str(file), *more)
    frame = chain[0].task_frame() if tasks else chain[0].frame()
    assert status == 0
    assert out == f"table: {file} ({len(frame)} rows, {len(frame.columns)} columns)\n"
    back = read_table(file)
    if ending == ".csv":  # which has no types
        types = {"seed": "Int64"} if tasks else {"time": frame["time"].dtype}
        back = back.astype(types)
    pd.testing.assert_frame_equal(back, frame, rtol=1e-14)


def test_several_runs_are_told_apart_by_a_column_in_front(capsys, tmp_path, chain):
    file = tmp_path / "all.csv"
    status, _, _ = run(capsys, "export", *arguments(chain), "-o", str(file))
    table = read_table(file)
    assert status == 0
    assert table.columns[0] == "run"
    assert list(table["run"]) == ["sft"] * 3 + ["dpo"] * 2
    np.testing.assert_array_equal(table["order"][3:], chain[1].series("order")[1])


def test_runs_of_one_name_are_told_apart_by_their_folders(capsys, tmp_path):
    runs = [write_run(tmp_path / each / "sft", make_record(0)) for each in "ab"]
    file = tmp_path / "all.csv"
    run(capsys, "export", *arguments(runs), "-o", str(file), "--tasks")
    assert list(read_table(file)["run"]) == arguments(runs)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("table.xlsx", "file must end in .csv or .parquet, got"),
        ("table", "file must end in .csv or .parquet, got"),
        ("none/table.csv", "is not there. Make it first."),
    ],
)
def test_a_file_that_cannot_be_is_one_sentence(capsys, tmp_path, name, sentence):
    made = write_run(tmp_path / "run", make_record(0))
    status, out, err = run(capsys, "export", str(made.folder), "-o", str(tmp_path / name))
    assert (status, out) == (2, "")
    assert err.startswith("crystalmon: ")
    assert sentence in err
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_file_is_replaced_only_when_that_is_asked_for(capsys, tmp_path, chain):
    file = tmp_path / "table.csv"
    file.write_text("mine")
    given = ["export", str(chain[0].folder), "-o", str(file)]
    status, _, err = run(capsys, *given)
    assert status == 2
    assert "is there already. Choose another name, or add --force." in err
    assert file.read_text() == "mine"
    status, _, _ = run(capsys, *given, "--force")
    assert status == 0
    assert len(read_table(file)) == 3


@pytest.mark.parametrize(
    ("missing", "file", "sentence"),
    [
        ("pandas", "table.csv", "Run `pip install pandas`."),
        ("pyarrow", "table.parquet", "Run `pip install pyarrow`, or write a .csv."),
    ],
)
def test_a_missing_package_is_one_sentence(
    capsys, tmp_path, chain, monkeypatch, missing, file, sentence
):
    monkeypatch.setitem(sys.modules, missing, None)
    output = tmp_path / file
    status, _, err = run(capsys, "export", str(chain[0].folder), "-o", str(output))
    assert status == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not output.exists()


def test_no_run_and_a_folder_in_the_way_leave_nothing(capsys, tmp_path, chain):
    status, _, err = run(capsys, "export", str(tmp_path / "none"), "-o", str(tmp_path / "t.csv"))
    assert status == 1
    assert "no crystalmon run in" in err
    (tmp_path / "way.csv").mkdir()
    way = str(tmp_path / "way.csv")
    status, _, err = run(capsys, "export", *arguments(chain), "-o", way, "--force")
    assert status == 2
    assert "cannot take the table" in err
    assert {each.name for each in tmp_path.iterdir()} == {"sft", "dpo", "way.csv"}
