"""The command line: what it prints, and one sentence for bad input."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace

import pytest
from fake_runs import planted_chain

import crystalmon
from crystalmon import Monitor
from crystalmon.cli.main import main
from crystalmon.monitor.run_info import run_info
from crystalmon.runs.reader import read_run
from crystalmon.runs.store import RunStore
from crystalmon.scoring.models import load_model
from crystalmon.suites.tasks import Choice, Task, TaskSuite, load_suite


def run(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_probe_prints_a_row_per_task(capsys):
    status, out, _ = run(capsys, "probe", "liquid-tiny", "--suite", "liquid-tiny")
    assert status == 0
    for task in load_suite("liquid-tiny"):
        assert task.name in out
    assert "liquidity" in out
    assert "free energy" not in out, "without a base there is nothing to compare with"


def test_probe_against_a_base_compares(capsys):
    base = ("--base", "liquid-tiny")
    status, out, _ = run(capsys, "probe", "liquid-tiny", "--suite", "liquid-tiny", *base)
    assert status == 0
    assert "free energy" in out
    rows = {line.split()[1]: line.split()[2:] for line in out.splitlines() if "│" in line}
    means = [cell for cell in rows["mean"] if cell != "│"]
    of_base = [cell for cell in rows["base"] if cell != "│"]
    assert of_base == means[: len(of_base)]
    assert len(of_base) == 4
    assert "liquid: all 15" in out


def test_probe_asks_as_the_run_did_that_it_is_compared_with(capsys, tmp_path, model, tokenizer):
    view = "Q: {prompt} A:"
    base = Monitor(model, tokenizer, "liquid-tiny", "initial", view=view).reference
    base.save(tmp_path / "reference")
    asked = ("probe", "liquid-tiny", "--base", str(tmp_path))
    status, out, _ = run(capsys, *asked)
    assert status == 0
    assert f"liquid-tiny · {view}" in out
    assert "free energy" in out
    replace(base, info=replace(base.info, suite="judge")).save(tmp_path / "reference")
    status, _, err = run(capsys, *asked)
    assert status != 0
    assert "has a suite of its own: add --suite FILE." in err
    bundled = load_suite("liquid-tiny")["coin"]
    widened = Task("flip", bundled.prompts, tuple(map(Choice, ("heads", "tails"))))
    own = TaskSuite("mine", (bundled, widened)).with_forms("capital")
    monitor = Monitor(model, tokenizer, own, "initial")
    shutil.rmtree(tmp_path / "reference")
    store = RunStore.open(
        tmp_path / "crystalmon", run_info(monitor, {}, "SFT", 1), resume_step=None
    )
    monitor.reference.save(store.folder / "reference")
    store.close()
    status, out, _ = run(capsys, *asked, "--json")
    assert status == 0, "the run quotes its suite"
    assert list(json.loads(out)["tasks"]) == ["coin", "flip"]


def test_a_run_that_lost_its_reference_is_not_taken_for_a_base(capsys, tmp_path):
    (tmp_path / "crystalmon").mkdir()
    (tmp_path / "crystalmon" / "run.json").write_text("{}")
    status, _, err = run(capsys, "probe", "liquid-tiny", "--base", str(tmp_path))
    assert status != 0
    assert "has lost its reference folder, and its model is not the base" in err


def test_probe_as_json_is_a_record(capsys):
    status, out, _ = run(capsys, "probe", "liquid-tiny", "--suite", "liquid-tiny", "--json")
    record = json.loads(out)
    assert status == 0
    assert set(record["tasks"]) == {task.name for task in load_suite("liquid-tiny")}
    assert record["metrics"]["coverage"] > 0.9


def test_suite_commands(capsys, tmp_path):
    status, out, _ = run(capsys, "suite", "list")
    assert status == 0
    assert "randomness: 15 tasks, 360 prompts" in out
    status, out, _ = run(capsys, "suite", "show", "randomness")
    assert "coin: 24 prompts, 2 choices: heads, tails" in out
    status, out, _ = run(capsys, "suite", "show", "randomness", "--task", "coin")
    assert len(out.splitlines()) == 26
    status, out, _ = run(capsys, "suite", "validate", "liquid-tiny", "--model", "liquid-tiny")
    assert status == 0
    assert "tokens a probe" in out
    glued = tmp_path / "glued.yaml"
    glued.write_text(
        "name: glued\n"
        "tasks:\n"
        "- {name: coin, prompts: ['Pick a coin side '], choices: [heads, tails]}"
    )
    status, out, _ = run(capsys, "suite", "validate", str(glued), "--model", "liquid-tiny")
    assert status == 0
    assert "merge with the last token of their prompt" in out
    assert "task 'coin': 'Pick a coin side ' + " in out


def test_summary_prints_the_table_and_draws(capsys, tmp_path):
    stages = (("sft", (0.0, 0.5, 0.9), 10), ("dpo", (0.9, 0.95), 10))
    folders = [str(run.folder) for run in planted_chain(tmp_path, stages)]
    figure = tmp_path / "figure.png"
    status, out, _ = run(capsys, "summary", *folders, "--figure", str(figure))
    assert status == 0
    assert "crystallinity" in out
    assert figure.stat().st_size > 10_000
    _, out, err = run(capsys, "summary", *folders, "--json", "--figure", str(figure))
    rows = json.loads(out)
    assert [row["stage"] for row in rows] == ["base", "sft", "dpo"]
    assert rows[-1]["metrics"]["order"] == read_run(folders[-1]).records[-1].metrics["order"]
    assert f"figure: {figure}" in err


@pytest.mark.parametrize(
    ("wordings", "said"),
    [(1, "one wording: entropy and KL only"), (4, "4 wordings: wide"), (8, "")],
)
def test_what_a_suite_is_too_small_for_is_said(capsys, tmp_path, wordings, said):
    file = tmp_path / "own.yaml"
    prompts = [f"Flip {number}" for number in range(wordings)]
    task = {"name": "coin", "prompts": prompts, "choices": ["heads", "tails"]}
    file.write_text(json.dumps({"name": "own", "tasks": [task]}))
    status, out, _ = run(capsys, "suite", "validate", str(file))
    assert status == 0
    assert said in out
    assert len(out.splitlines()) == 1 + bool(said)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["probe", "liquid-tiny", "--suite", "nothing"], "suite 'nothing' is neither a bundled"),
        (["probe", "liquid-tiny", "--dtype", "floaty"], "dtype must be a torch dtype"),
        (["probe", "liquid-tiny", "--suite", "liquid-tiny", "--base", "no/x"], "is neither 'auto'"),
        (["probe", "no/where"], "no/where' cannot be loaded: there is no such folder, and on the"),
        (["probe", "./no/where"], "./no/where' cannot be loaded: there is no such folder."),
        (["cost", "no/such/place"], "no/such/place' cannot be loaded: there is no such folder."),
        (["probe", "./no.gguf"], "./no.gguf' cannot be loaded: there is no such file."),
        (["scan", "b=liquid-tiny", "-o", "x", "--view", "chta"], "view must be both, raw, chat"),
        (["suite", "show", "randomness", "--task", "x"], "task must be one of digit"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, sentence):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "Traceback" not in err
    said = err.strip().splitlines()[-1]
    assert said.startswith("crystalmon: ")
    assert sentence in said


@pytest.fixture(scope="module")
def demanding(tmp_path_factory):
    """A model whose chat template wants a system message."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = load_model("liquid-tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    return str(folder)


@pytest.mark.parametrize(
    "command",
    [
        ["probe", "MODEL", "--suite", "liquid-tiny", "--view", "chat"],
        ["cost", "MODEL", "--suite", "liquid-tiny", "--view", "chat"],
        ["suite", "validate", "liquid-tiny", "--model", "MODEL", "--view", "chat"],
        ["scan", "base=MODEL", "--suite", "liquid-tiny", "--view", "chat", "-o", "OUT"],
    ],
)
def test_a_chat_template_that_raises_is_one_sentence(capsys, tmp_path, demanding, command):
    places = {"MODEL": demanding, "base=MODEL": f"base={demanding}", "OUT": str(tmp_path / "out")}
    status, _, err = run(capsys, *(places.get(word, word) for word in command))
    assert status == 2
    assert "raised TemplateError: no system message. Use view='raw'" in err
    assert "Traceback" not in err


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crystalmon", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("crystalmon", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == crystalmon.__version__
