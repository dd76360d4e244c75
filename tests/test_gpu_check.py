"""What `scripts/gpu_check.py` calls failed, and the pieces that a device has no part in."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crystalmon import Monitor, load_suite
from crystalmon.scoring.plan import build_plan

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        names = ("gpu_check", "gpu_speed", "gpu_answers")
        yield [importlib.import_module(name) for name in names]


@pytest.fixture
def rows(scripts, monkeypatch, capsys):
    """The rows that the script prints for some arguments, and its exit status."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--tiny", *arguments])
        with pytest.raises(SystemExit) as ended:
            scripts[0].main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"], ended.value.code

    return run


TRAINED = {
    "weights": "yes", "log rows": "yes (8)", "probes": 9, "peaks": [100, 130], "allowed": 50,
}  # fmt: skip
LITTLE = {"simulated": True, "passes": [2, 5], "tokens": [900, 200], "difference": 1e-7}
EXACT = {"model": "m", "precision": "float32", "route": "r", "error": 1e-7, "apart": 0.4}


@pytest.mark.parametrize(
    ("check", "measure", "good", "bad"),
    [
        ("training", "measure_training", TRAINED, {"weights": "no: 1 of 38 tensors differ"}),
        ("training", "measure_training", TRAINED, {"log rows": "no"}),
        ("training", "measure_training", TRAINED, {"peaks": [100, 151]}),
        ("memory", "measure_little_memory", LITTLE, {"difference": 1e-3}),
        ("memory", "measure_little_memory", LITTLE, {"passes": [2, 2]}),
        ("precision", "measure_errors", EXACT, {"error": 1e-3}),
        ("precision", "measure_errors", EXACT, {"apart": 0.0}),
        ("precision", "measure_errors", EXACT, {"precision": "model", "apart": 0.0}),
    ],
)
def test_what_is_promised_can_fail(scripts, rows, monkeypatch, check, measure, good, bad):
    for found, status in ((good, 0), ({**good, **bad}, 1)):
        given = [dict(found)] if check == "precision" else dict(found)
        monkeypatch.setattr(scripts[0], measure, lambda *args, given=given: given)
        printed, ended = rows("--only", check)
        assert ended == status
        assert any(row["ok"] is False for row in printed) is bool(status)


def test_a_check_that_raises_fails_and_the_others_are_made(scripts, rows, monkeypatch):
    def broken(*args):
        raise RuntimeError("no kernel [here]")

    monkeypatch.setattr(scripts[0], "measure_training", broken)
    monkeypatch.setattr(scripts[0], "measure_little_memory", lambda *args: LITTLE)
    (failed, held), status = rows("--only", "training", "memory")
    assert (failed["ok"], held["ok"], status) == (False, True, 1)
    assert "no kernel [here]" in failed["figure"]


def test_on_a_device_the_smallest_probe_may_take_one_step(scripts):
    found = {
        "probe": 2.0, "forward": 1.0, "scoring": 1.5, "step": 4.0, "bytes": None, "kind": "whole",
        "prompts": 24, "tokens": 9, "route": "r",
    }  # fmt: skip
    cases = [
        ({}, None),
        ({"kind": "smallest"}, True),
        ({"kind": "smallest", "step": 1.0}, False),
        ({"kind": "smallest", "step": None}, None),
    ]
    for change, ok in cases:
        assert scripts[0].speed_row("8B", {**found, **change}, judged=True).ok is ok
    assert (
        "2.00 × its forward pass, 0.50 × a step" in scripts[0].speed_row("8B", found, True).figure
    )


def test_the_shapes_are_those_of_their_names(scripts):
    speed = scripts[1]
    for name, shape in speed.SHAPES.items():
        size = sum(p.numel() for p in speed.random_model(shape, "meta").parameters())
        assert size / 1e9 == pytest.approx(float(name[:-1]), rel=0.25)


def test_a_model_of_random_weights_has_partial_probes(scripts, tokenizer):
    speed = scripts[1]
    model = speed.random_model(speed.TINY, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    monitor = Monitor(model, tokenizer, "liquid-tiny", "initial")
    assert min(monitor.subsets) == 2
    asked = speed.indices(monitor, 2)
    plan = build_plan(load_suite("liquid-tiny"), tokenizer)
    ends = np.cumsum([prompts for prompts, _ in plan.shapes])
    assert np.bincount(np.searchsorted(ends, asked, side="right")).tolist() == [2] * len(ends)


def test_a_step_that_memory_does_not_hold_has_no_seconds(scripts, monkeypatch):
    speed = scripts[1]
    model = speed.random_model(speed.TINY, "cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert speed.seconds_of_step(model, speed.TINY, "cpu", 1) > 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)
    with scripts[2].small_batches(model, 1):
        assert speed.seconds_of_step(model, speed.TINY, "cpu", 1) is None
    monkeypatch.setattr(model, "forward", lambda **given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speed.seconds_of_step(model, speed.TINY, "cpu", 1)


def test_sizes_are_refused_without_a_gpu(scripts, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["--sizes", "1B"], ["--tiny", "--sizes", "1B"], ["--repeats", "0"]):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
        with pytest.raises(SystemExit):
            scripts[0].parse()
        assert arguments[-2] in capsys.readouterr().err


def test_half_of_the_memory_is_given_back(scripts, monkeypatch):
    shares = []
    held = {"current_device": 0, "memory_reserved": 300, "empty_cache": None}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    card = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    with scripts[2].half_memory(200):
        assert shares == [0.5]
    assert shares == [0.5, 1.0]
