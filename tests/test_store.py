"""The run folder: what is written is read back, whatever happened in between."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_event, make_record, make_task

from crystalmon.runs import store as store_module
from crystalmon.runs.files import RunFolderError
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import SCHEMA_VERSION
from crystalmon.runs.store import RunStore
from crystalmon.runs.trainer_log import LogRow

INFO = {"suite": "randomness", "model": "tiny — ünïcode", "max_steps": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "crystalmon"


def write(folder: Path, steps: range, resume_step: int | None = None) -> RunStore:
    store = RunStore.open(folder, INFO, resume_step=resume_step)
    for step in steps:
        store.append(make_record(step), [make_event(step)] if step % 2 else [])
    return store


def test_a_record_reads_back_as_it_was_written(folder: Path) -> None:
    write(folder, range(3))
    run = read_run(folder)
    expected = make_record(2)
    assert [record.step for record in run.records] == [0, 1, 2]
    assert run.records[2].ci == expected.ci
    assert np.isnan(run.records[2].metrics["free_energy"])
    np.testing.assert_array_equal(run.records[2].tasks["coin"].q, expected.tasks["coin"].q)
    assert run.events == (make_event(1),)
    assert run.info == {**INFO, "schema_version": SCHEMA_VERSION}
    assert run.superseded == 0
    assert (run.folder, run.name) == (folder, "out")


@pytest.mark.parametrize("where", ["out", "out/crystalmon"])
def test_the_output_folder_and_the_run_folder_both_name_the_run(
    tmp_path: Path, folder: Path, where: str
) -> None:
    write(folder, range(1))
    assert read_run(tmp_path / where).folder == folder


def test_every_line_is_strict_json_on_one_line(folder: Path) -> None:
    write(folder, range(4))

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    for name in ("records.jsonl", "events.jsonl"):
        content = (folder / name).read_bytes()
        assert content.endswith(b"\n")
        for line in content.split(b"\n")[:-1]:
            json.loads(line, parse_constant=refuse)
    assert "ünïcode" in (folder / "run.json").read_text(encoding="utf-8")


def test_a_run_without_a_probe_reads_as_empty(folder: Path) -> None:
    RunStore.open(folder, INFO, resume_step=None)
    run = read_run(folder)
    assert (run.records, run.events, run.superseded) == ((), (), 0)
    assert run.series("order")[0].shape == run.intervals("order")[0].shape == (0,)


def test_nothing_but_the_runs_own_files_is_left_in_the_folder(folder: Path) -> None:
    write(folder, range(2))
    RunStore.check_writable(folder)
    assert sorted(os.listdir(folder)) == ["events.jsonl", "records.jsonl", "run.json"]


def test_a_resume_supersedes_the_lines_past_its_step(folder: Path) -> None:
    write(folder, range(6))
    before = (folder / "records.jsonl").read_bytes()
    store = RunStore.open(folder, INFO, resume_step=3)
    store.append(make_record(4, share=0.5), [make_event(4, kind="melting")])
    run = read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2, 3, 4]
    assert run.records[-1].share == 0.5
    assert [(e.step, e.kind) for e in run.events] == [
        (1, "nucleation_onset"),
        (3, "nucleation_onset"),
        (4, "melting"),
    ]
    assert run.superseded == 2
    assert (folder / "records.jsonl").read_bytes().startswith(before)


def test_resumes_can_follow_one_another(folder: Path) -> None:
    write(folder, range(6))
    write(folder, range(3, 9), resume_step=2)
    write(folder, range(5, 6), resume_step=4)
    run = read_run(folder)
    assert [record.step for record in run.records] == list(range(6))
    assert run.superseded == 3 + 4


def test_a_fresh_start_in_an_old_folder_supersedes_everything(folder: Path) -> None:
    write(folder, range(4))
    write(folder, range(1))
    assert json.loads((folder / "events.jsonl").read_bytes().split(b"\n")[-2]) == {"resume": -1}
    run = read_run(folder)
    assert [record.step for record in run.records] == [0]
    assert (run.events, run.superseded) == ((), 4)


def test_records_in_doubt_are_told_apart(folder: Path) -> None:
    store = write(folder, range(6))
    assert read_run(folder).doubt == ""
    store.append(make_record(6), [], doubtful_after=3)
    run = read_run(folder)
    assert run.doubtful == (4, 5)
    assert "at steps 4 to 5 may be wrong" in run.doubt
    assert [record.step for record in run.records] == list(range(7))
    RunStore.open(folder, INFO, resume_step=4).append(make_record(5), [])
    assert read_run(folder).doubtful == (4,)


def test_the_first_start_writes_no_marker(folder: Path) -> None:
    write(folder, range(0))
    assert not (folder / "records.jsonl").exists()


def test_of_the_same_step_twice_the_last_counts(folder: Path) -> None:
    store = write(folder, range(2))
    store.append(make_record(1, share=0.9), [make_event(1)])
    run = read_run(folder)
    assert [record.share for record in run.records] == [0.02, 0.9]
    assert (run.superseded, len(run.events)) == (1, 1)


def test_a_streamed_run_holds_little_of_its_records(folder: Path) -> None:
    store = RunStore.open(folder, {}, resume_step=None)
    for step in range(500):
        store.append(make_record(step), [])
    held = {}
    for stream in (False, True):
        tracemalloc.start()
        run = read_run(folder, stream=stream)
        held[stream] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert [each.step for each in run.records] == list(range(500))
    assert held[True] < held[False] / 3


def test_reading_holds_no_more_than_what_counts(folder: Path) -> None:
    store = RunStore.open(folder, {}, resume_step=None)
    store.append(make_record(1), [])
    file = folder / "records.jsonl"
    file.write_bytes(5000 * file.read_bytes())
    tracemalloc.start()
    run = read_run(folder)
    assert tracemalloc.get_traced_memory()[1] < file.stat().st_size / 4
    tracemalloc.stop()
    assert run.superseded == 4999


def test_records_come_sorted_by_step(folder: Path) -> None:
    store = RunStore.open(folder, INFO, resume_step=None)
    for step in (3, 1, 2):
        store.append(make_record(step), [make_event(step)])
    run = read_run(folder)
    assert [record.step for record in run.records] == [e.step for e in run.events] == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_left_out_with_a_warning_that_names_it(folder: Path, cut: int) -> None:
    write(folder, range(3))
    file = folder / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    if cut == 1:  # only the newline is gone: the line is whole
        assert len(read_run(folder).records) == 3
        return
    with pytest.warns(UserWarning, match=r"records\.jsonl, line 3 cannot be read"):
        assert [record.step for record in read_run(folder).records] == [0, 1]


@pytest.mark.parametrize("cut", [1, 40])
def test_after_a_torn_line_the_next_one_stands_on_its_own(folder: Path, cut: int) -> None:
    write(folder, range(3))
    file = folder / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    store = RunStore.open(folder, INFO, resume_step=1)
    store.append(make_record(2, share=0.7), [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if cut > 1 else "error")
        run = read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2]
    assert run.records[-1].share == 0.7


@pytest.mark.parametrize(
    "line", [b"\x00\x00\x00", b"[1]", b"7", b'{"step": 1}', b'{"resume": null}', b"\xff{}"]
)
def test_any_unreadable_line_is_left_out(folder: Path, line: bytes) -> None:
    write(folder, range(1))
    for name in ("records.jsonl", "events.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(line + b"\n\n")
    write(folder, range(1, 2), resume_step=0)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        run = read_run(folder)
    named = ["".join(str(warning.message).split(" cannot")[:1]) for warning in caught]
    assert [Path(name).name for name in named] == [
        "records.jsonl, line 2",
        "events.jsonl, line 1",
    ]
    assert [record.step for record in run.records] == [0, 1]
    assert len(run.events) == 1


def test_a_killed_process_leaves_every_appended_probe(folder: Path) -> None:
    script = f"""
        import os, pathlib, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from fake_runs import make_event, make_record, make_task
        from crystalmon.runs.store import RunStore
        store = RunStore.open(pathlib.Path({str(folder)!r}), {{}}, resume_step=None)
        for step in range(3):
            store.append(make_record(step), [make_event(step)])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    run = read_run(folder)
    assert [r.step for r in run.records] == [e.step for e in run.events] == [0, 1, 2]


def test_killed_before_the_record_its_events_do_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(folder, range(2))
    real = store_module.append_lines

    def killed(file: Path, block: bytes, sync: bool = True) -> None:
        if file.name == "records.jsonl":
            raise KeyboardInterrupt
        real(file, block, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_lines", killed)
        with pytest.raises(KeyboardInterrupt):
            store.append(make_record(2), [make_event(2, kind="melting")])
    assert b'"melting"' in (folder / "events.jsonl").read_bytes()
    assert [event.step for event in read_run(folder).events] == [1]
    write(folder, range(2, 4), resume_step=1)
    run = read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert [(e.step, e.kind) for e in run.events] == [(s, "nucleation_onset") for s in (1, 3)]


def test_what_waited_is_written_events_first_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(folder, range(1))
    with monkeypatch.context() as patch:
        full_disk_after(patch, 0)
        with pytest.raises(RunFolderError):
            store.append(make_record(1), [])
    written: list[str] = []
    monkeypatch.setattr(
        store_module, "append_lines", lambda file, block, **_: written.append(file.name)
    )
    store.append(make_record(2), [make_event(2)])
    assert written == ["events.jsonl", "records.jsonl"]


# --- the trainer's log -----------------------------------------------------------------------


def write_log(folder: Path, steps: range, resume_step: int | None = None, shift: float = 0) -> None:
    store = RunStore.open(folder, INFO, resume_step=resume_step)
    for step in steps:
        store.append_log(LogRow(step, step / 10, {"loss": step + shift}))


def test_the_log_reads_back_as_it_was_written(folder: Path) -> None:
    store = RunStore.open(folder, INFO, resume_step=None)
    rows = (
        LogRow(1, 0.1, {"loss": 0.5, "grad_norm": math.inf}),
        LogRow(1, None, {"eval_loss": 0.6}),
        LogRow(2, 0.2, {"loss": 0.25, "grad_norm": -math.inf}),
    )
    for row in rows:
        store.append_log(row)
    run = read_run(folder)
    assert run.trainer_log == rows
    steps, loss = run.log_series("loss")
    assert (steps.tolist(), loss.tolist()) == ([1, 2], [0.5, 0.25])
    assert [each.size for each in run.log_series("nothing")] == [0, 0]
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "epoch": 0.1, "loss": 0.5, "grad_norm": "Infinity"}


def test_a_row_takes_the_numbers_of_the_trainer_alone() -> None:
    logs = {
        "loss": np.float32(0.5), "count": 3, "note": "text", "flag": True, "table": [1.0],
        "step": 9, "epoch": 9, "resume": 2, "crystalmon/order": 0.1, "crystalmon_tasks/a/b": 1.0,
    }  # fmt: skip
    assert LogRow.of(4, 0.5, logs) == LogRow(4, 0.5, {"loss": 0.5, "count": 3.0})


def test_a_resume_supersedes_the_log_past_its_step(folder: Path) -> None:
    write_log(folder, range(1, 7))
    write_log(folder, range(4, 6), resume_step=3, shift=0.5)
    steps, loss = read_run(folder).log_series("loss")
    assert (steps.tolist(), loss.tolist()) == ([1, 2, 3, 4, 5], [1, 2, 3, 4.5, 5.5])
    write_log(folder, range(1, 2))
    assert read_run(folder).log_series("loss")[0].tolist() == [1]


def test_without_a_log_there_is_none(folder: Path) -> None:
    write(folder, range(2))
    write(folder, range(2, 3), resume_step=1)
    assert read_run(folder).trainer_log == ()
    assert not (folder / "trainer_log.jsonl").exists()


@pytest.mark.parametrize(
    "line",
    [b"[1]", b'{"loss": 1}', b'{"step": 2, "loss": "high"}', b'{"step": 2, "loss": null}', b'{"st'],
)
def test_a_line_of_the_log_that_does_not_fit_is_left_out_and_named(
    folder: Path, line: bytes
) -> None:
    write_log(folder, range(1, 2))
    with (folder / "trainer_log.jsonl").open("ab") as file:
        file.write(line)
    write_log(folder, range(2, 3), resume_step=1)
    run = read_run(folder)
    with pytest.warns(UserWarning, match=r"trainer_log\.jsonl, line 2 cannot be read"):
        assert run.log_series("loss")[0].tolist() == [1, 2]


def test_a_log_that_cannot_be_written_waits_for_the_next_probe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(folder, range(1))
    with monkeypatch.context() as patch:
        full_disk_after(patch, 0)
        with pytest.raises(RunFolderError):
            store.append_log(LogRow(1, None, {"loss": 1.0}))
        store.append_log(LogRow(2, None, {"loss": 2.0}))  # one failure is told, not each line's
    assert read_run(folder).trainer_log == ()
    store.append(make_record(3), [])
    assert read_run(folder).log_series("loss")[0].tolist() == [1, 2]


# --- a disk that is full ---------------------------------------------------------------------


def full_disk_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let os.write take `room` more bytes, a part of a block included, then refuse."""
    real, left = os.write, room

    def write(descriptor: int, block: memoryview) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, block[:left])
        left -= done
        return done

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("truncates", [True, False])
def test_a_full_disk_tears_no_line_and_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, truncates: bool
) -> None:
    store = write(folder, range(2))
    with monkeypatch.context() as patch:
        full_disk_after(patch, 50)
        if not truncates:
            real = Path.open
            patch.setattr(Path, "open", lambda *a, **k: Untruncatable(real(*a, **k)))
        with pytest.raises(RunFolderError, match="take the probe at step 2: No space left"):
            store.append(make_record(2), [make_event(2)])
        with pytest.raises(RunFolderError, match="take the last probes: No space left"):
            store.close()
    store.append(make_record(3), [])
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if truncates else "ignore")
        run = read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert [event.step for event in run.events] == [1, 2]


class Untruncatable:
    """A file on which taking back what has been written fails too."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> Untruncatable:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> object:
        if name == "truncate":
            raise OSError(errno.EIO, "no")
        return getattr(self.file, name)


def test_a_disk_that_takes_parts_of_a_line_still_gets_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda d, block: real(d, block[:7]))
    write(folder, range(2))
    assert len(read_run(folder).records) == 2


def test_appending_syncs_to_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(folder, range(1))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.fstat(d).st_size))
    store.append(make_record(1), [make_event(1)])
    sizes = [(folder / name).stat().st_size for name in ("events.jsonl", "records.jsonl")]
    assert synced == sizes


def test_a_record_that_is_no_json_writes_nothing(folder: Path) -> None:
    store = write(folder, range(1))
    before = (folder / "records.jsonl").read_bytes()
    with pytest.raises(TypeError):
        store.append(make_record(1, metrics={"order": object()}), [])
    assert (folder / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("obstacle", ["out", "out/crystalmon"])
def test_a_file_in_the_way_is_named(tmp_path: Path, folder: Path, obstacle: str) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("I was here first")
    message = rf"the folder {folder} cannot be written to: .*Move the file that is in the way"
    with pytest.raises(RunFolderError, match=message):
        RunStore.open(folder, INFO, resume_step=None)
    assert (tmp_path / obstacle).read_text() == "I was here first"


def test_a_folder_in_place_of_a_line_file_is_named(folder: Path) -> None:
    (folder / "records.jsonl").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"Is a directory \(.*records\.jsonl\)"):
        RunStore.open(folder, INFO, resume_step=None)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EACCES, "Permission denied.*Make it writable"),
        (errno.EROFS, "Read-only file system.*writable file system"),
        (errno.ENOSPC, "No space left on device.*Free some disk space"),
        (errno.EIO, "Input/output error.*Choose another output folder"),
    ],
)
def test_what_stands_against_writing_is_said_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(RunFolderError, match=advice):
        RunStore.open(folder, INFO, resume_step=None)
    assert list(folder.iterdir()) == []


def test_a_read_only_folder_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write to a read-only folder")
    with pytest.raises(RunFolderError, match="Permission denied"):
        RunStore.check_writable(folder)


def test_reading_where_there_is_no_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no crystalmon run in .*run\.json is missing"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="it is not a folder"):
        read_run(tmp_path / "file")
    (tmp_path / "crystalmon").mkdir()
    with pytest.raises(FileNotFoundError, match=r"crystalmon/run\.json is missing"):
        read_run(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    write(folder, range(1))
    info = {**INFO, "schema_version": SCHEMA_VERSION + 1}
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="Upgrade crystalmon"):
        read_run(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": null}'])
def test_a_damaged_run_file_is_named(folder: Path, text: str) -> None:
    write(folder, range(1))
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json must be JSON with a schema_version"):
        read_run(folder)


def test_series_and_intervals_follow_a_metric(folder: Path) -> None:
    store = write(folder, range(2))
    bare = replace(make_task(5), metrics={}, ci={})
    store.append(make_record(5, metrics={}, ci={}, tasks={"coin": bare}), [])
    run = read_run(folder)
    steps, values = run.series("order")
    np.testing.assert_array_equal(steps, [0, 1, 5])
    np.testing.assert_array_equal(values, [0.0, 0.01, np.nan])
    np.testing.assert_array_equal(run.series("order", "coin")[1], [0.1, 0.1, np.nan])
    with pytest.raises(ValueError, match="has no task 'dice'"):
        run.series("order", "dice")
    with pytest.raises(ValueError, match="a task has no metric 'ordr'"):
        run.series("ordr", "coin")
    low, high = run.intervals("order", "coin")
    np.testing.assert_array_equal(low, [0.0, 0.0, np.nan])
    np.testing.assert_array_equal(high, [0.1, 0.1, np.nan])


def test_reading_a_run_imports_neither_torch_nor_transformers(folder: Path) -> None:
    write(folder, range(1))
    code = (
        "import sys, crystalmon.runs.reader as s; s.read_run(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_name_that_looks_like_no_number_stays_a_name(tmp_path: Path) -> None:
    words = {"coin": {"prompts": ["p"], "choices": ["NaN", "Infinity"]}}
    info = {
        "suite_texts": words,
        "stages": [{"name": "-Infinity", "step": 0}],
        "inherited": {"floor": float("inf")},
    }
    RunStore.open(tmp_path, info, resume_step=None)
    found = read_run(tmp_path).info
    assert {key: found[key] for key in info} == info
