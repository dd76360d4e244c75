"""Every kind of model that a tree may be tried on, against the naive float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import oracle_tables
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score
from crystalmon.suites.tasks import Choice, Task, TaskSuite

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
WIDE, NARROW = 64, 3
"""Windows beyond the longest prompt, and within it."""
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}

SUITE = TaskSuite(
    "mixed",
    (
        Task(
            "number",
            ("Pick a number:", "My lucky number today, and of all days, is", "draws: 3, 17,"),
            tuple(Choice(str(n)) for n in (1, 2, 10, 12, 100, 17)),
        ),
        Task("color", ("A color:", "I like"), (Choice("red"), Choice("blue", ("blue", " Blue")))),
    ),
)


def gemma2(window, **more):
    return lambda size: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=size, **SIZES, head_dim=16, sliding_window=window,
            attn_implementation="eager", **more,
        )
    )  # fmt: skip


def gemma3(window):
    return lambda size: Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=size, **SIZES, head_dim=16, sliding_window=window, sliding_window_pattern=2
        )
    )


def longrope(size):
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    }  # fmt: skip
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=size, **SIZES, pad_token_id=0, original_max_position_embeddings=12,
            rope_parameters=rope,
        )
    )  # fmt: skip


MODELS = {
    "llama": (lambda size: LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES)), "tree"),
    "gpt2": (
        lambda size: GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=128)
        ),
        "tree",
    ),
    "qwen2": (lambda size: Qwen2ForCausalLM(Qwen2Config(vocab_size=size, **SIZES)), "tree"),
    "qwen3": (
        lambda size: Qwen3ForCausalLM(Qwen3Config(vocab_size=size, **SIZES, head_dim=16)),
        "tree",
    ),
    "gemma2": (gemma2(WIDE, **CAPPED), "tree"),
    "gemma2, narrow window": (gemma2(NARROW, **CAPPED), "rows"),
    "gemma3": (gemma3(WIDE), "tree"),
    "gemma3, narrow window": (gemma3(NARROW), "rows"),
    "mistral, narrow window": (
        lambda size: MistralForCausalLM(
            MistralConfig(vocab_size=size, **SIZES, sliding_window=NARROW)
        ),
        "rows",
    ),
    # some prompts are longer than what gets the short factors, and some shorter
    "phi3, longrope": (longrope, "rows"),
    "mamba": (
        lambda size: MambaForCausalLM(
            MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "rows",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_the_oracle_by_the_route_that_is_chosen(name, tokenizer):
    torch.manual_seed(0)
    make, method = MODELS[name]
    model = make(len(tokenizer)).eval()
    with torch.no_grad():  # so that what a token sees makes a difference
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0 if name == "mamba" else 6.0)  # float32 within
    plan = build_plan(SUITE, tokenizer)
    route = choose_route(model, plan)
    assert route.method == method
    found = score(model, plan, route=route).log_choice
    truth = oracle_tables(model, tokenizer, SUITE, half_way=name == "mamba")
    assert max(np.ptp(normalised(table), axis=0).max() for table in truth) > 0.01, "prompts matter"
    for mine, exact in zip(map(np.exp, found), truth, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=1e-5)
        np.testing.assert_allclose(normalised(mine), normalised(exact), rtol=0, atol=1e-5)


def test_a_window_shorter_than_a_prompt_with_its_choice_is_found_out(tokenizer):
    """The longest prompt fits into it, a shorter one with an unfinished answer does not."""
    near = "My lucky number today, of all days, is"
    others = [f"{verb} {letter}:" for verb in ("Give", "Name", "Pick") for letter in "abcdefg"]
    short = Task("number", (near.replace("number", "number, number"),), (Choice("1"), Choice("2")))
    long = Task("digits", (*others[:9], near, *others[9:]), (Choice("7"), Choice("1234567")))
    suite = TaskSuite("windowed", (short, long))
    plan = build_plan(suite, tokenizer)
    longest_prompt = max(map(len, plan.rows[: plan.num_prompts]))
    assert max(map(len, plan.rows)) > longest_prompt
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=len(tokenizer), **SIZES, sliding_window=longest_prompt)
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    assert choose_route(model, plan).method == "rows"


def normalised(table):
    return table / table.sum(axis=1, keepdims=True)
