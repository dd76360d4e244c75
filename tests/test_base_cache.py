"""A base is paid for once: fingerprints, the cache of bases, and references that share a file."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn

from crystalmon.cli.main import main
from crystalmon.monitor.base_model import ScoringJob, find_base, own_base
from crystalmon.monitor.probe import Monitor
from crystalmon.runs import base_cache as cache
from crystalmon.runs.reference import load_reference
from crystalmon.scoring.fingerprint import fingerprint
from crystalmon.scoring.models import ASSETS_DIR, load_model
from crystalmon.scoring.plan import build_plan

DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.fixture
def passes(model):
    """How often the model was run since."""
    seen, forward = [], type(model).forward

    class Counting(type(model)):
        def forward(self, *args, **kwargs):
            seen.append(1)
            return forward(self, *args, **kwargs)

    model.__class__ = Counting
    return seen


# --- the fingerprint -------------------------------------------------------------------------


def test_the_same_weights_have_the_same_fingerprint():
    one, two = load_model("liquid-tiny")[0], load_model("liquid-tiny")[0]
    assert fingerprint(one) == fingerprint(two)
    two.train().requires_grad_(False)
    two.config.use_cache, two.name_or_path, two.config.pad_token_id = False, "other", 3
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_changed_element_is_another_fingerprint(model, dtype):
    model.register_buffer("more", torch.randn(70_003).mul(40).to(dtype))
    before, rng = {fingerprint(model)}, np.random.default_rng(0)
    for place in (0, 70_002, *rng.integers(70_003, size=6).tolist()):
        bits = model.more.view(getattr(torch, f"int{8 * dtype.itemsize}"))
        bits[place] ^= 1 << int(rng.integers(8 * dtype.itemsize - 1))
        before.add(fingerprint(model))
    assert len(before) == 9


def test_every_weight_counts(model):
    found = {fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1].add_(1e-3)
        found.add(fingerprint(model))
    assert len(found) == 1 + len(list(model.parameters()))


def test_what_cancels_out_in_a_plain_sum_is_seen(model):
    weight = model.model.embed_tokens.weight
    found = {fingerprint(model)}
    with torch.no_grad():
        weight[:2].neg_()  # an even number of signs
        found.add(fingerprint(model))
        weight[[2, 3]] = weight[[3, 2]]
        found.add(fingerprint(model))
        weight.neg_()
        found.add(fingerprint(model))
    assert len(found) == 4


def test_precision_configuration_and_code_count(model):
    found = {fingerprint(model)}
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}
    found.add(fingerprint(model))
    found.add(fingerprint(copy.deepcopy(model).bfloat16()))
    add_hook_to_module(model.lm_head, ModelHook())  # a library's
    found.add(fingerprint(model))
    model.__class__ = type("Mine", (type(model),), {})
    found.add(fingerprint(model))
    assert len(found) == 5
    assert None not in found


def test_a_forward_that_a_trainer_has_put_back_is_no_change(model):
    before = fingerprint(model)
    model.forward = model.forward  # as accelerate does where it unwraps a model
    assert "forward" in vars(model)
    assert fingerprint(model) == before


def test_gradient_checkpointing_is_no_change(model):
    before = fingerprint(model)
    model.enable_input_require_grads()
    assert model.get_input_embeddings()._forward_hooks
    assert fingerprint(model) == before


def test_what_trl_puts_over_forward_is_no_change_unless_something_else_is_below(model):
    utils = pytest.importorskip("trl.trainer.utils")
    if not hasattr(utils, "add_fused_lm_head"):
        pytest.skip("this TRL has no fused head")
    before = fingerprint(model)
    utils.add_fused_lm_head(model)
    assert fingerprint(model) == before
    assert fingerprint(copy.deepcopy(model)) is None, "its forward still calls the first model"
    model.forward = lambda **inputs: None
    utils.add_fused_lm_head(model)
    assert fingerprint(model) is None


def test_another_models_forward_may_do_anything(model):
    model.forward = copy.deepcopy(model).forward
    assert fingerprint(model) is None


def test_a_wrapper_of_ones_own_is_known_by_its_code(model):
    forward = model.forward

    @functools.wraps(forward)
    def halved(**inputs):
        return forward(**inputs)

    assert halved.__module__.startswith("transformers.")
    model.forward = halved
    assert fingerprint(model) is None


def test_a_function_put_into_the_class_may_do_anything(model, monkeypatch):
    monkeypatch.setattr(type(model), "forward", lambda self, **inputs: None)
    assert fingerprint(model) is None


def test_a_function_of_ones_own_on_the_model_may_do_anything(model):
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert fingerprint(model) is None
    handle.remove()
    assert fingerprint(model) is not None
    model.forward = lambda **inputs: None
    assert fingerprint(model) is None


def test_adapters_leave_the_fingerprint_of_their_base(model):
    plain = fingerprint(model)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert fingerprint(lora, without_adapters=True) == plain
    assert fingerprint(lora) is None, "its scales are no weights"
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert fingerprint(lora, without_adapters=True) == plain
    with lora.disable_adapter():
        assert fingerprint(lora, without_adapters=True) == plain
    lora.merge_adapter()
    assert fingerprint(lora, without_adapters=True) is None


def test_weights_that_are_not_all_here_have_no_fingerprint(model):
    assert fingerprint(model.to("meta")) is None
    partitioned = load_model("liquid-tiny")[0]
    partitioned.lm_head.weight.ds_id = 0  # as ZeRO-3 marks them
    assert fingerprint(partitioned) is None


# --- the cache -------------------------------------------------------------------------------


def same_records(one, two):
    """Whether two probes found the same to the last bit."""
    tasks = [{name: task.to_json() for name, task in each.tasks.items()} for each in (one, two)]
    return tasks[0] == tasks[1] and one.metrics == two.metrics


def test_a_known_base_takes_no_forward_pass(model, tokenizer, suite, passes):
    first = Monitor(model, tokenizer, suite)
    cold = first.probe(0, unchanged=True)
    assert passes
    passes.clear()
    second = Monitor(copy.deepcopy(model), tokenizer, suite, reference="initial")
    warm = second.probe(0, unchanged=True)
    assert not passes
    assert (first.remembered, second.remembered) == (False, True)
    assert second.route == first.route
    assert second.seconds_a_probe == first.seconds_a_probe
    assert second.reference.info == first.reference.info
    assert same_records(cold, warm)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    later = Monitor(model, tokenizer, suite)
    assert not later.remembered
    assert later.reference.info.id != first.reference.info.id
    # and the next probe is scored, and proven by a second pass
    passes.clear()
    second.probe(1)
    assert len(passes) == 2


def test_other_suites_and_views_have_their_own_bases(model, tokenizer, suite):
    Monitor(model, tokenizer, suite)
    assert not Monitor(model, tokenizer, "liquid-tiny").remembered
    assert not Monitor(model, tokenizer, suite, view="chat").remembered
    assert len(cache.cached_bases()) == 3


def test_the_base_under_adapters_is_known_too(model, tokenizer, suite):
    base = Monitor(model, tokenizer, suite).reference
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    monitor = Monitor(lora, tokenizer, suite)
    assert monitor.remembered
    assert monitor.reference.info.id == base.info.id
    assert not Monitor(lora, tokenizer, suite, reference="initial").remembered


def test_a_base_given_by_name_is_scored_once(model, tokenizer, suite, monkeypatch):
    plan, name = build_plan(suite, tokenizer), str(ASSETS_DIR / "liquid-tiny")
    first = find_base(name, ScoringJob(model, tokenizer, suite, plan))
    monkeypatch.setattr("crystalmon.monitor.base_answers.score", None)
    second = find_base(name, ScoringJob(model, tokenizer, suite, plan))
    assert first.info == second.info
    assert second.info.model == name


@pytest.mark.parametrize("changed", ["torch", "dtype", "attention"])
def test_a_route_is_chosen_anew_where_what_it_depends_on_differs(
    model, tokenizer, suite, passes, monkeypatch, changed
):
    Monitor(model, tokenizer, suite)
    if changed == "torch":
        known = "crystalmon.monitor.known_base.version"
        monkeypatch.setattr(known, lambda name: "99")
    elif changed == "attention":
        model.set_attn_implementation("eager")
    else:
        model.double()
    passes.clear()
    monitor = Monitor(model, tokenizer, suite)
    assert passes
    assert monitor.remembered == (changed != "dtype")


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "other", "info"])
def test_a_damaged_cache_is_one_warning(model, tokenizer, suite, base_cache, caplog, damage):
    base = Monitor(model, tokenizer, suite).reference
    (rows,) = base_cache.glob("*/*/reference.safetensors")
    info = rows.with_name("reference.json")
    if damage == "info":
        info.write_text("{")
    elif damage == "other":
        answers = {name: table[::-1].copy() for name, table in base.log_choice.items()}
        replace(base.in_memory(), log_choice=answers).save(rows.parent)
    elif damage == "zeros":  # a page of the file that never came to the disk
        whole = base.in_memory()
        whole.rows[1, :1024] = 0.0
        whole.save(rows.parent)
    else:
        rows.write_bytes(rows.read_bytes()[:100] if damage == "cut" else b"")
    for remembered in (False, True):
        monitor = Monitor(model, tokenizer, suite)
        assert monitor.remembered == remembered
        assert monitor.reference.info.id == base.info.id
    (told,) = [record.message for record in caplog.records if "cache" in record.message]
    assert "scored anew" in told


def test_an_unwritable_cache_is_one_warning(model, tokenizer, suite, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CRYSTALMON_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        monitor = Monitor(model, tokenizer, suite)
        assert not monitor.remembered
        monitor.probe(0, unchanged=True)
    (told,) = [record.message for record in caplog.records if "cache" in record.message]
    assert "cannot be written to" in told


def test_the_base_used_longest_ago_makes_room(made, monkeypatch, base_cache):
    keys = [cache.BaseKey(str(i), "suite", "raw", "plan") for i in range(4)]
    size = 0
    for age, key in enumerate(keys[:3]):
        info = replace(made.info, fingerprint=key.fingerprint)
        cache.keep_base(key, "float32", replace(made, info=info))
        for file in key.folder.rglob("*"):
            os.utime(file, (1e9 - age, 1e9 - age))
        size = sum(file.stat().st_size for file in key.folder.rglob("*.*"))
    assert cache.cached_base(keys[2], "float32", lambda found: None), "which is a use"
    monkeypatch.setattr(cache, "MAX_BYTES", int(2.5 * size))
    info = replace(made.info, fingerprint="3")
    cache.keep_base(keys[3], "float32", replace(made, info=info))
    assert [key.folder.exists() for key in keys] == [False, False, True, True]
    assert [base.folder for base in cache.cached_bases()] == [keys[3].folder, keys[2].folder]
    assert len(list(base_cache.iterdir())) == 2


@pytest.fixture
def made(model, tokenizer, suite):
    """A base in memory."""
    monitor = Monitor(model, tokenizer, suite)
    cache.clear_cache()
    return monitor.reference.in_memory()


def test_two_processes_may_write_the_same_base(tmp_path, base_cache):
    code = """
import sys, time
from pathlib import Path
from crystalmon import Monitor, load_model, load_suite
from crystalmon.runs import base_cache as cache
model, tokenizer = load_model("liquid-tiny")
monitor = Monitor(model, tokenizer, load_suite("liquid-tiny"))
base = monitor.reference.in_memory()
info = base.info
key = cache.BaseKey(info.fingerprint, info.suite_hash, info.view, info.plan)
Path(sys.argv[1]).touch()
while len(list(Path(sys.argv[1]).parent.glob("ready-*"))) < 2:
    time.sleep(0.01)
for _ in range(20):
    assert cache.keep_base(key, "float32", base).info == info
    found = cache.cached_base(key, "float32", lambda found: found.log_p([0]))
    assert found is None or found.info == info
"""
    names = [str(tmp_path / f"ready-{i}") for i in range(2)]
    both = [
        subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    said = [each.communicate(timeout=120)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert len(cache.cached_bases()) == 1
    assert not [each for each in base_cache.iterdir() if each.name.startswith(".")]


def test_the_command_lists_and_clears(model, tokenizer, suite, base_cache, capsys, tmp_path):
    model.name_or_path = "my/model"
    Monitor(model, tokenizer, suite)
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("my/model", "three", "raw", "kB", base_cache.name[-12:]))
    assert main(["cache", "--json"]) == 0
    (base,) = json.loads(capsys.readouterr().out)
    assert (base["model"], base["suite"], base["view"]) == ("my/model", "three", "raw")
    assert main(["cache", "--clear"]) == 0
    assert "freed" in capsys.readouterr().out
    assert not list(base_cache.iterdir())
    assert main(["cache"]) == 0
    assert main(["cache", "--clear"]) == 0
    assert "0 bytes freed" in capsys.readouterr().out


def test_probing_a_model_scores_it_once(monkeypatch, capsys):
    from crystalmon.monitor import base_answers, probe

    scored, score = [], base_answers.score
    monkeypatch.setattr(
        base_answers, "score", lambda *a, **k: scored.append("base") or score(*a, **k)
    )
    monkeypatch.setattr(probe, "score", None)
    assert main(["probe", "liquid-tiny", "--suite", "liquid-tiny"]) == 0
    assert "probe took" in capsys.readouterr().out
    assert main(["probe", "liquid-tiny", "--suite", "liquid-tiny"]) == 0
    assert "known from the cache" in capsys.readouterr().out
    assert scored == ["base"]


# --- run folders -----------------------------------------------------------------------------


def used(folder):
    """Bytes on disk; a file with two names counts once."""
    states = {(s.st_dev, s.st_ino): s for s in (f.stat() for f in folder.rglob("*.*"))}
    return sum(state.st_blocks * 512 for state in states.values())


def test_ten_runs_of_one_base_share_its_rows(made, tmp_path):
    made.save(tmp_path / "0")
    one = used(tmp_path)
    for number in range(1, 10):
        load_reference(tmp_path / str(number - 1)).save(tmp_path / str(number))
    assert used(tmp_path) < 1.5 * one
    assert (tmp_path / "9" / "reference.safetensors").stat().st_nlink == 10
    # another one in its place leaves the others as they were
    other = replace(made, rows=made.rows - 1.0)
    other.save(tmp_path / "4")
    assert (tmp_path / "9" / "reference.safetensors").stat().st_nlink == 9
    np.testing.assert_array_equal(load_reference(tmp_path / "5").log_p([0]), made.log_p([0]))
    np.testing.assert_array_equal(load_reference(tmp_path / "4").log_p([0]), other.log_p([0]))


def test_runs_link_the_cache_and_outlive_it(model, tokenizer, suite, tmp_path, base_cache):
    monitor = Monitor(model, tokenizer, suite)
    monitor.reference.save(tmp_path / "run")
    (kept,) = base_cache.glob("*/*/reference.safetensors")
    assert kept.samefile(tmp_path / "run" / "reference.safetensors")
    monitor.probe(0, unchanged=True)
    size = kept.stat().st_size
    assert cache.clear_cache() < size, "the run still holds the rows"
    assert not kept.exists()
    monitor.probe(1)  # what was mapped can still be read
    assert load_reference(tmp_path / "run").info == monitor.reference.info


def test_without_hard_links_a_run_has_a_copy(made, tmp_path, monkeypatch):
    def none(source, target):
        raise OSError(18, "Invalid cross-device link")

    made.save(tmp_path / "one")
    monkeypatch.setattr("crystalmon.runs.reference.os.link", none)
    load_reference(tmp_path / "one").save(tmp_path / "two")
    assert not (tmp_path / "one" / "reference.safetensors").samefile(
        tmp_path / "two" / "reference.safetensors"
    )
    assert load_reference(tmp_path / "two").info == made.info


def test_the_same_rows_under_another_name_say_their_own(model, tokenizer, suite, tmp_path):
    Monitor(model, tokenizer, suite).reference.save(tmp_path)
    model.name_or_path = "elsewhere"
    monitor = Monitor(model, tokenizer, suite)
    assert monitor.remembered
    monitor.reference.save(tmp_path)
    assert load_reference(tmp_path).info.model == "elsewhere"


def test_observed_values_come_from_disk(model, tokenizer, suite):
    plan = build_plan(suite, tokenizer)
    first = own_base(ScoringJob(model, tokenizer, suite, plan))
    second = own_base(ScoringJob(model, tokenizer, suite, plan))
    assert second.remembered
    assert {key: x.tolist() for key, x in first.scores.observed.items()} == {
        key: x.tolist() for key, x in second.scores.observed.items()
    }
