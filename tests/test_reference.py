"""The frozen base: made, kept, found, refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.numpy import save_file

from crystalmon.metrics.answers import answer_distributions
from crystalmon.monitor.base_answers import ReferenceMismatch, check_reference, make_base
from crystalmon.monitor.base_model import ScoringJob, find_base
from crystalmon.runs.compared_answers import read_base_answers, read_in_view
from crystalmon.runs.files import RunFolderError
from crystalmon.runs.find_reference import find_reference, named_reference
from crystalmon.runs.reference import load_reference
from crystalmon.scoring.models import ASSETS_DIR, without_adapters
from crystalmon.scoring.plan import build_plan
from crystalmon.suites.tasks import TaskSuite, load_suite


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


@pytest.fixture
def made(model, tokenizer, suite, plan):
    return make_base(model, tokenizer, suite, plan)[0]


def test_survives_a_trip_to_disk(made, tmp_path, plan):
    made.save(tmp_path / "reference")
    loaded = load_reference(tmp_path / "reference")
    assert loaded.info == made.info
    assert isinstance(loaded.rows, Path)
    assert isinstance(loaded.in_memory().rows, np.ndarray)
    rows = np.array([5, 0, plan.num_prompts - 1])
    np.testing.assert_array_equal(loaded.log_p(rows), made.log_p(rows))
    np.testing.assert_array_equal(loaded.in_memory().log_p(rows), made.log_p(rows))
    assert loaded.shape == made.shape == (plan.num_prompts, made.info.vocab_size)
    for name, table in made.log_choice.items():
        np.testing.assert_array_equal(loaded.log_choice[name], table)
    sent = pickle.loads(pickle.dumps(loaded))
    assert isinstance(sent.rows, np.ndarray)
    np.testing.assert_array_equal(sent.log_p(rows), made.log_p(rows))
    loaded.save(tmp_path / "copy")
    assert load_reference(tmp_path / "copy").info == made.info
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("*.pkl"))


def test_id_follows_the_answers(model, tokenizer, suite, plan, made):
    assert make_base(model, tokenizer, suite, plan)[0].info.id == made.info.id
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    assert make_base(model, tokenizer, suite, plan)[0].info.id != made.info.id


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


@pytest.mark.parametrize("place", ["crystalmon", "crystalmon-chat"])
@pytest.mark.parametrize("named", [".", "checkpoint-7"])
def test_a_run_that_has_lost_its_reference_is_no_base(tmp_path, place, named):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / place).mkdir()
    assert named_reference(tmp_path / named) is None
    (tmp_path / place / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has lost its reference folder"):
        named_reference(tmp_path / named)


def test_auto_takes_what_came_with_the_model(model, tokenizer, suite, plan, made, tmp_path):
    made.save(tmp_path / "crystalmon" / "reference")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.name_or_path = str(tmp_path)
    found = find_base("auto", ScoringJob(model, tokenizer, suite, plan))
    assert found is not None
    assert found.info.id == made.info.id
    assert find_base("initial", ScoringJob(model, tokenizer, suite, plan)) is None, (
        "this model as it is now"
    )


def test_a_base_given_by_name_is_loaded_and_scored(model, tokenizer, suite, plan, made):
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    found = find_base(str(ASSETS_DIR / "liquid-tiny"), ScoringJob(model, tokenizer, suite, plan))
    for name, table in made.log_choice.items():
        np.testing.assert_array_equal(found.log_choice[name], table)


def test_other_suite_is_refused_by_both_names(model, tokenizer, made):
    other = load_suite("liquid-tiny")
    plan = build_plan(other, tokenizer)
    with pytest.raises(
        ReferenceMismatch, match=r"must be of suite 'liquid-tiny' .* got suite 'three'"
    ):
        find_base(made, ScoringJob(model, tokenizer, other, plan))


def test_other_tokenizer_is_refused_by_both_names(model, tokenizer, suite, made):
    tiny, task = tokenizer, suite.tasks[0]
    other = TaskSuite("three", suite.tasks)
    plan = build_plan(TaskSuite("x", (task,)), tiny)
    with pytest.raises(
        ReferenceMismatch, match=r"must be of tokenizer '.*', got one made with '.*'"
    ):
        find_base(made, ScoringJob(model, tiny, other, plan))


def test_other_view_is_refused(model, tokenizer, suite, made):
    plan = build_plan(suite, tokenizer, "chat")
    with pytest.raises(ReferenceMismatch, match="must be of view 'chat', got view 'raw'"):
        find_base(made, ScoringJob(model, tokenizer, suite, plan))


def test_neither_folder_nor_model_is_one_sentence(model, tokenizer, suite, plan, tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither 'auto', 'initial', a run or reference"):
        find_base(tmp_path / "nothing", ScoringJob(model, tokenizer, suite, plan))


def test_newer_schema_is_refused(made, tmp_path):
    made.save(tmp_path)
    info = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema version must be at most 2, got 99"):
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
        make_base(model, tokenizer, suite, plan)


def test_a_reference_is_whole_until_the_next_one_is(made, tmp_path, monkeypatch):
    made.save(tmp_path)
    stored = load_reference(tmp_path)
    stored.save(tmp_path)  # onto itself

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crystalmon.runs.reference.os.link", full)
    monkeypatch.setattr("crystalmon.runs.reference.shutil.copyfile", full)
    made.save(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="No space"):
        load_reference(tmp_path / "elsewhere").save(tmp_path)
    assert load_reference(tmp_path).info == made.info
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {
        "reference.json",
        "reference.safetensors",
    }


def test_a_nameless_model_has_no_folder(made, tmp_path, monkeypatch):
    made.save(tmp_path / "crystalmon" / "reference")
    monkeypatch.chdir(tmp_path)
    assert find_reference("") is None
    assert find_reference(".") is not None


def test_of_several_references_the_fitting_one_is_found(made, tmp_path, suite):
    made.save(tmp_path / "crystalmon" / "reference")
    own = made.info
    other = replace(made, info=replace(own, suite_hash="0" * 16))
    other.save(tmp_path / "crystalmon-a" / "reference")
    made.save(tmp_path / "crystalmon-b" / "reference")
    (tmp_path / "crystalmon" / "reference" / "reference.json").unlink()
    assert find_reference(tmp_path, suite, own.view).parent.name == "crystalmon-b"
    assert find_reference(tmp_path).parent.name == "crystalmon-a"


def test_a_changed_answer_is_damage(made, tmp_path, suite, plan, tokenizer):
    table = made.log_choice["coin"].copy()
    table[0] = table[0][::-1]
    changed = replace(made, log_choice={**made.log_choice, "coin": table})
    with pytest.raises(ValueError, match="is damaged"):
        check_reference(changed, suite, plan, tokenizer)


def test_merged_adapters_stay_merged(tokenizer, model, suite):
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    lora.merge_adapter()
    with without_adapters(lora):
        lora(torch.tensor([[1, 2]]))
    assert all(layer.merged for layer in lora.modules() if hasattr(layer, "merge"))


def test_a_full_disk_is_told_as_for_any_other_file(made, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunFolderError, match="cannot take the base's answers: File too large"):
            made.in_memory().save(tmp_path / "reference")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "reference").iterdir())


@pytest.mark.parametrize(
    "said",
    [
        "I/O error: No space left on device (os error 28)",
        'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
)
def test_a_full_disk_has_its_advice(made, tmp_path, monkeypatch, said):
    def full(*_):
        raise SafetensorError(f"Error while serializing: {said}")

    monkeypatch.setattr("crystalmon.runs.reference.save_file", full)
    with pytest.raises(RunFolderError, match=r"answers: No space left on device\. Free some disk"):
        made.in_memory().save(tmp_path / "reference")


@pytest.fixture
def with_plain(tmp_path, model, tokenizer, suite):
    """A run's folder whose base has answered a task to the plain prompts alone."""
    view = build_plan(suite, tokenizer, "Q: {prompt}\nA:")
    reference, _ = make_base(model, tokenizer, suite, view)
    name = next(iter(reference.log_choice))
    made = replace(reference, plain={name: reference.log_choice[name][::-1]})
    made.save(tmp_path / "reference")
    return tmp_path, name, made


def test_plain_answers_come_back(with_plain):
    folder, name, made = with_plain
    found = load_reference(folder / "reference")
    np.testing.assert_array_equal(found.plain[name], made.plain[name])
    own = answer_distributions(made.log_choice[name])[0]
    np.testing.assert_array_equal(read_in_view(folder)[name], own)
    np.testing.assert_array_equal(found.in_view[name], own)
    plain = answer_distributions(made.plain[name])[0]
    np.testing.assert_array_equal(read_base_answers(folder)[name], plain)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("gone", "is missing"), ("cut", "cannot be read"), ("other", "does not hold the tasks")],
)
def test_plain_answers_that_are_lost_or_damaged_are_named(with_plain, damage, words):
    """Else a run would be judged by other answers, without a word."""
    folder, name, made = with_plain
    file = folder / "reference" / "plain.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    else:
        save_file({f"log_choice/{name}": made.plain[name][:5].copy()}, file)
    for read in (lambda: load_reference(folder / "reference"), lambda: read_base_answers(folder)):
        with pytest.raises(ValueError, match=f"plain.safetensors {words}"):
            read()
    assert read_in_view(folder) == {}
