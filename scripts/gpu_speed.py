"""What a probe takes of a model's forward pass and of a training step, for `gpu_check.py`.

Models have random weights in bf16, of the shapes of released ones. The scale of the last norm makes
their answers differ between prompts, which is what a monitor's choice of wordings needs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmark import bare_forward, take_turns
from peak import peak_memory, reset_peak
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from crystalmon.monitor.probe import Monitor
from crystalmon.scoring.forward import Precision, out_of_memory
from crystalmon.scoring.score import score

SUITE = "randomness"
PRECISIONS: tuple[Precision, ...] = ("model", "float32")
SPREAD = 3.0
"""Standard deviation of the logits of a model with random weights."""
LEARNING_RATE = 1e-6


class Shape(NamedTuple):
    """A Llama's sizes, and the training step that its probes are compared with."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    tied: bool
    vocabulary: int = 128_256
    batch: int = 8
    length: int = 2048


SHAPES = {
    "1B": Shape(16, 2048, 8192, 32, 8, True),
    "3B": Shape(28, 3072, 8192, 24, 8, True),
    "8B": Shape(32, 4096, 14336, 32, 8, False),
}
SMALL = Shape(4, 256, 704, 8, 4, True)
"""For what is compared with float64, in the vocabulary of the large ones."""
TINY = Shape(2, 32, 64, 2, 1, True, vocabulary=768, batch=2, length=64)
"""In the place of all of them on a CPU, with as many tokens as the bundled tokenizer has."""


def random_model(shape: Shape, device: str) -> Any:
    """A model in bf16, made where it will be run."""
    config = LlamaConfig(
        num_hidden_layers=shape.layers, hidden_size=shape.hidden, vocab_size=shape.vocabulary,
        intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads, tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    scale = SPREAD / (config.initializer_range * shape.hidden**0.5)
    nn.init.constant_(model.model.norm.weight, scale)
    return model.eval()


def measure_speed(
    shape: Shape, tokenizer: Any, device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of a training step, then of each panel in both precisions; one dict for each."""
    model = random_model(shape, device)
    step = seconds_of_step(model, shape, device, repeats)
    yield {"step": step, "tokens": shape.batch * shape.length}
    for precision in PRECISIONS:
        for found in measure_probes(model, tokenizer, precision, device, repeats):
            yield {**found, "step": step}
        free(device)


def measure_probes(
    model: Any, tokenizer: Any, precision: Precision, device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """By panel: median seconds of a probe, of its scoring alone, and of the bare forward pass."""
    started = time.perf_counter()
    monitor = Monitor(model, tokenizer, SUITE, "initial", precision=precision)
    begin = time.perf_counter() - started
    steps, tokens, most = count(), monitor.tokens(), max(monitor.subsets)
    ways: dict[str, Callable[[], Any]] = {}
    for prompts in sorted(monitor.subsets, reverse=True):
        asked = None if prompts == most else indices(monitor, prompts)
        ways |= {
            f"probe {prompts}": partial(probe_next, monitor, steps, prompts),
            f"scoring {prompts}": partial(
                score, model, monitor.plan, route=monitor.route, prompts=asked
            ),
            f"forward {prompts}": partial(bare_forward, model, tokens[prompts], monitor.route.pack),
        }
    seconds = {way: float(np.median(s)) for way, s in take_turns(ways, repeats, device).items()}
    more = more_memory(monitor, steps, device)
    kinds = {min(monitor.subsets): "smallest", most: "whole"}
    for prompts in sorted(monitor.subsets, reverse=True):
        parts = {part: seconds[f"{part} {prompts}"] for part in ("probe", "scoring", "forward")}
        yield {
            "precision": precision, "route": str(monitor.route), "prompts": prompts,
            "kind": kinds.get(prompts), "tokens": tokens[prompts], **parts,
            "bytes": more if prompts == most else None, "begin": begin,
        }  # fmt: skip


def probe_next(monitor: Monitor, steps: Iterator[int], prompts: int) -> None:
    """A probe of so many wordings of each task, at the next step."""
    monitor.probe(next(steps), prompts=prompts)


def indices(monitor: Monitor, prompts: int) -> list[int]:
    """The plan's prompts that a partial probe asks."""
    starts = np.cumsum([0, *(len(task.prompts) for task in monitor.suite)])
    asked = monitor.subsets[prompts]
    return [int(s + i) for s, t in zip(starts, monitor.suite, strict=False) for i in asked[t.name]]


def more_memory(monitor: Monitor, steps: Iterator[int], device: str) -> int | None:
    """Bytes that a probe of the whole suite takes at most; None on a CPU."""
    if device == "cpu":
        return None
    held = reset_peak(device) or 0
    monitor.probe(next(steps))
    return peak_memory(device) - held


def seconds_of_step(model: Any, shape: Shape, device: str, repeats: int) -> float | None:
    """Median seconds of a training step by SGD; None if memory does not hold it.

    The learning rate is so small that the weights hardly move.
    """
    model.train()
    # transformers has renamed it
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    size = (shape.batch, shape.length)
    tokens = torch.randint(shape.vocabulary, size, device=device)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    try:
        return float(np.median(take_turns({"step": step}, repeats, device)["step"]))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        optimizer.zero_grad()
        model.eval()
        free(device)


def free(device: str) -> None:
    """Give back what is not used any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
