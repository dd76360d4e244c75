"""How exact answers are on a device, and what little memory does to them, for `gpu_check.py`."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from architectures import alone_in_float64, answers, largest_error, scaled_up, small_suite
from gpu_speed import PRECISIONS, SUITE, Shape, random_model
from peak import peak_memory, reset_peak
from torch import nn

from crystalmon import ProbeRecord
from crystalmon.metrics.answers import answer_distributions
from crystalmon.monitor.probe import Monitor
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score


def measure_errors(shape: Shape, tokenizer: Any, device: str) -> Iterator[dict[str, Any]]:
    """Of a model with random weights and of liquid-tiny, both in bf16, by precision."""
    plan = build_plan(small_suite(), tokenizer)
    tiny, _ = load_model("liquid-tiny", dtype=torch.bfloat16)
    models = {"random weights": scaled_up(random_model(shape, device)), "liquid-tiny": tiny}
    for name, model in models.items():
        for found in errors_of(model.to(device).eval(), plan):
            yield {"model": name, **found}


def errors_of(model: Any, plan: ScoringPlan) -> Iterator[dict[str, Any]]:
    """By precision: the largest error in q, and how far q lies apart between prompts.

    The truth is computed on the CPU, where nothing is rounded to float32: each row alone, in
    float64.
    """
    exact = answers(plan, alone_in_float64(copy.deepcopy(model).cpu(), plan.rows))
    tables = [answer_distributions(table)[0] for table in exact]
    apart = max(float(np.ptp(q, axis=0).max()) for q in tables)
    for precision in PRECISIONS:
        route = choose_route(model, plan, precision=precision)
        found = score(model, plan, route=route).log_choice
        error = largest_error(found, exact)
        yield {"precision": precision, "route": str(route), "error": error, "apart": apart}


def measure_little_memory(shape: Shape, tokenizer: Any, device: str) -> dict[str, Any]:
    """A probe with all the memory there is and one with half of what that took.

    On a CPU the model's forward pass raises instead, from a third of the largest batch on.
    """
    model = random_model(shape, device)
    monitor = Monitor(model, tokenizer, SUITE, "initial", precision="float32")
    monitor.probe(0)  # with the proof of its route, which is not repeated soon
    held = reset_peak(device) if device != "cpu" else None
    with batches_of(model) as whole:
        before = monitor.probe(1)
    if held is None:
        scarce = small_batches(model, max(whole) // 3)
    else:
        scarce = half_memory((peak_memory(device) - held) // 2)
    with scarce, batches_of(model) as parts:
        after = monitor.probe(2)
    return {
        "simulated": device == "cpu",
        "passes": [len(whole), len(parts)],
        "tokens": [max(whole), max(parts)],
        "difference": difference(before, after),
    }


def difference(one: ProbeRecord, other: ProbeRecord) -> float:
    """The largest between two records' q; infinite if one is no number."""
    apart = [np.abs(task.q - other.tasks[name].q).max() for name, task in one.tasks.items()]
    return float(np.nan_to_num(apart, nan=np.inf).max())


@contextlib.contextmanager
def batches_of(model: nn.Module) -> Iterator[list[int]]:
    """Within, the tokens of each forward pass that came to its end."""
    seen: list[int] = []

    def note(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        seen.append(given["input_ids"].numel())

    hook = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@contextlib.contextmanager
def half_memory(more: int) -> Iterator[None]:
    """Within, torch gets so many bytes more than it holds now from the GPU, and none beyond."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextlib.contextmanager
def small_batches(model: nn.Module, most: int) -> Iterator[None]:
    """Within, the model's forward pass has no memory for more tokens than that."""
    forward = model.forward

    @functools.wraps(forward)
    def limited(*args: Any, **given: Any) -> Any:
        if given["input_ids"].numel() > most:
            raise torch.OutOfMemoryError("out of memory, as simulated")
        return forward(*args, **given)

    with mock.patch.object(model, "forward", limited):
        yield
