"""What the study plants, before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from crystalmon.metrics import js_divergence, noise_floor
from crystalmon.models import load_tokenizer
from crystalmon.planted import load_targets, load_truth
from crystalmon.transfer import StageTransfer
from crystalmon.verdicts import NUCLEATED

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


@pytest.mark.parametrize(
    ("verdict", "chance", "amiss"),
    [
        ("holds", 1e-5, []),
        ("undetermined", 1e-5, ["A, nucleated on a base seed: undetermined"]),
        ("holds", 0.3, ["the seeds of A in B: p 0.3"]),
    ],
)
def test_what_is_not_as_planted_is_named(study, verdict, chance, amiss):
    def found(planted, verdict):
        return {"planted": planted, "verdicts": [{"claim": NUCLEATED, "verdict": verdict}]}

    results = {
        "A": found({}, verdict),
        "B-seedless": found({}, "does not hold"),
        "SmolLM2": found(None, "does not hold"),
    }
    transfers = {
        "A in B": [StageTransfer("base", 0, {}, 1.0), StageTransfer("sft", 1, {}, chance)],
        "A in B-other": [StageTransfer("sft", 1, {}, 0.99)],
    }
    assert study.find_amiss(results, transfers) == amiss
