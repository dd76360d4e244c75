"""The commands on run folders: one rule on what is not there, and on what cannot be written."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

from crystalmon.cli.main import main
from crystalmon.runs.lock import RunLock
from crystalmon.runs.store import RunStore

OLD = Path(__file__).parent / "data" / "run_before_rooms"


@pytest.fixture
def folder(tmp_path):
    """A copy of a short run of two tasks, free to be damaged."""
    return shutil.copytree(OLD, tmp_path / "run") / "crystalmon"


COMMANDS = {
    "summary": ["--figure", "OUT.svg"],
    "detect": [],
    "report": ["-o", "OUT.html"],
    "export": ["-o", "OUT.csv"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_there_is_shown_and_the_rest_is_named(folder, tmp_path, capsys, command):
    """One rule: what cannot be shown is left out with a note, and told as an error if alone."""
    begun, empty, gone = (tmp_path / name for name in ("begun", "empty", "gone"))
    starting = tmp_path / "starting"
    lock = RunLock(starting)
    RunStore.open(begun / "crystalmon", {}, resume_step=None).close()
    empty.mkdir()
    why = {
        starting: f"the run in {starting} has no probe yet: its training (process {os.getpid()} on",
        begun: f"the run in {begun / 'crystalmon'} has no probe yet. Wait for its first.",
        empty: f"no crystalmon run in {empty}: {empty / 'run.json'} is missing.",
        gone: f"no crystalmon run in {gone}: there is no such folder.",
    }
    for number, (place, sentence) in enumerate(why.items()):
        out = tmp_path / f"out{number}"
        more = [word.replace("OUT", str(out)) for word in COMMANDS[command]]
        assert main([command, str(place), *more]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"crystalmon: {sentence}")
        assert said.err.count("\n") == 1
        assert not list(tmp_path.glob("out*"))
        assert main([command, str(folder), str(place), *more]) == (place == gone)
        said = capsys.readouterr()
        assert said.out
        assert said.err.startswith(f"crystalmon: Left out: {sentence}")
        for file in tmp_path.glob(f"{out.name}*"):
            assert ("Left out: " in file.read_text()) == (command == "report")
            file.unlink()
    lock.release()


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_probes_are_told_from_none(folder, tmp_path, capsys, command):
    records = folder / "records.jsonl"
    records.write_text('{"step": 0}\n')
    more = [word.replace("OUT", str(tmp_path / "out")) for word in COMMANDS[command]]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([command, str(records.parent), *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"has no probe that can be read: {records}, line 1 cannot be read" in told


def test_a_page_that_cannot_be_written_is_one_sentence(folder, tmp_path, capsys):
    page = tmp_path / "report.html"
    page.write_text("mine")
    told = {
        str(tmp_path): "is there already. Choose another name, or add --force.",
        str(tmp_path / "page.pdf"): "the file must end in .html or .htm, got",
        str(tmp_path / "no" / "page.html"): "is not there. Make it first.",
        str(tmp_path / f"{'x' * 240}.html"): "cannot take the report: File name too long",
    }
    for output, sentence in told.items():
        assert main(["report", str(folder), "-o", output]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert page.read_text() == "mine"
    assert main(["report", str(folder), "-o", str(tmp_path), "--force"]) == 0
    assert page.read_text() != "mine"
