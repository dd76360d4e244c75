"""Mixtures of experts in half precision: exact in float32 layers, an expert at a time."""

from __future__ import annotations

import architectures
import pytest
import torch
from tiny_models import make_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from crystalmon.scoring.forward import Route
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

MIXTURES = ("Mixtral", "OLMoE", "Qwen2-MoE", "gpt-oss, window", "Llama 4, chunks")


class Widened(TorchDispatchMode):
    """Notes the elements of each half-precision tensor that is copied as a wider one."""

    def __init__(self):
        super().__init__()
        self.elements = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].itemsize < made.itemsize:
            self.elements.append(args[0].numel())
        return made


@pytest.fixture
def plan(tokenizer, monkeypatch):
    monkeypatch.setattr(architectures, "PROMPTS", 2)
    return build_plan(architectures.small_suite(), tokenizer)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_in_half_precision_is_exact_and_never_widened_whole(name, plan, tokenizer):
    torch.manual_seed(0)
    model = architectures.scaled_up(make_tiny(name, len(tokenizer))).bfloat16()
    stacks = {each.numel() for each in model.parameters() if each.dim() == 3}
    exact = architectures.answers(plan, architectures.alone_in_float64(model, plan.rows))
    route = choose_route(model, plan)
    assert route.precision == "float32"
    found = score(model, plan, route=route).log_choice
    assert architectures.largest_error(found, exact) < 1e-5
    own = score(model, plan, route=Route("rows", "model")).log_choice
    assert architectures.largest_error(own, exact) > 1e-4, "float32 layers make a difference"
    with Widened() as widened:
        score(model, plan, route=route, max_batch_tokens=64, prompts=[0])
    assert widened.elements
    assert not stacks & set(widened.elements)


def test_a_mixture_whose_trainer_asks_for_router_logits_is_run_as_trees(plan, tokenizer):
    """As TRL does for the auxiliary loss, which the model computes from the mask."""
    model = architectures.scaled_up(make_tiny("OLMoE", len(tokenizer)))
    model.config.output_router_logits = True
    assert choose_route(model, plan).method == "tree"
    assert model.config.output_router_logits
