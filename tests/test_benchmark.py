"""The benchmark's pieces on the bundled model; with lm-eval where that is installed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from crystalmon.monitor.probe import Monitor
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.trie import count_tree
from crystalmon.suites.tasks import load_suite

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("benchmark")


@pytest.fixture(scope="module")
def sizes(benchmark):
    return importlib.import_module("benchmark_scaling")


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


def test_paths_are_compared_one_by_one(benchmark, model, plan):
    paths = benchmark.paths_of(plan)
    assert max(len(answer) for _, answer in paths) > 1
    exact = benchmark.exact_log_likelihoods(model, paths)
    mine = benchmark.log_likelihoods(model, plan, Route("rows"))
    np.testing.assert_allclose(mine, exact, atol=1e-5)
    theirs = exact.copy()
    theirs[3] += 0.5
    found = benchmark.agreement(mine, theirs)
    assert (found["over"], found["paths"]) == (1, len(paths))
    assert found["largest"] == pytest.approx(0.5, abs=1e-3)
    found = benchmark.errors(model, plan, mine, theirs)
    assert found["lm_eval"] == pytest.approx(0.5, abs=1e-3)
    assert found["crystalmon"] < 1e-5


def test_lm_eval_gives_the_same_log_likelihoods(benchmark, model, tokenizer, plan):
    pytest.importorskip("lm_eval", exc_type=ImportError)
    harness = benchmark.load_harness(model, tokenizer, plan)
    theirs = benchmark.harness_log_likelihoods(harness, plan)
    mine = benchmark.log_likelihoods(model, plan, Route("rows"))
    assert benchmark.agreement(mine, theirs)["largest"] < 1e-4


def test_the_floor_runs_as_many_tokens_as_the_tree_has(benchmark, model, plan):
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    tokens = count_tree(plan.rows)[0]
    benchmark.bare_forward(model, tokens, 64)
    hook.remove()
    assert sum(seen) == tokens
    assert max(seen) <= benchmark.batch_tokens(model)


def test_answers_are_sampled_as_long_as_the_choices(benchmark, model, tokenizer, plan, monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLES", 2)
    lengths = benchmark.answer_lengths(plan)
    longest = [0] * plan.num_prompts
    prompts = plan.row_prompt[plan.edge_row[plan.path_edge]]
    for prompt, (_, answer) in zip(prompts, benchmark.paths_of(plan), strict=True):
        longest[prompt] = max(longest[prompt], len(answer))
    assert lengths == longest
    assert benchmark.sample_answers(model, tokenizer, plan, 3) == 3


def test_more_prompts_are_no_duplicates(sizes, suite):
    for task, grown in zip(suite, sizes.more_prompts(suite, 64), strict=True):
        assert len(set(grown.prompts)) == 64 * len(task.prompts)
    assert sizes.more_prompts(suite, 1) == suite


def test_longer_prompts_share_little(sizes, tokenizer, suite):
    plan = build_plan(suite, tokenizer)
    longer = build_plan(sizes.longer_prompts(suite, 8), tokenizer)
    assert count_tree(longer.rows)[0] > count_tree(plan.rows)[0] + 4 * plan.num_prompts
    assert len(sizes.with_choices(suite, 32).tasks[0].choices) == 32


def test_prompts_beyond_the_context_are_left_out(sizes, model, tokenizer, suite):
    assert sizes.fits(model, build_plan(suite, tokenizer))
    assert not sizes.fits(model, build_plan(sizes.longer_prompts(suite, 128), tokenizer))


def run(benchmark, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--repeats", "2", *arguments])
    benchmark.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_it_prints_a_table_and_a_line(benchmark, monkeypatch, capsys):
    packs, probe = [], Monitor.probe

    def scored(model, plan, *, route):
        packs.append((route.method, route.pack))

    def probed(monitor, step, prompts=None):
        packs.append(("probe", prompts))
        return probe(monitor, step, prompts=prompts)

    monkeypatch.setattr(benchmark, "score", scored)
    monkeypatch.setattr(Monitor, "probe", probed)
    parts = ["crystalmon", "scoring", "rows", "floor", "partial", "partial-floor"]
    found = run(benchmark, monkeypatch, capsys, "--parts", *parts, "--packs", "64", "128")
    assert set(found["seconds"]) == {*parts, "packs of 64", "packs of 128"}
    asked = [("tree", found["pack"]), ("tree", 64), ("tree", 128), ("rows", Route("rows").pack)]
    assert set(packs) == {*asked, ("probe", None), ("probe", 2)}
    assert packs.count(("probe", None)) == 3, "one of them warms up"
    assert packs.count(("probe", 2)) == 4 + 3, "four are made before, with the proofs of the route"
    assert all(len(values) == 2 for values in found["seconds"].values())
    assert found["ratios"]["crystalmon"]["median"] == 1
    plan = build_plan(load_suite("liquid-tiny"), load_model("liquid-tiny")[1])
    assert found["unique_tokens"] == count_tree(plan.rows)[0] > found["partial"]["unique_tokens"]
    assert set(found["over_floor"]) == {"crystalmon", "partial"}


def test_scaling_measures_time_and_memory(sizes, monkeypatch, capsys):
    monkeypatch.setattr(sizes, "LEAST", 1)
    monkeypatch.setattr(sizes, "NUM_CHOICES", (2, 4))
    monkeypatch.setattr(sizes, "NUM_WORDS", (0, 4))
    found = run(sizes, monkeypatch, capsys, "--factors", "1", "2")["scaling"]
    assert {kind: len(points) for kind, points in found.items()} == {
        "times the suite": 2,
        "choices": 2,
        "words more a prompt": 2,
    }
    one, two = found["times the suite"]
    assert two["unique_tokens"] > 1.5 * one["unique_tokens"]
    assert one["seconds"] > 0
    assert two["ratio"]["min"] <= two["ratio"]["median"] <= two["ratio"]["max"]


def test_the_line_is_that_of_the_points(sizes):
    def point(tokens, cost):
        return {"unique_tokens": tokens, "ratio": {"median": cost / tokens}}

    straight = sizes.fit_line([point(n, 0.5 * (30 + n)) for n in (100, 200, 800, 6400)])
    assert straight["fixed"] == pytest.approx(30)
    assert straight["deviation"] == pytest.approx(0, abs=1e-9)
    bent = sizes.fit_line([point(n, n**1.3) for n in (100, 200, 800, 6400)])
    assert bent["deviation"] > 0.1


def test_without_lm_eval_it_says_what_to_do(benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--parts", "lm-eval"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "nonsense"], "device must be usable here, got 'nonsense'"),
        (["--model", "no/where"], "model 'no/where' cannot be loaded"),
        (["--suite", "nothing"], "suite 'nothing' is neither a bundled"),
        (["--packs", "0"], "--packs must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(benchmark, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--parts", "floor", *arguments])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert sentence in capsys.readouterr().err
