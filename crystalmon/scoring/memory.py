"""How large a batch may be: by the device, and by the memory that is free on it.

Beside a training others may hold a GPU's memory, such as vLLM that generates GRPO's completions in
the same process. What is free is asked of the device, and nobody is asked to make room.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from crystalmon.scoring.precision import HEAD_DTYPE
from crystalmon.scoring.ranks import ONE, Ranks

MAX_BATCH_TOKENS = {"cpu": 1024}
DEFAULT_BATCH_TOKENS = 16_384
MAX_BATCH_LOGITS = {"cpu": 2**25}
DEFAULT_BATCH_LOGITS = 2**27
"""Logits in a batch, M · V: 256 MiB in float64 on a CPU, else 512 MiB in float32, as small batches
leave a GPU waiting. A few such tensors are held at once while their softmax is taken."""

LOGITS_AT_ONCE = 4
"""Tensors of logits that are held at once."""
LEAST_TOKENS = 128
"""Of a batch, however little is free: if that is too many, the pass says so."""


def batch_limits(model: nn.Module, head: nn.Module, ranks: Ranks = ONE) -> tuple[int, int]:
    """(padded tokens, positions whose logits are kept) that a batch may hold, on every rank.

    Half of the memory that is free is left alone; the tokens' activations and the logits take a
    quarter each.
    """
    device = next(model.parameters()).device
    # a partitioned weight is empty, so its shape does not tell the vocabulary
    vocabulary = int(getattr(head, "out_features", None) or cast(Tensor, head.weight).shape[0])
    tokens = MAX_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS)
    outputs = batch_logits(device.type) // max(1, vocabulary)
    if (left := memory_left(device)) is not None:
        each = HEAD_DTYPE.get(device.type, torch.float32).itemsize * vocabulary * LOGITS_AT_ONCE
        outputs = min(outputs, left // 4 // max(1, each))
        tokens = min(tokens, max(LEAST_TOKENS, left // 4 // token_bytes(model)))
    limits = ranks.gather((tokens, max(1, outputs)))
    return min(most for most, _ in limits), min(most for _, most in limits)


def memory_left(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where batches are small anyway."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached


def token_bytes(model: Any) -> int:
    """About what a token takes in one layer, in float32: eight hidden states and its MLP."""
    config = model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or 4096)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return 4 * (8 * hidden + 4 * inner)


def batch_logits(device: str) -> int:
    """Logits that a batch may hold, by the type of device."""
    return MAX_BATCH_LOGITS.get(device, DEFAULT_BATCH_LOGITS)


def logits_bytes(device: str, vocabulary: int, positions: int) -> int:
    """Of the largest batch in which so many positions are scored."""
    most = max(1, batch_logits(device) // vocabulary)
    size = HEAD_DTYPE.get(device, torch.float32).itemsize
    return size * vocabulary * min(positions, most)
