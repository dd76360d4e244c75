"""Tree against rows, and which of them a model gets."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crystalmon.scoring.compatibility import check_fit
from crystalmon.scoring.forward import Route, _batches, score_rows
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.ranks import Ranks
from crystalmon.scoring.route import choose_route, computes_wide, deviation, still_holds
from crystalmon.scoring.score import score
from crystalmon.scoring.trial import proof_rows
from crystalmon.suites.tasks import load_suite

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def gpt2(vocabulary):
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    )


def gemma2(vocabulary):
    return Gemma2ForCausalLM(
        Gemma2Config(vocab_size=vocabulary, **SMALL, **HEADS, head_dim=16, sliding_window=64)
    )


def qwen2(vocabulary):
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **SMALL, **HEADS))


def mamba(vocabulary):
    return MambaForCausalLM(
        MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4)
    )


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


def sharpened(make, vocabulary):
    """A random model whose distributions are not flat, so that differences would show."""
    torch.manual_seed(0)
    model = make(vocabulary).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    return model


@pytest.mark.parametrize("make", [gpt2, gemma2, qwen2])
def test_tree_equals_rows(make, plan, tokenizer):
    model = sharpened(make, len(tokenizer))
    assert choose_route(model, plan).method == "tree"
    tree, rows = score(model, plan, route=Route("tree")), score(model, plan, route=Route("rows"))
    for a, b in zip(tree.log_choice, rows.log_choice, strict=True):
        np.testing.assert_allclose(np.exp(a), np.exp(b), atol=1e-6)


def test_sliding_window_shorter_than_the_prompts_falls_back(plan, tokenizer):
    def narrow(vocabulary):
        return Gemma2ForCausalLM(
            Gemma2Config(vocab_size=vocabulary, **SMALL, **HEADS, head_dim=16, sliding_window=2)
        )

    model = sharpened(narrow, len(tokenizer))
    assert choose_route(model, plan).method == "rows"


def test_state_space_model_is_run_in_rows(plan, tokenizer):
    model = sharpened(mamba, len(tokenizer))
    assert choose_route(model, plan).method == "rows"
    assert all(np.isfinite(table).all() for table in score(model, plan).log_choice)


def test_model_that_ignores_the_mask_is_found_out(plan, tokenizer, model):
    forward = model.forward

    def deaf(input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return forward(input_ids=input_ids, **kwargs)

    route = choose_route(model, plan)
    assert route.method == "tree"
    assert proven(model, plan, route)
    model.forward = deaf
    assert choose_route(model, plan).method == "rows"
    assert not proven(model, plan, route)


def proven(model, plan, route):
    """Whether a route is found to hold by what it finds itself."""
    rows = proof_rows(plan, route, range(len(plan.rows)))
    return still_holds(model, plan, route, rows, score(model, plan, route=route, keep=rows).kept)


def test_model_that_sees_no_further_back_in_a_sequence_is_found_out(plan, tokenizer):
    """As GPT-Neo's local layers do, by index, whatever the mask and the positions say."""
    model = sharpened(qwen2, len(tokenizer))
    forward = model.forward

    def near(input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None:
            index = torch.arange(input_ids.shape[1])
            far = index[:, None] - index[None, :] > longest
            attention_mask = attention_mask.masked_fill(far, torch.finfo(torch.float32).min)
        return forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)

    longest = max(map(len, plan.rows))
    model.forward = near
    assert choose_route(model, plan).method == "rows"


def test_half_precision_gets_the_tree_too(plan, tokenizer):
    model = sharpened(qwen2, len(tokenizer)).bfloat16()
    assert choose_route(model, plan).method == "tree"


def test_autocast_gets_the_tree_too(plan, tokenizer):
    """Mixed precision keeps float32 weights and wraps the forward, as accelerate does."""
    model = sharpened(qwen2, len(tokenizer))
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    assert choose_route(model, plan).method == "tree"


def test_what_one_rank_cannot_run_is_run_by_none(plan, tokenizer, monkeypatch):
    asked = []

    class Two(Ranks):
        def all(self, flag):
            asked.append(flag)
            return flag and self.others

        def gather(self, value):
            return [value]

    model = sharpened(qwen2, len(tokenizer))
    known = model.forward
    monkeypatch.setattr(Two, "others", False, raising=False)
    assert choose_route(model, plan, Two()).method == "rows"

    def unable(input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 4:
            raise RuntimeError("no such kernel")
        return known(input_ids, attention_mask, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(model, "forward", unable)
    monkeypatch.setattr(Two, "others", True)
    assert choose_route(model, plan, Two()).method == "rows"
    assert asked == [True, False]


def test_quantized_weights_are_run_as_the_model_does(tokenizer):
    model = qwen2(len(tokenizer))
    assert computes_wide(model)
    model.register_buffer("places", torch.zeros(2, dtype=torch.int64))
    assert computes_wide(model)
    packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    model.register_parameter("packed", packed)
    assert not computes_wide(model)


def test_attention_that_takes_no_mask_is_left_for_sdpa(plan, tokenizer):
    """As flash attention does: half precision only, and no mask but the causal one."""
    seen = []

    def fast(module, query, key, value, attention_mask, **options):
        seen.append(query.dtype)
        if query.dtype != torch.bfloat16:
            raise RuntimeError("only half precision")
        return sdpa_attention_forward(module, query, key, value, None, **options)

    ALL_ATTENTION_FUNCTIONS.register("fast", fast)
    model = sharpened(qwen2, len(tokenizer)).bfloat16()
    model.config._attn_implementation_internal = "fast"
    assert str(choose_route(model, plan)) == "tree, float32"
    assert seen == [torch.bfloat16] * len(seen)
    assert model.config._attn_implementation == "fast"
    seen.clear()
    exact = score(model, plan).log_choice
    model.config._attn_implementation_internal = "sdpa"
    for a, b in zip(exact, score(model, plan).log_choice, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [gpt2, gemma2, qwen2])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_layers_are_exact(make, plan, tokenizer, autocast):
    model = sharpened(make, len(tokenizer)).bfloat16()
    wide = copy.deepcopy(model).double()
    if autocast:
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    route = choose_route(model, plan)
    assert str(route) == "tree, float32"
    exact, found = score(wide, plan).log_choice, score(model, plan, route=route).log_choice
    naive = score(model, plan, route=Route("rows", "model")).log_choice
    error = max(np.abs(np.exp(a) - np.exp(b)).max() for a, b in zip(exact, found, strict=True))
    rough = max(np.abs(np.exp(a) - np.exp(b)).max() for a, b in zip(exact, naive, strict=True))
    assert error < 1e-6 < rough
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError()])
def test_out_of_memory_halves_the_batch(model, plan, error, caplog):
    whole = score(model, plan, max_batch_tokens=400)
    forward, sizes = model.forward, []

    def small(input_ids, **options):
        if input_ids.numel() > 120:
            raise error
        sizes.append(input_ids.numel())
        return forward(input_ids, **options)

    route = choose_route(model, plan)
    model.forward = small
    halved = score(model, plan, route=route, max_batch_tokens=400)
    assert "out of memory; going on with" in caplog.text
    assert max(sizes) <= halved.batch_tokens <= 120
    for a, b in zip(whole.log_choice, halved.log_choice, strict=True):
        np.testing.assert_allclose(np.exp(a), np.exp(b), atol=1e-6)


def test_out_of_memory_for_a_single_prompt_is_an_error(model, plan):
    def never(input_ids, **options):
        raise torch.OutOfMemoryError("nothing left")

    model.forward = never
    with pytest.raises(torch.OutOfMemoryError, match="nothing left"):
        score(model, plan, route=Route("rows"))


@pytest.mark.parametrize("method", ["tree", "rows"])
def test_every_row_comes_once(model, plan, method):
    parts = []
    with undisturbed(model):
        score_rows(
            model, plan, Route(method), lambda *part: parts.append(part), max_batch_tokens=100
        )
    rows = np.concatenate([rows for rows, _ in parts])
    assert sorted(rows) == list(range(len(plan.rows)))
    for _, log_p in parts:
        assert log_p.dtype == torch.float32
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(len(log_p)))


@pytest.mark.parametrize("pack", [1, 30, 100, 10_000])
def test_packs_of_any_size_give_the_same(model, plan, pack):
    rows, packed = Route("rows", "float32"), Route("tree", "float32", pack)
    whole, found = score(model, plan, route=rows), score(model, plan, route=packed)
    for a, b in zip(whole.log_choice, found.log_choice, strict=True):
        np.testing.assert_allclose(np.exp(a), np.exp(b), atol=1e-6)


def test_lengths_that_a_model_has_seen_are_kept(plan, tokenizer):
    """Dynamic RoPE remembers the longest sequence; a short probe must not make it forget."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    # transformers before 5.0 has it under the other name
    name = "rope_parameters" if hasattr(Qwen2Config(), "rope_parameters") else "rope_scaling"
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = Qwen2Config(**size, **SMALL, **HEADS, **{name: rope})
    model = Qwen2ForCausalLM(config).eval()
    long = torch.arange(120).unsqueeze(0)
    model(long)
    rotary = model.model.rotary_emb
    before = (rotary.inv_freq.clone(), rotary.max_seq_len_cached)
    score(model, plan)
    assert torch.equal(rotary.inv_freq, before[0])
    assert rotary.max_seq_len_cached == before[1] == 120


def test_a_route_that_gives_nan_is_not_taken(plan, tokenizer):
    model = sharpened(qwen2, len(tokenizer))
    forward = model.forward

    def nan_under_a_mask(*args, attention_mask=None, **options):
        output = forward(*args, attention_mask=attention_mask, **options)
        if attention_mask is not None:
            output.logits = output.logits * float("nan")
        return output

    model.forward = nan_under_a_mask
    assert choose_route(model, plan).method == "rows"


@pytest.mark.parametrize("precision", ["tf32", "none", "ieee"])
def test_tf32_is_off_within_and_back_afterwards(model, precision):
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    if not all(hasattr(place, "fp32_precision") for place in places):
        pytest.skip("torch before 2.9")
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        with undisturbed(model):
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert [place.fp32_precision for place in places] == [precision, precision]
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_a_probe_asks_unsloth_for_logits_and_puts_its_settings_back(model, monkeypatch):
    logits, hidden = "UNSLOTH_RETURN_LOGITS", "UNSLOTH_RETURN_HIDDEN_STATES"
    monkeypatch.delenv(logits, raising=False)
    monkeypatch.setenv(hidden, "1")
    with undisturbed(model):
        assert (os.environ[logits], os.environ[hidden]) == ("1", "0")
    assert logits not in os.environ
    assert os.environ[hidden] == "1"


@pytest.mark.parametrize("returned", ["hidden", "empty", "unasked"])
def test_what_is_not_the_heads_logits_is_an_error(model, plan, returned):
    """As of a forward that was replaced, and returns nothing, hidden states, or all positions."""
    forward = model.forward

    def replaced(input_ids, **options):
        output = forward(input_ids=input_ids, **options)
        shapes = {"hidden": (1, output.logits.shape[1], 8), "empty": (0,),
                  "unasked": (*input_ids.shape, output.logits.shape[-1])}  # fmt: skip
        output.logits = torch.zeros(shapes[returned])
        return output

    model.forward = replaced
    with pytest.raises(TypeError, match=r"logits of its head"):
        score(model, plan, route=Route("rows"))


MANY = 32_000
"""Tokens: at random initialization every probability is near 3e-5."""


def mistral(vocabulary):
    return MistralForCausalLM(
        MistralConfig(vocab_size=vocabulary, **SMALL, **HEADS, sliding_window=8)
    )


def lfm2(vocabulary):
    kinds = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(vocab_size=vocabulary, **SMALL, **HEADS, layer_types=kinds))


@pytest.mark.parametrize(("make", "method"), [(mistral, "rows"), (lfm2, "rows"), (qwen2, "tree")])
def test_an_untrained_model_over_a_large_vocabulary_is_found_out_too(make, method, plan):
    torch.manual_seed(0)
    assert choose_route(make(MANY).eval(), plan).method == method


def test_a_deviation_depends_neither_on_scale_nor_on_the_size_of_the_vocabulary():
    torch.manual_seed(0)
    truth, noise = torch.randn(8, 50), torch.randn(8, 50)
    found = deviation(truth + 0.01 * noise, truth)
    assert found == pytest.approx(0.01, rel=0.5)
    assert deviation(7 * (truth + 0.01 * noise), 7 * truth) == pytest.approx(found)
    wider = truth.repeat(1, 9)
    assert deviation(wider + 0.01 * noise.repeat(1, 9), wider) == pytest.approx(found)


def test_a_deviation_leaves_out_what_is_infinite_in_both():
    masked = torch.randn(3, 4)
    masked[:, 1] = -torch.inf
    assert deviation(masked, masked) == 0.0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_bidirectional_model_is_refused(plan, tokenizer, precision):
    config = BertConfig(vocab_size=MANY, **SMALL, num_attention_heads=2)
    with pytest.raises(TypeError, match=r"causal.*BertForMaskedLM"):
        choose_route(BertForMaskedLM(config).eval().to(precision), plan)


def test_a_prompt_as_long_as_the_context_can_be_proven(plan, tokenizer):
    longest = max(map(len, plan.rows))
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=longest)
    )
    forward, lengths = model.eval().forward, []

    def noting(input_ids, **options):
        places = options.get("position_ids")  # of a tree: many tokens have the same
        lengths.append(input_ids.shape[1] if places is None else int(places.max()) + 1)
        return forward(input_ids, **options)

    model.forward = noting
    choose_route(model, plan)
    assert max(lengths) == longest


def test_few_prompts_are_one_batch_of_one_process_and_a_share_for_each_of_two(tokenizer):
    plan = build_plan(load_suite("randomness"), tokenizer)
    few = np.flatnonzero(plan.row_prompt % 12 == 0).tolist()  # two prompts of each task
    tokens = {}
    for size in (1, 2):
        found = _batches(plan, Route("tree", pack=128), few, 16_384, 10**6, size=size, switch=None)
        tokens[size] = [len(batch) * len(batch[0].tokens) for batch in found]
        assert sorted(row for batch in found for one in batch for row in one.rows) == few
    assert len(tokens[1]) == 1
    assert max(tokens[2]) < 0.55 * sum(tokens[2])


def test_rwkv_that_rescales_its_weights_is_refused(plan, tokenizer):
    config = RwkvConfig(
        vocab_size=len(tokenizer), hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
    )
    model = RwkvForCausalLM(config)
    with pytest.raises(ValueError, match=r"Set model\.config\.rescale_every = 0"):
        check_fit(model, plan)
    config.rescale_every = 0
    check_fit(model, plan)
