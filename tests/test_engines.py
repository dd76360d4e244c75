"""What engines make of a model: it is measured as the plain one, or refused in one sentence.

Those of several processes are played by the two of `two_engines.py`; what needs a GPU's kernels is
stood in for by objects with the attributes by which it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from two_ranks import play_both

from crystalmon import CrystalCallback, Monitor
from crystalmon.scoring import memory
from crystalmon.scoring.engines import check_engine
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.ranks import Ranks
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

SAME = 1e-5


@pytest.fixture(scope="module")
def came_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """By an engine's name: what it came to on each rank."""
    player = Path(__file__).with_name("two_engines.py")
    return play_both(player, tmp_path_factory.mktemp("engines"))


@pytest.mark.parametrize(
    "engine",
    [
        "FSDP 1",
        "FSDP 1, gradients alone",
        "FSDP 1, mixed precision",
        "FSDP 2, mixed precision",
        "context parallelism",
        "compiled inside DDP",
        "compiled outside DDP",
    ],
)
def test_an_engine_is_measured_as_the_plain_model_and_trains_as_without(came_out, engine):
    for unchanged, *errors in came_out(engine):
        assert unchanged is True
        assert max(errors) < SAME


@pytest.mark.parametrize("engine", ["tensor parallelism", "tensor parallelism, hidden"])
def test_ranks_that_hold_parts_of_a_matrix_run_the_same_prompts(came_out, engine):
    for alike, error in came_out(engine):
        assert alike == 2
        assert error < SAME


@pytest.mark.parametrize(
    ("engine", "refusal"),
    [
        ("split sequences", "ranks must give the same answers to the same prompts"),
        ("root elsewhere", "FSDP must have the language model as its root"),
        ("texts under FSDP 1", "FSDP 1 generates no texts"),
    ],
)
def test_what_would_be_measured_wrongly_is_refused_on_every_rank(came_out, engine, refusal):
    for said in came_out(engine):
        kind, _, sentence = said.partition(": ")
        assert kind in ("UnsupportedModel", "ValueError")
        assert sentence.startswith(refusal)


def test_prompts_are_split_over_data_parallel_groups():
    shares = [Ranks(rank, 4, alike=2).share for rank in range(4)]
    assert shares == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_data_parallel_is_refused(model, tokenizer, tmp_path):
    args = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True)
    args._n_gpu = 2  # as on a machine with two GPUs, in one process
    with pytest.raises(ValueError, match="DataParallel is not supported: start one process a GPU"):
        CrystalCallback("liquid-tiny").on_train_begin(
            args, TrainerState(max_steps=2), TrainerControl(),
            model=model, processing_class=tokenizer,
        )  # fmt: skip
    with pytest.raises(ValueError, match="DataParallel is not supported"):
        check_engine(nn.DataParallel(model))


def test_pipeline_parallelism_is_refused(model):
    model.config.distributed_config = SimpleNamespace(pp_size=2)
    with pytest.raises(ValueError, match="pipeline parallelism is not supported"):
        check_engine(model)


def ulysses(disable_in_eval: bool) -> Callable[..., Any]:
    """As DeepSpeed registers it: a closure over its object, which drops every mask."""
    uattn = SimpleNamespace(world_size=2, disable_in_eval=disable_in_eval)

    def wrapper(module, query, key, value, attention_mask, *args, **kwargs):
        assert uattn.disable_in_eval
        assert not module.training
        return sdpa_attention_forward(module, query, key, value, None, *args, **kwargs)

    return wrapper


def test_ulysses_is_refused_where_it_splits_sequences_in_evaluation(model, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", ulysses(False))
    with pytest.raises(ValueError, match="Ulysses must leave the evaluation alone"):
        check_engine(model)


def test_ulysses_that_leaves_evaluation_alone_gets_rows(model, tokenizer, suite, monkeypatch):
    plain = Monitor(model, tokenizer, suite, "initial").probe(0)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", ulysses(True))
    plan = build_plan(suite, tokenizer)
    assert choose_route(model.train(), plan).method == "rows"
    monitor = Monitor(model, tokenizer, suite, "initial")
    record = monitor.probe(0)
    assert monitor.route.method == "rows"
    for name, task in plain.tasks.items():
        np.testing.assert_allclose(record.tasks[name].q, task.q, atol=SAME)


def test_kernels_stay_and_may_take_half_precision_alone(model, tokenizer, suite):
    """As `use_kernels=True` replaces them: on the object; `train()` would replace them anew."""
    model.to(torch.bfloat16)
    layers = [layer.mlp for layer in model.model.layers]
    for each in layers:
        each.forward = half_alone(each.forward)
    kernels = [each.forward for each in layers]
    model.train = pytest.fail
    monitor = Monitor(model, tokenizer, suite, "initial", precision="float32")
    record = monitor.probe(0)
    assert monitor.route.precision == "model"
    assert np.isfinite(record.metrics["entropy"])
    assert [each.forward for each in layers] == kernels


def half_alone(forward: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype != torch.bfloat16:
            raise TypeError("this kernel takes bfloat16")
        return forward(hidden)

    return kernel


def test_the_first_batch_fits_beside_what_others_hold(model, tokenizer, suite, monkeypatch, caplog):
    """vLLM, colocated, holds all but a little of the memory, and stays as it is."""
    plan, whole, held = build_plan(suite, tokenizer), 2**24, 2**24 - 2**21
    route = choose_route(model, plan)
    sizes: list[int] = []
    forward = model.forward

    def run(input_ids: torch.Tensor, **options: Any) -> Any:
        sizes.append(input_ids.numel())
        if held + input_ids.numel() * memory.token_bytes(model) > whole:
            raise torch.OutOfMemoryError("the engine holds the rest")
        return forward(input_ids=input_ids, **options)

    unlimited = score(model, plan, route=route)
    monkeypatch.setattr(memory, "memory_left", lambda device: whole - held)
    model.forward = run
    beside = score(model, plan, route=route)
    assert "out of memory" not in caplog.text
    assert 0 < max(sizes) <= 2**21 // memory.token_bytes(model)
    for a, b in zip(unlimited.log_choice, beside.log_choice, strict=True):
        np.testing.assert_allclose(np.exp(a), np.exp(b), atol=1e-6)
