"""Model + scoring plan → log-probabilities of the choices. Exact, and leaves no trace.

Axes: B rows of a batch, T tokens, V vocabulary, P prompts, C choices.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crystalmon.tokentree import ScoringPlan, TokenPath

MAX_BATCH_TOKENS = {"cpu": 1024}
DEFAULT_BATCH_TOKENS = 16_384
MAX_BATCH_LOGITS = 2**25
"""Logits held at once, B · V: 128 MiB in float32."""

Observer = Callable[[np.ndarray, Tensor, Tensor], Mapping[str, Tensor]]
"""(prompt indices [b], log_p [b, V], first tokens of choices [b, V] bool) → [b] values by key."""


@dataclass(frozen=True)
class Scores:
    """What a model answers to a suite.

    Args:
        log_choice: per task [P, C], the log-probability that the completion is the choice.
        observed: [N] values by key, one per prompt in suite order, from the observer.
    """

    log_choice: tuple[np.ndarray, ...]
    observed: Mapping[str, np.ndarray]


def score(
    model: nn.Module,
    plan: ScoringPlan,
    observe: Observer | None = None,
    *,
    max_batch_tokens: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Scores:
    """Score a whole plan with one model.

    Args:
        model: a causal language model that returns logits; its mode, RNG states and
            configuration are left as they were.
        plan: what to score.
        observe: called once per batch with the prompts' full next-token log-probabilities.
        max_batch_tokens: padded tokens per forward pass; chosen by device if None.
        progress: called with the number of rows done after each batch.

    Raises:
        TypeError: if the model has no language-modelling head.
    """
    edge_log_p = np.full(len(plan.edge_row), np.nan)
    observed: dict[str, np.ndarray] = {}
    with undisturbed(model):
        for rows, log_p in next_token_log_probs(model, plan.rows, max_batch_tokens):
            edges, position, token = _edges_of(plan, rows, log_p.device)
            edge_log_p[edges] = log_p[position, token].double().cpu().numpy()
            prompts = np.flatnonzero(rows < plan.num_prompts)
            if observe is not None and len(prompts):
                begins = torch.zeros_like(log_p, dtype=torch.bool)
                begins[position, token] = True
                keep = torch.from_numpy(prompts).to(log_p.device)
                for key, value in observe(rows[prompts], log_p[keep], begins[keep]).items():
                    column = observed.setdefault(key, np.full(plan.num_prompts, np.nan))
                    column[rows[prompts]] = value.double().cpu().numpy()
            if progress is not None:
                progress(len(rows))
    return Scores(_add_up(plan, edge_log_p), observed)


def next_token_log_probs(
    model: nn.Module, rows: Sequence[TokenPath], max_batch_tokens: int | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Next-token log-probabilities after every row, in batches of similar length.

    log p(v | row) = log_softmax(z)_v with the output projection in float32, whatever the model's
    own precision. Rows are padded on the right, where a causal model cannot see it, with
    repetitions of their last token; only each row's last position is projected. Run it within
    `undisturbed(model)`.

    Yields:
        (row indices [B], log_p [B, V] float32 on the model's device).
    """
    device = next(model.parameters()).device
    head = output_head(model)
    limit = max_batch_tokens or MAX_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS)
    vocabulary = cast(Tensor, head.weight).shape[0]
    max_rows = max(1, MAX_BATCH_LOGITS // max(1, vocabulary))
    options = {"use_cache": False} if _accepts(model, "use_cache") else {}
    for batch in _batches(rows, limit, max_rows):
        lengths = np.array([len(rows[i]) for i in batch])
        padded = np.array([_pad(rows[i], lengths.max()) for i in batch])
        with answer_positions(head, torch.from_numpy(lengths - 1).to(device)):
            output = model(input_ids=torch.from_numpy(padded).to(device), **options)
        logits = output.logits if hasattr(output, "logits") else output[0]
        yield batch, logits[:, -1].float().log_softmax(dim=-1)


def output_head(model: nn.Module) -> nn.Module:
    """The model's output projection.

    Raises:
        TypeError: if it has none.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    if not isinstance(head, nn.Module) or not hasattr(head, "weight"):
        raise TypeError(
            f"model must have a language-modelling head, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    return head


@contextlib.contextmanager
def answer_positions(head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within, the head projects one position per row, in float32: [B, T, D] → [B, 1, V].

    The model's own forward still scales or soft-caps what the head returns, now in float32.
    Replacing `forward` keeps the module's hooks, on which sharded engines gather its weight.

    Args:
        head: the output projection.
        positions: [B] index of the position to keep.
    """
    forward, replaced = head.forward, "forward" in vars(head)
    index = positions[:, None, None]

    def project(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = hidden.gather(1, index.expand(-1, 1, hidden.shape[-1]))
        with torch.autocast(hidden.device.type, enabled=False), _Float32Linear():
            return forward(hidden.float(), *args, **kwargs)

    head.forward = project
    try:
        yield
    finally:
        del head.forward
        if replaced:
            head.forward = forward


class _Float32Linear(TorchFunctionMode):
    """Computes every linear map in float32, whatever the dtype of its weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            args = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards everything is as it was.

    Restores each module's own train/eval flag and the random states of Python, NumPy, torch and
    its devices, also when the body raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.is_available()
    devices = range(torch.accelerator.device_count()) if accelerator else []
    device_type = torch.accelerator.current_accelerator() if accelerator else None
    kind = device_type.type if device_type is not None else "cuda"
    model.eval()
    try:
        with torch.random.fork_rng(devices, device_type=kind), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _edges_of(
    plan: ScoringPlan, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, Tensor, Tensor]:
    """The edges read from these rows: their indices, each one's place in the batch, its token."""
    place = np.full(len(plan.rows), -1)
    place[rows] = np.arange(len(rows))
    edges = np.flatnonzero(place[plan.edge_row] >= 0)
    position = torch.from_numpy(place[plan.edge_row[edges]]).to(device)
    return edges, position, torch.from_numpy(plan.edge_token[edges]).to(device)


def _add_up(plan: ScoringPlan, edge_log_p: np.ndarray) -> tuple[np.ndarray, ...]:
    """Edges → per task [P, C] log-probability of each choice.

    A path's log-probability is the sum of its edges'; a path keeps what its nested longer paths
    do not take; a choice sums its paths.
    """
    reached = edge_log_p.copy()
    for edge in np.flatnonzero(plan.edge_parent >= 0):
        reached[edge] += reached[plan.edge_parent[edge]]
    mass = np.exp(reached[plan.path_edge])
    own = mass.copy()
    np.subtract.at(own, plan.nested[:, 1], mass[plan.nested[:, 0]])
    sizes = [prompts * choices for prompts, choices in plan.shapes]
    cells = np.zeros(sum(sizes))
    np.add.at(cells, plan.path_cell, np.maximum(own, 0.0))
    with np.errstate(divide="ignore"):
        tables = np.split(np.log(cells), np.cumsum(sizes)[:-1])
    return tuple(table.reshape(shape) for table, shape in zip(tables, plan.shapes, strict=True))


def _batches(rows: Sequence[TokenPath], limit: int, max_rows: int) -> Iterator[np.ndarray]:
    """Row indices, longest first, so that padded batches hold at most `limit` tokens."""
    longest_first = np.argsort([-len(row) for row in rows], kind="stable")
    start = 0
    while start < len(rows):
        width = len(rows[longest_first[start]])
        stop = start + max(1, min(limit // width, max_rows))
        yield longest_first[start:stop]
        start = stop


def _pad(row: TokenPath, length: int) -> TokenPath:
    return row + row[-1:] * (int(length) - len(row))


def _accepts(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
