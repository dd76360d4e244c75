"""The experiments as commands: what they write and print, resuming after a kill, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from test_page import make_run

from crystalmon.cli import main
from crystalmon.experiments.folder import read_result
from crystalmon.store import write_info

TEMPERATURE = ["temperature", "liquid-tiny", "--suite", "liquid-tiny"]


def command(*arguments):
    return [sys.executable, "-m", "crystalmon.cli", *map(str, arguments)]


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


def test_killed_it_goes_on_where_it_stopped(tmp_path):
    arguments = command(*TEMPERATURE, "-o", tmp_path / "cut")
    started = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    parts = tmp_path / "cut" / "temperature.parts.jsonl"
    while not parts.is_file() or parts.read_bytes().count(b"\n{") < 3:
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
    assert main([*TEMPERATURE, "-o", str(tmp_path / "whole")]) == 0
    cut, whole = (read_result(tmp_path / way / "temperature.json") for way in ("cut", "whole"))
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
        "import sys; from crystalmon.cli import main; "
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


def test_the_report_shows_a_folder_of_results(tmp_path, capsys):
    assert main([*TEMPERATURE, "-o", str(tmp_path / "out")]) == 0
    assert main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html")]) == 0
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
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
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
