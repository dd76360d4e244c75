"""The frozen base: made, kept, found, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from crystalmon.models import ASSETS_DIR
from crystalmon.reference import (
    ReferenceMismatch,
    find_reference,
    load_reference,
    make_reference,
    resolve_reference,
)
from crystalmon.tasks import TaskSuite, load_suite
from crystalmon.tokentree import build_plan


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


@pytest.fixture
def made(model, tokenizer, suite, plan):
    return make_reference(model, tokenizer, suite, plan)


def test_survives_a_trip_to_disk(made, tmp_path, plan):
    made.save(tmp_path / "reference")
    loaded = load_reference(tmp_path / "reference")
    assert loaded.info == made.info
    assert not isinstance(loaded._log_p, torch.Tensor)
    assert isinstance(loaded.in_memory()._log_p, torch.Tensor)
    rows = np.array([5, 0, plan.num_prompts - 1])
    device = torch.device("cpu")
    assert torch.equal(loaded.log_p(rows, device), made.log_p(rows, device))
    for name, table in made.log_choice.items():
        np.testing.assert_array_equal(loaded.log_choice[name], table)
    loaded.save(tmp_path / "copy")
    assert load_reference(tmp_path / "copy").info == made.info
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("*.pkl"))


def test_id_follows_the_answers(model, tokenizer, suite, plan, made):
    assert make_reference(model, tokenizer, suite, plan).info.id == made.info.id
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    assert make_reference(model, tokenizer, suite, plan).info.id != made.info.id


@pytest.mark.parametrize("place", [".", "reference", "crystalmon/reference"])
def test_found_in_run_and_model_folders(made, tmp_path, place):
    made.save(tmp_path / place)
    assert find_reference(tmp_path) == tmp_path / place
    assert find_reference(tmp_path / "elsewhere") is None


def test_found_one_level_above_a_checkpoint(made, tmp_path):
    made.save(tmp_path / "crystalmon" / "reference")
    (tmp_path / "checkpoint-7").mkdir()
    assert find_reference(tmp_path / "checkpoint-7") == tmp_path / "crystalmon" / "reference"
    assert find_reference(tmp_path / "step-7") is None


def test_auto_takes_what_came_with_the_model(model, tokenizer, suite, plan, made, tmp_path):
    made.save(tmp_path / "crystalmon" / "reference")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.name_or_path = str(tmp_path)
    assert resolve_reference("auto", model, tokenizer, suite, plan).info.id == made.info.id
    initial = resolve_reference("initial", model, tokenizer, suite, plan)
    assert initial.info.id != made.info.id


def test_a_base_given_by_name_is_loaded_and_scored(model, tokenizer, suite, plan, made):
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    found = resolve_reference(str(ASSETS_DIR / "liquid-tiny"), model, tokenizer, suite, plan)
    for name, table in made.log_choice.items():
        np.testing.assert_array_equal(found.log_choice[name], table)


def test_other_suite_is_refused_by_both_names(model, tokenizer, made):
    other = load_suite("liquid-tiny")
    plan = build_plan(other, tokenizer)
    with pytest.raises(
        ReferenceMismatch, match=r"must be of suite 'liquid-tiny' .* got suite 'three'"
    ):
        resolve_reference(made, model, tokenizer, other, plan)


def test_other_tokenizer_is_refused_by_both_names(model, tokenizer, suite, made):
    tiny, task = tokenizer, suite.tasks[0]
    other = TaskSuite("three", suite.tasks)
    plan = build_plan(TaskSuite("x", (task,)), tiny)
    with pytest.raises(
        ReferenceMismatch, match=r"must be of tokenizer '.*', got one made with '.*'"
    ):
        resolve_reference(made, model, tiny, other, plan)


def test_other_view_is_refused(model, tokenizer, suite, made):
    plan = build_plan(suite, tokenizer, "chat")
    with pytest.raises(ReferenceMismatch, match="must be of view 'chat', got view 'raw'"):
        resolve_reference(made, model, tokenizer, suite, plan)


def test_neither_folder_nor_model_is_one_sentence(model, tokenizer, suite, plan, tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither 'auto', 'initial', a run or reference"):
        resolve_reference(tmp_path / "nothing", model, tokenizer, suite, plan)


def test_newer_schema_is_refused(made, tmp_path):
    made.save(tmp_path)
    info = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema version must be at most 1, got 99"):
        load_reference(tmp_path)


def test_damaged_reference_is_one_sentence(made, tmp_path):
    made.save(tmp_path)
    whole = (tmp_path / "reference.safetensors").read_bytes()
    (tmp_path / "reference.safetensors").write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"cannot be read .* Delete the folder"):
        load_reference(tmp_path)
    (tmp_path / "reference.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read .* Delete the folder"):
        load_reference(tmp_path)


def test_nan_model_is_no_base(model, tokenizer, suite, plan):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="answers must be numbers, got NaN"):
        make_reference(model, tokenizer, suite, plan)
