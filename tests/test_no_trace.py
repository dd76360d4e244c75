"""Training does not notice the callback: every trainer, and two processes on the engines.

The whole table is `scripts/no_trace/check.py`; here are its cells without the interrupted runs, and
of the trainers without those that are probed as by default.
DeepSpeed's stage 3 stands for stage 2, as it shards what that does and the weights too.
Stage 2 is run by `make no-trace` and `make test-slow`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import set_seed

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts" / "no_trace"

# what the trainers of TRL and the engines warn about is not this package's
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("train"), importlib.import_module("check")


def run(train, monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", str(folder), *arguments])
    args = train.parse()
    set_seed(0)
    logs, weights = train.train(args)
    return json.dumps(logs), {name: value.clone() for name, value in weights.items()}


def cells(check, monkeypatch, capsys, name):
    """What `check.py --only NAME` has compared; it prints it in its table and its JSON line."""
    monkeypatch.setattr(sys, "argv", ["check.py", "--only", name])
    with pytest.raises(SystemExit) as ended:
        check.main()
    *table, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)[name.replace("-", " ")]
    assert ended.value.code == 0, found
    assert all(column in "".join(table) for column in found)
    return found


@pytest.mark.parametrize("lora", [[], ["--lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("trainer", ["trainer", "sft", "dpo", "kto", "grpo", "rloo"])
def test_training_is_bit_identical(scripts, monkeypatch, tmp_path, trainer, lora):
    arguments = ["--trainer", trainer, *lora, "--steps", "4"]
    bare_logs, bare = run(scripts[0], monkeypatch, tmp_path / "bare", *arguments)
    logs, weights = run(scripts[0], monkeypatch, tmp_path / "run", *arguments, "--callback")
    assert bare_logs == logs
    assert "loss" in logs
    assert bare.keys() == weights.keys()
    assert all(torch.equal(bare[name], weights[name]) for name in bare)
    moved = scripts[1].read_run(tmp_path / "run").records
    assert [record.step for record in moved] == [0, 1, 2, 3, 4]
    assert moved[-1].metrics["free_energy"] > 0


@pytest.mark.parametrize(
    "engine",
    ["ddp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fsdp2", "zero2", "zero3"))],
)
def test_two_processes_give_the_record_of_one(scripts, monkeypatch, capsys, engine):
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: run make test")
    assert cells(scripts[1], monkeypatch, capsys, f"{engine}-full").keys() >= {"weights", "record"}


@pytest.mark.slow
def test_the_script_trains_kills_and_resumes(scripts, monkeypatch, capsys):
    assert cells(scripts[1], monkeypatch, capsys, "sft-full").keys() >= {"weights", "resume"}


def test_killed_and_resumed_run_is_the_uninterrupted_one(scripts, monkeypatch, tmp_path):
    train, check = scripts
    arguments = ["--callback", "--two", "--save-steps", "2"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other two runs have
    try:
        run(train, monkeypatch, tmp_path / "whole", *arguments)
    finally:
        torch.set_num_threads(threads)
    check.kill_at_random(tmp_path / "cut", arguments, sys.executable)
    check.train(tmp_path / "cut", [*arguments, "--resume", "--restore-states"])
    for name in ("crystalmon", "crystalmon-liquid-tiny"):
        verdict = check.same_runs(tmp_path / "whole" / name, tmp_path / "cut" / name, name)
        assert verdict.startswith("yes"), verdict
