"""Forward passes for scoring: next-token log-probabilities at the positions that a plan needs.

A plan's sequences go through the model in rounds, one batch per rank and round, so that every
rank runs the same number of forward passes.

Axes: B sequences of a batch, M positions needed, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from crystalmon.scoring.memory import batch_limits
from crystalmon.scoring.models import UnsupportedModel, free_memory, longrope_switch
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.precision import HALF, answer_positions, float32_layers
from crystalmon.scoring.ranks import ONE, RankError, Ranks, attempt
from crystalmon.scoring.sequences import (
    Method,
    TokenSequence,
    ancestors,
    batches_of,
    padded,
    sequences_of,
)

logger = logging.getLogger(__name__)

Consumer = Callable[[np.ndarray, Tensor], Any]
"""Takes (row indices [M], log_p [M, V] float32 on the model's device)."""

_ROUTERS = "output_router_logits"
_MEMORY_ERRORS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


Precision = Literal["float32", "model"]


class TooLargeInFloat32(RuntimeError):
    """Memory does not hold float32 layers, not even for a single prompt."""


@dataclass(frozen=True)
class Route:
    """How a model is run; `route.choose_route` finds out which way is best.

    Args:
        method: `tree` or `rows`; see `sequences`.
        precision: `float32`: the layers computed in float32; `model`: as the model computes.
        pack: tokens of a packed tree, at most; a single prompt's tree may be larger.
        trial: what the precision was chosen by, if it was; see `route.choose_route`.
    """

    method: Method = "rows"
    precision: Precision = "model"
    pack: int = 256
    trial: Mapping[str, float] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.method}, {self.precision}"


def score_rows(
    model: nn.Module,
    plan: ScoringPlan,
    route: Route,
    consume: Consumer,
    *,
    ranks: Ranks = ONE,
    split: bool = True,
    max_batch_tokens: int | None = None,
    rows: Iterable[int] | None = None,
) -> int | None:
    """Next-token log-probabilities after every row of a plan, in batches of similar length.

    log p(v | row) = log_softmax(z)_v, with the output projection in float32 or better. If any rank
    runs out of memory, all ranks halve the limit and run the round again. Run it within
    `undisturbed(model)`.

    Args:
        consume: called with each batch of this rank; with the same rows again if a round is
            run again.
        ranks: the processes that score together.
        split: give each rank its share of the batches; else each of them runs all.
        max_batch_tokens: padded tokens per forward pass, at most; by the device and what is free on
            it if None.
        rows: which ones; all of them if None. As trees, with each prompt all rows after it.

    Returns:
        The lowered limit of padded tokens if memory ran out; else `max_batch_tokens`.

    Raises:
        TooLargeInFloat32: on all ranks, where memory may still hold the model's own precision.
        RankError: if another rank has failed.
    """
    head = output_head(model)
    widens = route.precision == "float32" and any(p.itemsize < 4 for p in model.parameters())
    tokens, outputs = batch_limits(model, head, ranks)
    tokens = min(tokens, max_batch_tokens or tokens)
    left = list(range(len(plan.rows)) if rows is None else rows)
    own, shares = ranks.share if split else ONE.share
    cut = partial(_batches, plan, route, size=shares, switch=longrope_switch(model))
    queue = cut(left, tokens, outputs)

    def run(batch: Sequence[TokenSequence], counts: bool) -> None:
        answered, log_p = next_token_log_probs(model, head, batch, route)
        if counts:
            consume(answered, log_p)

    held = max_batch_tokens
    while queue:
        batches, queue = queue[:shares], queue[shares:]
        # a rank without a batch of its own runs the last one again, for nothing
        batch = batches[min(own, len(batches) - 1)]
        _, failure = attempt(partial(run, batch, own < len(batches)))
        if ranks.share_failure(failure, out_of_memory):
            if all(_is_single(plan, each) for each in batches):
                if widens:
                    raise TooLargeInFloat32("no memory for layers in float32")
                raise failure or RankError("another rank has no memory left for a single prompt")
            failure = None  # it holds on to the tensors of the pass that failed
            tokens, outputs = _halved(batches, tokens, outputs)
            held = tokens
            left = [row for each in batches + queue for one in each for row in one.rows]
            queue = cut(left, tokens, outputs)
    return held


def _is_single(plan: ScoringPlan, batch: Sequence[TokenSequence]) -> bool:
    """Whether a batch cannot be cut: it is one sequence, of one prompt."""
    return len(batch) == 1 and sum(plan.row_parent[[*batch[0].rows]] < 0) < 2


def _halved(
    batches: Sequence[Sequence[TokenSequence]], tokens: int, outputs: int
) -> tuple[int, int]:
    """The limits of a batch after some had no memory."""
    free_memory()  # a smaller batch may not fit into the blocks that the device has cached
    failed = max(len(batch) * len(batch[0].tokens) for batch in batches)
    tokens = min(tokens, failed) // 2
    logger.warning("crystalmon: out of memory; going on with %d tokens a batch.", tokens)
    return tokens, max(1, outputs // 2)


def _batches(
    plan: ScoringPlan,
    route: Route,
    rows: Sequence[int],
    tokens: int,
    outputs: int,
    *,
    size: int,
    switch: int | None,
) -> list[list[TokenSequence]]:
    """The batches of some rows, small enough that each of `size` ranks gets a share of them."""
    pack = min(route.pack, tokens)
    sequences = sequences_of(plan, route.method, rows, pack, outputs, switch)
    share = -(-sum(len(sequence.tokens) for sequence in sequences) // size)
    if share < pack:
        sequences = sequences_of(plan, route.method, rows, share, outputs, switch)
    if size == 1:
        share = max(share + share // 4, pack)  # padding costs less than another pass
    width = max((len(sequence.tokens) for sequence in sequences), default=0)
    return list(batches_of(sequences, min(tokens, max(width, share)), outputs, switch))


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_ERRORS)


def next_token_log_probs(
    model: nn.Module, head: nn.Module, batch: Sequence[TokenSequence], route: Route
) -> tuple[np.ndarray, Tensor]:
    """One forward pass: (row indices [M], log_p [M, V] float32), in the order of the outputs.

    Run it within `undisturbed(model)`.

    Raises:
        UnsupportedModel: if the model returns something else than its head's logits.
    """
    rows = np.array([row for sequence in batch for row in sequence.rows])
    where = [(b, position) for b, sequence in enumerate(batch) for position in sequence.outputs]
    with float32_layers(model) if route.precision == "float32" else nullcontext():
        with answer_positions(head, torch.tensor(where)):
            output = model(**_inputs(model, batch, route))
        logits = output.logits if hasattr(output, "logits") else output[0]
        _check_logits(model, head, logits, len(where))
        wide = logits[0] if logits.dtype == torch.float64 else logits[0].float()
        return rows, wide.log_softmax(dim=-1).float()


def _check_logits(model: nn.Module, head: nn.Module, logits: Any, positions: int) -> None:
    """Refuse what a replaced forward may return instead: nothing, hidden states, or other rows."""
    found: tuple[int, ...] = tuple(getattr(logits, "shape", ()))
    wanted = (1, positions, getattr(head, "out_features", None) or 1)
    # a head may add tokens to those of its weights
    if found[:-1] != wanted[:-1] or found < wanted:
        raise UnsupportedModel(
            f"model must return the logits of its head, of shape {wanted}, but "
            f"{type(model).__name__} returns {found}. Load it without what replaces its forward."
        )


def output_head(model: nn.Module) -> nn.Module:
    """The model's output projection.

    Raises:
        UnsupportedModel: if it has none.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module) or not hasattr(head, "weight"):
        raise UnsupportedModel(
            f"model must have a language-modelling head, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    return head


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name."""
    inner = model.module if isinstance(model, FullyShardedDataParallel) else model
    parameters = inspect.signature(inner.forward).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _inputs(model: Any, batch: Sequence[TokenSequence], route: Route) -> dict[str, Any]:
    """Padded token ids and, for trees, the ancestor mask and position ids."""
    parameter = next(model.parameters())
    tokens, depths = padded(batch)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(parameter.device)}
    if accepts(model, "use_cache"):
        inputs["use_cache"] = False
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if hasattr(config, _ROUTERS) and accepts(model, _ROUTERS):
        inputs[_ROUTERS] = False  # a mixture's auxiliary loss takes no tree's mask
    if route.method == "tree":
        inputs["position_ids"] = torch.from_numpy(depths).to(parameter.device)
        allowed = torch.from_numpy(ancestors(batch)).to(parameter.device)
        wide = route.precision == "float32" and parameter.dtype in HALF
        dtype = torch.float32 if wide else parameter.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=parameter.device)
        inputs["attention_mask"] = mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)
    return inputs
