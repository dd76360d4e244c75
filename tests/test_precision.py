"""The precision that layers are computed in: asked for, or found out by a trial."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from test_callback import train
from transformers import Qwen2Config, Qwen2ForCausalLM

from crystalmon import CrystalCallback, Monitor, read_run
from crystalmon.runs.reference import load_reference
from crystalmon.scoring.forward import Route
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

SECONDS = 0.3
"""That a slowed pass takes, at least: more than noise can hide."""


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


@pytest.fixture
def half(tokenizer):
    """A model in bf16; its own layers are within 0.002 of float32 ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes, **heads))
    return model.eval().bfloat16()


def slowed(model, precision):
    """The model as on a device on which layers in one precision take long."""

    def wait(module, inputs):
        if inputs[0].dtype == precision:
            time.sleep(SECONDS)

    model.model.layers[0].input_layernorm.register_forward_pre_hook(wait)
    return model


def sharpened(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def test_layers_as_accurate_and_faster_are_taken_as_they_are(half, plan):
    route = choose_route(slowed(half, torch.float32), plan, precision="auto")
    assert (route.method, route.precision) == ("tree", "model")
    assert 0 < route.trial["error"] < 0.02
    assert route.trial["seconds_float32"] > 1.5 * route.trial["seconds_model"]


def test_layers_that_are_no_faster_are_computed_in_float32(half, plan):
    route = choose_route(slowed(half, torch.bfloat16), plan, precision="auto")
    assert (route.method, route.precision) == ("tree", "float32")
    assert route.trial["seconds_model"] > SECONDS


def test_layers_that_are_inaccurate_are_computed_in_float32(half, plan, monkeypatch):
    monkeypatch.setattr("crystalmon.scoring.precision_trial.MODEL_ERROR", 1e-3)
    route = choose_route(slowed(sharpened(half), torch.float32), plan, precision="auto")
    assert str(route) == "tree, float32"
    assert route.trial["error"] > 1e-3


def test_the_error_is_that_of_the_answers_on_the_trial(half, plan):
    found = choose_route(half, plan, precision="auto").trial["error"]
    by = {
        precision: score(half, plan, route=Route("rows", precision)).log_choice
        for precision in ("model", "float32")
    }
    q = {key: [np.exp(t) / np.exp(t).sum(1, keepdims=True) for t in by[key]] for key in by}
    errors = [np.abs(a - b).max() for a, b in zip(q["model"], q["float32"], strict=True)]
    assert 0.1 * max(errors) < found < 5 * max(errors)


@pytest.mark.parametrize("precision", ["model", "float32"])
def test_what_is_asked_for_is_taken_untried(half, plan, precision):
    for slow in (torch.float32, torch.bfloat16):
        route = choose_route(slowed(half, slow), plan, precision=precision)
        assert str(route) == f"tree, {precision}"
        assert route.trial is None


@pytest.mark.parametrize("precision", ["auto", "model", "float32"])
def test_a_model_in_float32_has_nothing_to_choose(model, plan, precision):
    assert str(choose_route(model, plan, precision=precision)) == "tree, float32"


@pytest.mark.parametrize(("precision", "taken"), [("model", "model"), ("float32", "float32")])
def test_mixed_precision_is_a_models_own_too(model, plan, precision, taken):
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    assert str(choose_route(model, plan, precision=precision)) == f"tree, {taken}"


def test_the_models_own_layers_have_their_answers_projected_in_float32(half, plan):
    hidden, seen = [], []
    head = half.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half.model.norm.register_forward_hook(lambda module, i, output: hidden.append(output.dtype))
    score(half, plan, route=choose_route(half, plan, precision="model"))
    assert set(hidden) == {torch.bfloat16}
    assert set(seen) <= {torch.float32, torch.float64}


@pytest.mark.parametrize("precision", ["model", "float32"])
def test_a_route_is_proven_again_in_its_own_precision(half, suite, tokenizer, precision):
    monitor = Monitor(half, tokenizer, suite, "initial", precision=precision)
    assert str(monitor.route) == f"tree, {precision}"
    sharpened(half)
    monitor.probe(1)
    assert str(monitor.route) == f"tree, {precision}"


@pytest.mark.parametrize("make", [CrystalCallback, lambda **kw: Monitor(None, None, **kw)])
def test_an_unknown_precision_is_refused(make):
    with pytest.raises(ValueError, match=r"precision must be one of auto, model, float32.*'half'"):
        make(precision="half")


def test_a_base_and_its_probes_are_scored_alike(tmp_path, half, tokenizer, suite):
    made = Monitor(half, tokenizer, suite, "initial", precision="model")
    made.reference.save(tmp_path)
    assert load_reference(tmp_path).info.precision == "model"
    slowed(half, torch.bfloat16)
    assert Monitor(half, tokenizer, suite, tmp_path).route.precision == "model"
    assert Monitor(half, tokenizer, suite, "initial").route.precision == "float32"


def test_a_reference_that_does_not_tell_was_made_in_float32(tmp_path, half, tokenizer, suite):
    Monitor(half, tokenizer, suite, "initial", precision="float32").reference.save(tmp_path)
    file = tmp_path / "reference.json"
    info = json.loads(file.read_text())
    del info["precision"]
    file.write_text(json.dumps(info))
    slowed(half, torch.float32)
    assert Monitor(half, tokenizer, suite, tmp_path).route.precision == "float32"


def test_a_run_tells_its_precision_and_keeps_it_when_resumed(
    tmp_path, half, tokenizer, suite, caplog
):
    options = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-5}
    watch = [CrystalCallback(suite, every=1)]
    slowed(half, torch.float32)
    train(tmp_path, half, tokenizer, suite, watch, max_steps=2, **options)
    begun = read_run(tmp_path).info
    assert (begun["precision"], begun["config"]["precision"]) == ("model", "auto")
    assert set(begun["precision_trial"]) == {"error", "seconds_model", "seconds_float32"}
    watch = [CrystalCallback(suite, every=1, precision="float32")]
    slowed(half, torch.bfloat16)
    resumed = str(tmp_path / "checkpoint-2")
    train(tmp_path, half, tokenizer, suite, watch, resumed, max_steps=3, **options)
    run = read_run(tmp_path)
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert run.info["precision"] == "model"
    assert run.info["precision_trial"] == begun["precision_trial"]
    assert "began with precision='model'" in caplog.text


def short_of_memory(model):
    """A model of whose layers memory holds none in float32 from now on; the tries are counted."""
    tries = []

    def refuse(module, inputs):
        if inputs[0].dtype == torch.float32:
            tries.append(inputs[0].shape[:2].numel())
            raise torch.OutOfMemoryError("no memory")

    model.model.layers[1].register_forward_pre_hook(refuse)
    return tries


def test_out_of_memory_for_one_prompt_in_float32_takes_the_models_own_precision(half, plan, caplog):
    route = Route("tree", "float32")
    own = score(half, plan, route=Route("rows", "model")).log_choice
    tries = short_of_memory(half)
    found = score(half, plan, route=route, max_batch_tokens=600)
    assert len(tries) > 2
    assert tries[-1] <= max(map(len, plan.rows)) * 2 < tries[0], "smaller batches go first"
    assert str(found.route) == "rows, model"
    for mine, wanted in zip(found.log_choice, own, strict=True):
        np.testing.assert_allclose(np.exp(mine), np.exp(wanted), atol=5e-3)
    assert [r.message for r in caplog.records if "does not hold layers in float32" in r.message]


def test_out_of_memory_that_smaller_batches_cure_keeps_float32(half, plan):
    route = Route("tree", "float32")
    whole, tries = score(half, plan, route=route, max_batch_tokens=600), []

    def refuse(module, inputs):
        tries.append(inputs[0].shape[:2].numel())
        if tries[-1] > 120:
            raise torch.OutOfMemoryError("no memory")

    half.model.layers[1].register_forward_pre_hook(refuse)
    found = score(half, plan, route=route, max_batch_tokens=600)
    assert min(tries[:2]) > 120, "twice in a row"
    assert found.route == route
    for mine, wanted in zip(found.log_choice, whole.log_choice, strict=True):
        np.testing.assert_allclose(np.exp(mine), np.exp(wanted), atol=1e-6)


def test_a_trial_that_memory_does_not_hold_is_warned_of(half, plan, caplog):
    short_of_memory(half)
    assert str(choose_route(half, plan)) == "tree, model"
    assert "not run as rows, float32: memory" in caplog.text


def test_a_run_that_memory_fails_goes_on_in_the_models_own_precision(half, suite, tokenizer):
    monitor = Monitor(half, tokenizer, suite, "initial", precision="float32")
    assert monitor.reference.info.precision == "float32"
    short_of_memory(half)
    record = monitor.probe(1)
    assert str(monitor.route) == "rows, model"
    assert 0 < record.metrics["free_energy"] < 1e-2
