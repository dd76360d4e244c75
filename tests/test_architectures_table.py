"""`scripts/architectures.py`, which measures how exactly many architectures are scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import architectures
import numpy as np
import pytest
from oracle import oracle_tables
from tiny_models import ARCHITECTURES, make_tiny

from crystalmon.scoring.forward import Route
from crystalmon.scoring.plan import build_plan

SCRIPT = Path(architectures.__file__)
SMALL = ["--steps", "2", "--vocabulary", "800"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script on two prompts a task; (exit status, table, results)."""
    monkeypatch.setattr(architectures, "PROMPTS", 2)

    def started(*arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
        status = architectures.main()
        *table, line = capsys.readouterr().out.strip().splitlines()
        return status, "\n".join(table), json.loads(line)

    return started


def test_two_architectures_are_exact_in_every_state(run):
    status, table, found = run("--only", "Llama", "Mamba", *SMALL, "--differences")
    assert status == 0
    assert found["over"] == []
    assert "Llama" in table
    assert "Mamba" in table
    for name, method in (("Llama", "tree"), ("Mamba", "rows")):
        result = found["architectures"][name]
        for state in architectures.STATES:
            assert result[state]["route"]["method"] == method
            assert 0 < result[state]["error"] < 1e-5
            assert 0 < result[state]["own"] < 1e-5
        assert result["trained"]["kept"] == result["trained"]["error"]
        assert len(result["loss"]) == 2
    assert found["architectures"]["Llama"]["scaled"]["relative"] < 1e-4
    assert "relative" not in found["architectures"]["Mamba"]["scaled"], "it takes no positions"


def test_a_wrong_route_is_marked_and_fails(run, monkeypatch):
    monkeypatch.setattr(architectures, "choose_route", lambda *_: Route("tree", "float32"))
    status, table, found = run("--only", "Llama, deaf to masks", *SMALL)
    assert status == 1
    assert found["over"] == ["Llama, deaf to masks"]
    assert "!" in table


def test_a_route_that_was_kept_is_judged_by_itself(run, monkeypatch):
    """It is wrong only after training, where the one that is chosen anew is right."""
    routes = iter([Route("tree", "float32"), Route("rows", "float32"), Route("rows", "float32")])
    monkeypatch.setattr(architectures, "choose_route", lambda *_: next(routes))
    _, _, found = run("--only", "Llama, deaf to masks", *SMALL)
    trained = found["architectures"]["Llama, deaf to masks"]["trained"]
    assert trained["error"] < 1e-5 < trained["kept"]


def test_what_cannot_be_built_says_why(run, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "Llama", ("llama", {"num_attention_heads": 5}))
    status, table, found = run("--only", "Llama", *SMALL)
    assert status == 0
    assert "cannot be built here" in table
    assert "5" in found["architectures"]["Llama"]["why"]


def test_its_truth_is_the_oracle(tokenizer):
    suite = architectures.small_suite()
    plan = build_plan(suite, tokenizer)
    model = architectures.scaled_up(make_tiny("Llama", len(tokenizer)))
    found = architectures.answers(plan, architectures.alone_in_float64(model, plan.rows))
    for mine, exact in zip(found, oracle_tables(model, tokenizer, suite), strict=True):
        np.testing.assert_allclose(np.exp(mine), exact, rtol=0, atol=1e-7)


def test_windows_and_multi_token_choices_are_met(tokenizer):
    """Else the table would say nothing about them."""
    suite = architectures.small_suite()
    plan = build_plan(suite, tokenizer)
    lengths = [len(row) for row in plan.rows]
    assert max(lengths) > 60
    assert len(plan.rows) > 4 * suite.num_prompts
    assert len(plan.nested) > 0


@pytest.mark.slow
def test_the_whole_table():
    """In a process of its own, where what models warn of is no error."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["over"] == []
    assert done.returncode == 0
    built = [result for result in found["architectures"].values() if "why" not in result]
    assert len(built) >= 42
    assert all(before - after > 1 for before, after in (result["loss"] for result in built))
