"""The experiments as commands: what they write and print, resuming after a kill, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_page import make_run

from crystalmon.cli.main import main
from crystalmon.experiments.common.command import run_alone
from crystalmon.experiments.common.parts import Parts
from crystalmon.runs.results import Result, read_result, read_results, result_files, write_result
from crystalmon.runs.store import write_info

TEMPERATURE = ["temperature", "liquid-tiny", "--suite", "liquid-tiny"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What one uninterrupted command has left."""
    folder = tmp_path_factory.mktemp("measured")
    assert main([*TEMPERATURE, "-o", str(folder)]) == 0
    return folder


def command(*arguments):
    return [sys.executable, "-m", "crystalmon.cli.main", *map(str, arguments)]


def test_temperature_writes_what_it_prints(tmp_path, capsys):
    assert main([*TEMPERATURE, "--weight", "2", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "L(T) = R − 2 · Var S is highest at T" in printed
    assert printed == (tmp_path / "temperature.txt").read_text()
    result = read_result(tmp_path / "temperature.json")
    assert result.models == {"model": "liquid-tiny"}
    assert result.settings["weight"] == 2
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".png", ".svg", ".txt"}


def test_json_is_one_line_and_all_else_goes_elsewhere(tmp_path, capsys):
    assert main([*TEMPERATURE, "--json", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == json.loads((tmp_path / "temperature.json").read_text())


@pytest.mark.long
def test_killed_it_goes_on_where_it_stopped(tmp_path, measured):
    arguments = command(*TEMPERATURE, "-o", tmp_path / "cut")
    started = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (files := [*(tmp_path / "cut").glob("temperature-*.parts.jsonl")]) or (
        (parts := files[0]).read_bytes().count(b"\n{") < 3
    ):
        assert started.poll() is None, started.communicate()
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    finished = {key for line in parts.read_text().splitlines()[1:] if line
                for key in json.loads(line)}  # fmt: skip
    assert 3 <= len(finished) < 15
    # what is finished is taken over: marked here, it shows in the result
    text = parts.read_text()
    first = json.loads(next(line for line in text.splitlines()[1:] if line))
    ((name, rows),) = first.items()
    marked = [[[7.0] * len(row) for row in prompt] for prompt in rows]
    parts.write_text(text.replace(json.dumps(first), json.dumps({name: marked})))
    assert main([*TEMPERATURE, "-o", str(tmp_path / "cut")]) == 0
    cut, whole = (read_result(way / "temperature.json") for way in (tmp_path / "cut", measured))
    assert cut.detail["tasks"][name]["entropy"] == pytest.approx([7.0] * 61)
    for task in set(whole.detail["tasks"]) - {name}:
        assert cut.detail["tasks"][task] == whole.detail["tasks"][task]
    assert not parts.exists()


def runs_at(tmp_path, penalties):
    folders = []
    for index, (penalty, seed) in enumerate(penalties):
        run = make_run(tmp_path / f"run{index}", [0, 1, 2])
        training = {} if penalty is None else {"beta": penalty, "seed": seed}
        write_info(run.folder, {**run.info, "training": training})
        folders.append(str(run.folder))
    return folders


def test_sharpness_needs_only_run_folders(tmp_path, capsys):
    folders = runs_at(tmp_path, [(0.1, 0), (1.0, 1)])
    assert main(["sharpness", *folders, "-o", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(run["beta"], run["seed"]) for run in result["detail"]["runs"]] == [(0.1, 0), (1, 1)]
    code = (
        "import sys; from crystalmon.cli.main import main; "
        f"main({['sharpness', *folders, '-o', str(tmp_path / 'out')]!r}); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_an_older_run_is_told_its_penalty(tmp_path, capsys):
    folders = runs_at(tmp_path, [(0.1, 0), (None, None)])
    assert main(["sharpness", *folders, "-o", str(tmp_path / "out")]) == 2
    assert "run1 must tell its KL penalty" in (told := capsys.readouterr().err)
    assert "--beta" in told
    given = ["-o", str(tmp_path / "out"), "--beta", "0.1", "0.5"]
    assert main(["sharpness", *folders, *given]) == 0


def test_the_report_shows_a_folder_of_results(tmp_path, measured):
    assert main(["report", str(measured), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert '"experiment":"temperature"' in page
    assert '"lanes":[]' in page


def test_predictions_on_results(tmp_path, capsys):
    folders = runs_at(tmp_path, [(0.1, 0), (1.0, 1)])
    assert main(["sharpness", *folders, "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["predictions", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    verdicts = [each["verdict"] for each in result["detail"]["predictions"]]
    assert verdicts == ["undetermined"] * 9
    assert "no result of landscape and context" in (tmp_path / "out/predictions.txt").read_text()
    assert main(["predictions", str(tmp_path / "out")]) == 0  # its own result is not one of them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temperature", "no-such-model"], "model 'no-such-model' cannot be loaded"),
        (["temperature", "liquid-tiny", "--suite", "nothing"], "nothing"),
        (["temperature", "liquid-tiny", "--weight", "-1"], "weight must be finite and at least 0"),
        (["temperature", "liquid-tiny", "--dtype", "nothing"], "dtype must be a torch dtype"),
        (["temperature", "liquid-tiny", "--device", "nowhere"], "device must be usable here"),
        (["context", "liquid-tiny", "--levels", "2"], "levels"),
        (["drift", "liquid-tiny", "--tokens", "0"], "tokens"),
        (["landscape", "liquid-tiny", "--base", "liquid-tiny", "--tokens", "0"], "tokens"),
        (["sharpness", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, message):
    status = 1 if "nowhere" in arguments[1:2] else 2  # a run that is not there
    assert main([*arguments, "-o", str(tmp_path / "out")]) == status
    told = capsys.readouterr().err
    assert message in told.splitlines()[-1]
    assert "Traceback" not in told


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*TEMPERATURE, "-o", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err.splitlines()[-1]


def test_predictions_without_results_say_so(tmp_path, capsys):
    assert main(["predictions", str(tmp_path)]) == 2
    assert "must hold results of experiments, found none" in capsys.readouterr().err


def stopped(*_, **__):
    raise KeyboardInterrupt


def test_a_mistaken_start_with_other_settings_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    put, left = Parts.put, [3]

    def cut(self, key, value):
        left[0] -= 1
        put(self, key, value) if left[0] >= 0 else stopped()

    monkeypatch.setattr(Parts, "put", cut)
    assert main([*TEMPERATURE, "-o", str(tmp_path)]) == 130
    assert "crystalmon: interrupted" in capsys.readouterr().err
    ((_, kept),) = [(file, file.read_bytes()) for file in tmp_path.glob("*.parts.jsonl")]
    left[0] = 1
    assert main([*TEMPERATURE, "--weight", "2", "-o", str(tmp_path)]) == 130
    assert kept in [file.read_bytes() for file in tmp_path.glob("*.parts.jsonl")]
    assert len([*tmp_path.glob("*.parts.jsonl")]) == 2
    assert not [*tmp_path.glob(".*.lock")]


def test_two_commands_do_not_measure_the_same_at_once(tmp_path):
    def again(_):
        return run_alone("drift", tmp_path, {"a": 1}, stopped)

    with pytest.raises(ValueError, match="another command is busy"):
        run_alone("drift", tmp_path, {"a": 1}, again)
    with pytest.raises(KeyboardInterrupt):  # and the next one may
        again(None)


def test_lines_that_are_no_parts_are_left_out(tmp_path):
    file = tmp_path / "parts.jsonl"
    Parts(file).put("a", 1)
    with file.open("ab") as handle:
        handle.write(b'5\n["b"]\nnull\n\xff\n{"b": ')
    parts = Parts(file)
    parts.put("c", 3)
    assert [key for key in "abc" if key in Parts(file)] == ["a", "c"]


def test_a_result_of_another_model_is_not_written_over(tmp_path, capsys):
    write_result(tmp_path, Result("temperature", {}, {"model": "mine"}, {}, {}))
    before = (tmp_path / "temperature.json").read_bytes()
    assert main([*TEMPERATURE, "-o", str(tmp_path)]) == 2
    assert "of the same model, got one of 'mine'" in capsys.readouterr().err
    assert (tmp_path / "temperature.json").read_bytes() == before


def test_a_base_that_is_not_there_is_told_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("crystalmon.cli.experiment_commands.load_placed", stopped)
    arguments = ["landscape", "liquid-tiny", "--base", str(tmp_path / "none"), "-o", str(tmp_path)]
    assert main(arguments) == 2
    assert "none" in capsys.readouterr().err


BROKEN = {
    "torn": '{"schema": 1, "exp',
    "not text": b"\xff\xfe",
    "estimates": '{"schema": 1, "experiment": "drift", "settings": {}, "models": {}, '
    '"estimates": [], "detail": {}}',
    "one estimate": '{"schema": 1, "experiment": "drift", "settings": {}, "models": {}, '
    '"estimates": {"a": 3}, "detail": {}}',
    "models": '{"schema": 1, "experiment": "drift", "settings": {}, "models": ["m"], '
    '"estimates": {}, "detail": {}}',
    "name": '{"schema": 1, "experiment": ["drift"], "settings": {}, "models": {}, '
    '"estimates": {}, "detail": {}}',
    "lacks": '{"schema": 1, "experiment": "drift", "settings": {}, "models": {}, '
    '"estimates": {}, "detail": {}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_predictions_name_a_broken_result(tmp_path, capsys, content):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "drift.json").write_bytes(content)
    assert main(["predictions", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("crystalmon: ")
    assert told.count("\n") == 1
    assert str(tmp_path) in told
    assert "found none" not in told


def test_json_of_another_kind_is_passed_over(tmp_path):
    """A result says by its key that it is one: a list, or an object without it, is none."""
    result = Result("drift", {}, {"model": "mine"}, {}, {}, step=3)
    file = write_result(tmp_path, result)
    (tmp_path / "drift-3-copy.json").write_bytes(file.read_bytes())
    (tmp_path / "drift.json").write_text("[1]")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    assert result_files(tmp_path) == [file]
    assert read_results(tmp_path) == [result]
    (tmp_path / "torn.json").write_text("{")
    assert result_files(tmp_path) == [file, tmp_path / "torn.json"]


def test_a_step_that_is_no_number_is_named(tmp_path, capsys):
    (tmp_path / "drift-3.json").write_text(BROKEN["lacks"][:-1] + ', "step": "3"}')
    assert main(["predictions", str(tmp_path)]) == 2
    assert "drift-3.json" in capsys.readouterr().err


def test_the_report_names_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "drift.json").write_text(BROKEN["torn"])
    arguments = ["report", str(tmp_path), "-o", str(tmp_path / "page.html")]
    assert main(arguments) == 2
    assert "drift.json must be a result" in capsys.readouterr().err
    write_result(tmp_path, Result("context", {}, {"model": "mine"}, {}, {}))
    assert main(arguments) == 0
    assert "drift.json must be a result" in (tmp_path / "page.html").read_text()


def test_a_reader_that_leaves_and_a_full_disk(tmp_path):
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    show = " ".join(command("suite", "show", "liquid-tiny"))
    for line, status in (
        (f"{show} | true; exit ${{PIPESTATUS[0]}}", 0),
        (f"{show} > /dev/full", 2),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=buffered)
        assert done.returncode == status
        assert "Exception ignored" not in done.stderr
        assert done.stderr.count("\n") == (1 if status else 0)


def test_a_model_without_a_tokenizer_is_named_in_one_sentence(tmp_path, capsys):
    assert main(["suite", "validate", "liquid-tiny", "--model", "no-such-model"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("crystalmon: ")
    assert "'no-such-model' cannot be loaded" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", [["predictions"], ["sharpness", "no-run", "-o"]])
def test_a_wrong_path_leaves_nothing_behind(tmp_path, command):
    folder = tmp_path / "typo"
    assert main([*command, str(folder)]) != 0
    assert not folder.exists()
