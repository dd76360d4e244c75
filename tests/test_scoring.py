"""Scoring against a naive float64 oracle that shares no code with it."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from oracle import oracle_tables
from transformers import AutoModel, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import ASSETS_DIR, load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.ranks import ONE
from crystalmon.scoring.score import score
from crystalmon.scoring.trial import proof_rows, varied_trial
from crystalmon.suites.tasks import Choice, Task, TaskSuite, load_suite

NUMBERS = TaskSuite(
    "numbers",
    (
        Task(
            "number",
            ("Pick a number:", "My lucky number today is", "draws: 3, 17,"),
            tuple(Choice(str(n)) for n in (1, 2, 10, 12, 100, 17)),
        ),
        Task("color", ("A color:", "I like"), (Choice("red"), Choice("blue", ("blue", " Blue")))),
    ),
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("liquid-tiny")


def assert_close_to_oracle(model, tokenizer, suite, tolerance):
    plan = build_plan(suite, tokenizer)
    found = [np.exp(table) for table in score(model, plan).log_choice]
    for mine, truth in zip(found, oracle_tables(model, tokenizer, suite), strict=True):
        assert mine.shape == truth.shape
        np.testing.assert_allclose(mine, truth, rtol=0, atol=tolerance)
        np.testing.assert_allclose(
            mine / mine.sum(1, keepdims=True),
            truth / truth.sum(1, keepdims=True),
            rtol=0,
            atol=tolerance,
        )
        assert (mine.sum(axis=1) <= 1.0 + 1e-6).all()


def test_equals_oracle_on_prefix_choices_and_aliases(tiny):
    assert_close_to_oracle(*tiny, NUMBERS, 1e-6)


def test_equals_oracle_on_the_bundled_suite_of_the_model(tiny):
    suite = load_suite("liquid-tiny")
    few = TaskSuite("few", tuple(Task(t.name, t.prompts[::9], t.choices) for t in suite))
    assert_close_to_oracle(*tiny, few, 1e-5)


def test_soft_capped_logits_are_kept(tiny):
    """Gemma-2 caps its logits after the head; in float32 that must still happen."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tiny[1]), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=4,
        final_logit_softcapping=3.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    assert_close_to_oracle(model, tiny[1], NUMBERS, 1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 37, 10_000])
def test_batching_changes_nothing(tiny, batch_tokens):
    plan = build_plan(NUMBERS, tiny[1])
    whole = score(tiny[0], plan, max_batch_tokens=500).log_choice
    parts = score(tiny[0], plan, max_batch_tokens=batch_tokens).log_choice
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_permuting_choices_permutes_answers(tiny):
    task = NUMBERS["number"]
    order = [3, 0, 5, 1, 4, 2]
    shuffled = Task(task.name, task.prompts, tuple(task.choices[i] for i in order))
    model, tokenizer = tiny
    one = score(model, build_plan(TaskSuite("s", (task,)), tokenizer)).log_choice[0]
    two = score(model, build_plan(TaskSuite("s", (shuffled,)), tokenizer)).log_choice[0]
    np.testing.assert_allclose(one[:, order], two, rtol=1e-5)


def test_bf16_logits_are_not_rounded(tiny):
    """A bf16 model is computed in float32: its log-probabilities are those of its float64 copy."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny[1]), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    wide = copy.deepcopy(model).double()
    plan = build_plan(NUMBERS, tiny[1])
    seen = []

    def observe(prompts, log_p, begins):
        assert log_p.dtype == torch.float32
        seen.append(log_p)
        return {}

    score(model, plan, observe)
    for rows, log_p in zip([range(plan.num_prompts)], [torch.cat(seen)], strict=True):
        hidden = []
        for row in rows:
            with torch.no_grad():
                ids = torch.tensor([plan.rows[row]])
                hidden.append(wide.model(input_ids=ids).last_hidden_state[0, -1])
        exact = (torch.stack(hidden) @ wide.lm_head.weight.T).log_softmax(-1)
        naive = model.lm_head(torch.stack(hidden).bfloat16()).float().log_softmax(-1)
        found = log_p.double().sort(dim=0).values
        assert (found - exact.sort(dim=0).values).abs().max() < 1e-4
        assert (naive.double() - exact).abs().max() > 1e-2


def test_an_observer_sees_the_same_however_little_it_gets_at_once(tiny, monkeypatch):
    model, tokenizer = tiny
    plan = build_plan(NUMBERS, tokenizer)
    sizes = []

    def observe(prompts, log_p, begins):
        sizes.append(len(prompts))
        return {"own": log_p.exp().square().sum(-1), "begins": begins.sum(-1)}

    whole = score(model, plan, observe).observed
    assert max(sizes) > 1
    monkeypatch.setattr("crystalmon.scoring.score.MAX_OBSERVED", {"cpu": 1})
    sizes.clear()
    one_by_one = score(model, plan, observe).observed
    assert set(sizes) == {1}
    for key, values in whole.items():
        np.testing.assert_array_equal(one_by_one[key], values)


def test_leaves_no_trace(tiny):
    model, tokenizer = tiny
    model.train()
    model.model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    forward = model.get_output_embeddings().forward

    def observe(prompts, log_p, begins):
        random.random(), np.random.rand(), torch.rand(3)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        score(model, build_plan(NUMBERS, tokenizer), observe)
    assert [module.training for module in model.modules()] == flags
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.get_rng_state().tolist() == states[2]
    assert model.get_output_embeddings().forward == forward
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_nan_weights_give_nan(tiny):
    config = tiny[0].config
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    for table in score(model, build_plan(NUMBERS, tiny[1])).log_choice:
        assert np.isnan(table).all()


def test_model_without_head_is_refused(tiny):
    headless = AutoModel.from_pretrained(ASSETS_DIR / "liquid-tiny")
    with pytest.raises(TypeError, match="must have a language-modelling head, got LlamaModel"):
        score(headless, build_plan(NUMBERS, tiny[1]))


@pytest.mark.parametrize("method", ["tree", "rows"])
def test_rows_are_kept_whole(tiny, method):
    model, tokenizer = tiny
    plan = build_plan(load_suite("liquid-tiny"), tokenizer)
    route = Route(method, "float32", 128)
    rows = np.flatnonzero(plan.row_prompt < 30).tolist()
    keep = proof_rows(plan, Route("tree", "float32", 128), rows)
    kept = score(model, plan, route=route, prompts=range(30), keep=keep).kept
    assert sorted(kept) == keep
    for row, log_p in kept.items():
        with torch.no_grad():
            logits = model(torch.tensor([plan.rows[row]])).logits[0, -1]
        torch.testing.assert_close(log_p, logits.log_softmax(-1), atol=1e-4, rtol=0)
        assert log_p.untyped_storage().nbytes() == 4 * len(log_p), "no batch is held with it"


def test_a_route_is_proven_by_answers_that_follow_another_one_of_their_prompt(tiny):
    plan, route = build_plan(load_suite("liquid-tiny"), tiny[1]), Route("tree", "float32", 128)
    assert {proof_kind(plan, row) for row in proof_rows(plan, route, range(len(plan.rows)))} == {
        "prompt",
        "later answer",
    }


def proof_kind(plan, row):
    siblings = np.flatnonzero(plan.row_parent == plan.row_parent[row])
    if row < plan.num_prompts:
        return "prompt"
    return "later answer" if row > siblings[0] else "first answer"


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_a_route_can_be_proven_on_few_prompts_of_one_token_answers(tiny, number):
    task = Task(
        "coin",
        tuple(f"Coin {n}:" for n in range(number)),
        (Choice("1", (" 1",)), Choice("2", (" 2",))),
    )
    plan = build_plan(TaskSuite("coins", (task,)), tiny[1])
    found = proof_rows(plan, Route("tree", "float32", 128), range(len(plan.rows)))
    assert len(found) == min(number, 3)
    if number > 3:
        first = min(range(number), key=lambda prompt: plan.rows[prompt])
        assert first not in found, "what stands first in a pack has no neighbour to see"


def test_a_prompt_longer_than_a_pack_keeps_no_others_out_of_the_trial(tiny):
    model, tokenizer = tiny
    short = tuple(f"Coin {n}:" for n in range(40))
    long = tuple("a b c d e f g " * 20 + word for word in ("one:", "two:"))
    task = Task("coin", (*short, *long), (Choice("1"), Choice("2")))
    plan = build_plan(TaskSuite("coins", (task,)), tokenizer)
    trial = varied_trial(model, plan, ONE, 128)
    asked = [len(plan.rows[row]) for row in trial.packed if row < plan.num_prompts]
    assert sum(length > 128 for length in asked) == 2
    assert sum(length < 128 for length in asked) > 20
