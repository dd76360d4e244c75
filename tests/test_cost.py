"""What monitoring will cost: against the FLOPs that torch counts and the files that are written."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, MixtralConfig, T5Config

from crystalmon.cli.cost_words import format_cost, parse_rate
from crystalmon.cli.main import main
from crystalmon.monitor.base_answers import make_base
from crystalmon.monitor.cost import (
    BASE_METRICS,
    ModelSize,
    Rate,
    estimate_cost,
    forward_flops,
    model_size,
)
from crystalmon.monitor.schedule import probe_steps
from crystalmon.runs.reference import TENSOR_FILE
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import load_config
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.score import score
from crystalmon.scoring.sequences import batches_of, sequences_of
from crystalmon.scoring.trie import count_tree

SIZE = ModelSize(layer_parameters=1000, hidden=10, vocabulary=50, attention_width=20)


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


def test_the_tree_is_that_of_all_prefixes():
    draw = random.Random(0)
    for _ in range(50):
        rows = [tuple(draw.choices(range(3), k=draw.randint(1, 6))) for _ in range(20)]
        prefixes = {row[:end] for row in rows for end in range(1, len(row) + 1)}
        assert count_tree(rows) == (len(prefixes), sum(map(len, prefixes)))
    assert count_tree([]) == (0, 0)


def test_prompts_that_begin_alike_share_their_tokens(plan):
    tokens, _ = count_tree(plan.rows)
    alone = [[r for r, p in zip(plan.rows, plan.row_prompt, strict=True) if p == i]
             for i in range(plan.num_prompts)]  # fmt: skip
    assert tokens < sum(count_tree(rows)[0] for rows in alone) < plan.num_tokens


@pytest.mark.parametrize("method", ["tree", "rows"])
def test_flops_are_those_that_torch_counts(model, plan, method):
    """The formula at what today's batches compute, their padding and masked pairs included."""
    model.set_attn_implementation("eager")  # the counter does not see every fused kernel
    with FlopCounterMode(display=False) as counter:
        score(model, plan, route=Route(method, "float32", 256), max_batch_tokens=256)
    sequences = sequences_of(plan, method, range(len(plan.rows)), 256, 10**9)
    # score_rows lets a batch hold the longest sequence
    limit = max(256, *(len(sequence.tokens) for sequence in sequences))
    batches = [*batches_of(sequences, limit, 10**9)]
    shapes = [(len(batch), max(len(s.tokens) for s in batch)) for batch in batches]
    tokens = sum(number * length for number, length in shapes)
    pairs = sum(number * length**2 for number, length in shapes)
    expected = forward_flops(model_size(model.config), tokens, pairs, len(plan.rows))
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.003)


def test_flops_of_the_whole_tree_are_those_that_torch_counts(model, plan):
    """One sequence that holds the suite's tree, as many tokens as are counted as unique."""
    model.eval().set_attn_implementation("eager")
    cost = estimate_cost(model.config, plan)
    tokens = cost.unique_tokens
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        model.lm_head(torch.zeros(cost.rows, cost.size.hidden))
    # torch counts all pairs of the sequence, the estimate those that the tree needs
    masked = tokens**2 - count_tree(plan.rows)[1]
    expected = cost.probe_flops + 4 * cost.size.attention_width * masked
    assert len(plan.rows) == cost.rows
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.003)


def test_the_reference_is_as_large_as_said(model, tokenizer, suite, plan, tmp_path):
    make_base(model, tokenizer, suite, plan)[0].save(tmp_path)
    written = (tmp_path / TENSOR_FILE).read_bytes()
    header = 8 + int.from_bytes(written[:8], "little")
    assert len(written) - header == estimate_cost(model.config, plan).reference_bytes
    assert header < 200 * (len(suite.tasks) + 1 + BASE_METRICS)


def test_no_weights_are_needed_to_count_them(model):
    size = model_size(load_config("liquid-tiny"))
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    norm = model.model.norm.weight.numel()
    assert size == ModelSize(layers + norm, 128, 768, 4 * 128)


def test_tied_and_untied_outputs_multiply_alike():
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
    tied, untied = (
        model_size(LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=tie))
        for tie in (True, False)
    )
    assert tied == untied
    assert tied.layer_parameters == 2 * (4 * 64**2 + 3 * 64 * 96 + 2 * 64) + 64


def test_a_token_goes_to_some_of_the_experts():
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    one, two = (
        model_size(MixtralConfig(**shape, **heads, num_local_experts=8, num_experts_per_tok=k))
        for k in (1, 2)
    )
    assert two.layer_parameters - one.layer_parameters == 3 * 64 * 96


def test_a_run_adds_up(plan):
    cost = estimate_cost(SIZE, plan, steps=10, every=5, tokens_per_step=7, rate=Rate(1e6))
    tokens, pairs = count_tree(plan.rows)
    assert cost.probe_flops == 2000 * tokens + 80 * pairs + 1000 * len(plan.rows)
    assert cost.probes == 3
    assert cost.training_flops == 6 * 1500 * 7 * 10
    assert cost.share == 3 * cost.probe_flops / (3 * cost.probe_flops + cost.training_flops)
    assert cost.seconds == cost.probe_flops / 1e6
    assert estimate_cost(SIZE, plan, rate=Rate(50, "tokens/s")).seconds == tokens / 50
    assert estimate_cost(SIZE, plan, steps=1000).probes == 99, "the callback's own schedule"
    large = estimate_cost(replace(SIZE, vocabulary=2**24), plan)
    assert (large.logits_bytes, large.logits_bytes_on_cpu) == (2**29, 2**28)


def test_a_run_takes_time(plan):
    run = {"steps": 10, "every": 5, "rate": Rate(1e6)}
    probing = 3 * estimate_cost(SIZE, plan, **run).seconds
    cost = estimate_cost(SIZE, plan, **run, step_seconds=0.5)
    assert cost.time_share == pytest.approx(probing / (probing + 5.0))
    assert cost.probes_allowed == 0
    assert "the default, has time for 0 such, or more of fewer prompts" in format_cost(cost)
    # 2% of all time is 2/98 of the training's
    run["steps"] = 1000
    slow = estimate_cost(SIZE, plan, **run, step_seconds=cost.seconds)
    assert slow.probes_allowed == 20
    assert "max_overhead=0.02, the default, has time for 20 such" in format_cost(slow)
    assert estimate_cost(SIZE, plan, **run, step_seconds=1e6).probes_allowed == 1001


def test_a_limit_can_be_tried_beforehand(plan, capsys):
    probe = estimate_cost(SIZE, plan, rate=Rate(1e6)).seconds
    times = {"steps": 1000, "rate": Rate(1e6), "step_seconds": probe}
    allowed = {}
    for limit in (0.005, 0.002, 0.5, 1.0):
        cost = estimate_cost(SIZE, plan, **times, max_overhead=limit)
        allowed[limit] = cost.probes_allowed
        assert f"max_overhead={limit:g} has time for {allowed[limit]} such" in format_cost(cost)
        # the base and four probes are made all the same, see `shares.LEAST`
        assert ("can take more than that limit" in format_cost(cost)) == (allowed[limit] < 5)
    assert allowed == {0.005: 5, 0.002: 2, 0.5: 1000, 1.0: 1001}
    with pytest.raises(ValueError, match="max_overhead must be within"):
        estimate_cost(SIZE, plan, max_overhead=0.0)
    given = ("liquid-tiny", "--suite", "liquid-tiny", "--steps", "100", "--rate", "1e10")
    _, out, _ = run(capsys, *given, "--step-seconds", "0.5", "--max-overhead", "0.1")
    assert "max_overhead=0.1 has time for" in out


@pytest.mark.parametrize(
    ("seconds", "run", "error", "sentence"),
    [
        (0.0, {}, ValueError, "step_seconds must be positive.*, got 0.0"),
        ("2", {}, TypeError, "step_seconds must be a number, got '2'"),
        (1e308, {"steps": 5}, ValueError, "step_seconds must be positive.*, got 1e"),
        (2.0, {"steps": 5}, ValueError, "step_seconds must come with rate, got 2.0 alone"),
        (2.0, {"rate": Rate(1e9)}, ValueError, "step_seconds must come with steps, got 2.0 alone"),
    ],
)
def test_seconds_of_a_step_are_checked(plan, seconds, run, error, sentence):
    with pytest.raises(error, match=sentence):
        estimate_cost(SIZE, plan, **run, step_seconds=seconds)


def test_it_is_told_in_words(plan):
    text = format_cost(estimate_cost(SIZE, plan, steps=10, every=5, tokens_per_step=10**6))
    assert "s at 1e+14 achieved FLOP/s" in text
    assert "a run of 10 steps: 3 probes" in text
    assert "of all FLOPs" in text
    assert "a run" not in format_cost(estimate_cost(SIZE, plan))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("3e13", Rate(3e13)),
        ("3e13 FLOP/s", Rate(3e13)),
        ("2.5e4tokens/s", Rate(25000.0, "tokens/s")),
    ],
)
def test_rates_are_read(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["x", "", "1.2.3", "5 miles", "tokens/s"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="rate must be FLOP/s or tokens/s, got"):
        parse_rate(text)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_is_positive(value):
    with pytest.raises(ValueError, match="rate must be positive and finite, got"):
        Rate(value)


def test_counts_are_checked(plan):
    with pytest.raises(ValueError, match=r"tokens_per_step must be positive.*, got -3"):
        estimate_cost(SIZE, plan, tokens_per_step=-3)
    with pytest.raises(ValueError, match=r"every must be .* between 0 and 1, got 2\.5"):
        estimate_cost(SIZE, plan, every=2.5)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(TypeError, match="must have a language-modelling head, got T5Config"):
        model_size(T5Config())


def run(capsys, *arguments):
    status = main(["cost", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_prints_it(capsys):
    run_options = ("--suite", "liquid-tiny", "--steps", "100", "--tokens-per-step", "4096")
    status, out, _ = run(capsys, "liquid-tiny", *run_options, "--rate", "1e10")
    assert status == 0
    assert "unique tokens" in out
    assert "s at 1e+10 FLOP/s" in out
    times = ("--rate", "1e10", "--step-seconds", "0.5")
    status, out, _ = run(capsys, "liquid-tiny", *run_options, *times)
    assert status == 0
    assert "its time: 0.5 s a step" in out
    status, out, _ = run(capsys, "liquid-tiny", *run_options, "--every", "50", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["probes"] == 3
    assert found["size"]["vocabulary"] == 768


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/where"], "model 'no/where' cannot be loaded"),
        (["liquid-tiny", "--every", "0"], "every must be a number of steps or a share"),
        (["liquid-tiny", "--step-seconds", "2"], "--step-seconds needs --rate"),
        (["liquid-tiny", "--rate=1e9", "--step-seconds=nan"], "step_seconds must be positive"),
        (["liquid-tiny", "--every", "7"], "every must come with steps, got 7 alone."),
        (
            ["liquid-tiny", "--steps", "1" + 400 * "0"],
            "steps must be positive, at most 1e+18, got 10000",
        ),
        (["liquid-tiny", "--rate", "1e-320"], "rate must be positive and finite, got 1e-320."),
        (["liquid-tiny", "--rate=-1"], "rate must be positive and finite, got -1.0."),
        (["liquid-tiny", "--suite", "nothing"], "suite 'nothing' is neither a bundled"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, sentence):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("crystalmon: ")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 1000])
def test_probes_are_counted_without_a_list_of_them(plan, steps):
    for every in (1, 2, 3, 10, 2000):
        probes = estimate_cost(SIZE, plan, steps=steps, every=every).probes
        assert probes == len(probe_steps(steps, every))
    assert estimate_cost(SIZE, plan, steps=10**12, every=1).probes == 10**12 + 1


def test_numbers_of_numpy_are_numbers(plan):
    config = load_config("liquid-tiny")
    given = {"rate": parse_rate("1e12"), "steps": np.int64(100), "every": np.int32(5)}
    cost = estimate_cost(config, plan, step_seconds=np.float32(0.5), **given)
    assert cost == estimate_cost(config, plan, step_seconds=0.5, **given)
    json.dumps(cost.to_json())
    with pytest.raises(TypeError, match="step_seconds must be a number, got True"):
        estimate_cost(config, plan, step_seconds=True, **given)
