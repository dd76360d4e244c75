"""What the study plants, before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from crystalmon.analysis.transfer import StageTransfer
from crystalmon.analysis.verdicts import NUCLEATED
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from crystalmon.scoring.models import load_tokenizer
from crystalmon.synthetic import load_targets, load_truth

SCRIPTS = Path(__file__).parent.parent / "scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield load_script("study")


def test_one_negative_is_planted_on_other_prompts(study, tmp_path):
    worlds = load_truth()
    drawn = study.write_other_targets(worlds, tmp_path / "other.json")
    targets = load_targets(tmp_path / "other.json")
    assert set(drawn) == set(targets) == set(worlds)
    for task, place in drawn.items():
        assert place != worlds[task]["seed"]
        planted = np.array(worlds[task]["planted"][place])
        np.testing.assert_allclose(list(targets[task].values()), planted, atol=1e-5)


def test_the_other_negative_is_no_base_prompt(study, tmp_path):
    worlds = load_truth()
    tasks = study.write_seedless_targets(worlds, tmp_path / "seedless.json")
    assert len(tasks) >= 12
    for task, row in json.loads((tmp_path / "seedless.json").read_text()).items():
        base = np.array(worlds[task]["planted"])
        distances = js_divergence(np.array(list(row.values())), base)
        nearest = int(distances.argmin())
        assert distances[nearest] > 3 * noise_floor(base, nearest)


def test_the_second_family_has_other_tokens_for_the_same_world():
    builder = load_script("build_liquid_tiny")
    worlds = builder.build_world(0)
    assert [world.seed for world in worlds] == [w["seed"] for w in load_truth().values()]
    ours, theirs = load_tokenizer("liquid-tiny"), builder.train_tokenizer(worlds, 640, "joined")
    assert ours.get_vocab() != theirs.get_vocab()
    assert len(theirs(" 12")["input_ids"]) < len(ours(" 12")["input_ids"])
    assert builder.train_tokenizer(worlds, 768).get_vocab() == ours.get_vocab()


def as_planted():
    """Results and transfers of a study in which all is as it was planted."""

    def found(verdict, planted):
        return {"planted": planted, "verdicts": [{"claim": NUCLEATED, "verdict": verdict}]}

    results = {
        "A": found("holds", {"wrong": 1, "tasks": 15}),
        "B-seedless": found("does not hold", {"wrong": 0, "tasks": 14}),
        "SmolLM2": found("does not hold", None),
    }
    transfers = {
        "A in B": [StageTransfer("base", 0, {}, 1.0), StageTransfer("sft", 1, {}, 1e-5)],
        "A in B-other": [StageTransfer("sft", 1, {}, 0.99)],
    }
    return results, transfers


def test_a_study_that_came_out_as_planted_has_nothing_amiss(study):
    assert study.find_amiss(*as_planted()) == []


@pytest.mark.parametrize(
    ("name", "verdict"), [("A", "undetermined"), ("B-seedless", "holds"), ("A", "does not hold")]
)
def test_a_verdict_that_is_not_as_planted_is_named(study, name, verdict):
    results, transfers = as_planted()
    results[name]["verdicts"][0]["verdict"] = verdict
    assert study.find_amiss(results, transfers) == [f"{name}, {NUCLEATED}: {verdict}"]


@pytest.mark.parametrize(("pair", "chance"), [("A in B", 0.3), ("A in B-other", 0.01)])
def test_a_transfer_that_is_not_as_planted_is_named(study, pair, chance):
    results, transfers = as_planted()
    transfers[pair] = [StageTransfer("sft", 1, {}, chance)]
    assert study.find_amiss(results, transfers) == [f"the seeds of {pair}: p {chance}"]


def test_wrong_seeds_are_counted(study):
    results, transfers = as_planted()
    results["A"]["planted"]["wrong"] = 2
    assert study.find_amiss(results, transfers) == ["A: 2 of 15 seeds are wrong"]
