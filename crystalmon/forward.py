"""Forward passes for scoring: next-token log-probabilities at the positions that a plan needs.

Two ways to the same numbers. **tree**: a prompt and all unfinished answers after it are one
sequence, in which each token sees only its ancestors (a 4-D attention mask and position ids), so
that the prompt is computed once. **rows**: every unfinished answer is a sequence of its own; it
costs the prompt again each time and works with any causal model.

Axes: B sequences of a batch, T tokens, M positions needed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crystalmon.tokentree import ScoringPlan

logger = logging.getLogger(__name__)

Method = Literal["tree", "rows"]

MAX_BATCH_TOKENS = {"cpu": 1024}
DEFAULT_BATCH_TOKENS = 16_384
MAX_BATCH_LOGITS = 2**25
"""Logits held at once, M · V: 128 MiB in float32, 256 MiB in float64."""

HEAD_DTYPE = {"cpu": torch.float64}
"""In what the output projection is computed, float32 elsewhere: many GPUs are slow in float64. A
sum over the vocabulary's width rounds by 1e-5 in float32, which adds up along a path of tokens."""

MASKED_ATTENTION = ("sdpa", "eager")
"""transformers' attention implementations that take any 4-D mask."""

TREE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
DEFAULT_TREE_TOLERANCE = 3e-2
"""Largest difference in a probability between tree and rows at which they count as equal. In
half precision the two round differently; a model that ignores the mask is off by far more."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to run.

    Args:
        tokens: T token ids.
        parents: T positions, the token before each one; −1 at the start. A chain for a row.
        depths: T distances from the start: the position ids.
        outputs: positions whose next-token distribution is needed.
        rows: the plan's row at each of these positions.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: tuple[int, ...]


def next_token_log_probs(
    model: nn.Module,
    plan: ScoringPlan,
    method: Method,
    *,
    max_batch_tokens: int | None = None,
    prompts: Iterable[int] | None = None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Next-token log-probabilities after every row of a plan, in batches of similar length.

    log p(v | row) = log_softmax(z)_v with the output projection in float32 or better, whatever the
    model's own precision; only the needed positions are projected. Sequences are padded on the
    right, where a causal model cannot see it. Run it within `undisturbed(model)`.

    Args:
        model: a causal language model.
        plan: what to score.
        method: `tree` or `rows`; see `choose_method`.
        max_batch_tokens: padded tokens per forward pass; chosen by device if None.
        prompts: only the rows of these prompts.

    Yields:
        (row indices [M], log_p [M, V] float32 on the model's device).
    """
    device = next(model.parameters()).device
    head = output_head(model)
    limit = max_batch_tokens or MAX_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS)
    # a partitioned weight is empty, so its shape does not tell the vocabulary
    vocabulary = getattr(head, "out_features", None) or cast(Tensor, head.weight).shape[0]
    max_outputs = max(1, MAX_BATCH_LOGITS // max(1, int(vocabulary)))
    chosen = range(plan.num_prompts) if prompts is None else prompts
    build = _tree_sequences if method == "tree" else _row_sequences
    for batch in _batches(build(plan, chosen), limit, max_outputs):
        inputs = _inputs(model, batch, method, device)
        where = [(b, position) for b, sequence in enumerate(batch) for position in sequence.outputs]
        with answer_positions(head, torch.tensor(where)):
            output = model(**inputs)
        logits = output.logits if hasattr(output, "logits") else output[0]
        rows = np.array([row for sequence in batch for row in sequence.rows])
        wide = logits[0] if logits.dtype == torch.float64 else logits[0].float()
        yield rows, wide.log_softmax(dim=-1).float()


def choose_method(model: nn.Module, plan: ScoringPlan) -> Method:
    """`tree` if the model honours the mask, found out by trying; else `rows`.

    Runs the prompt with the most unfinished answers, and the longest one (a sliding window may be
    shorter), both ways and compares probabilities.
    """
    head = output_head(model)
    counts = np.bincount(plan.row_prompt, minlength=plan.num_prompts)
    if counts.max() < 2 or not _accepts(model, "position_ids"):
        return "rows"
    # a kernel that does not know the mask may fail on the device, where it cannot be caught
    if getattr(model.config, "_attn_implementation", None) not in MASKED_ATTENTION:
        return "rows"
    lengths = [len(row) for row in plan.rows[: plan.num_prompts]]
    prompts = {int(np.argmax(counts)), int(np.argmax(lengths))}
    dtypes: list[torch.dtype] = []
    watch = head.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    try:
        with undisturbed(model):
            rows = _probabilities(model, plan, "rows", prompts)
            tree = _probabilities(model, plan, "tree", prompts)
    except Exception as error:  # whatever a model does with a mask it does not know
        logger.info("prompts are scored row by row: %s: %s", type(error).__name__, error)
        return "rows"
    finally:
        watch.remove()
    difference = float((tree - rows).abs().max())
    if difference < TREE_TOLERANCE.get(dtypes[0], DEFAULT_TREE_TOLERANCE):
        return "tree"
    logger.info("prompts are scored row by row: as trees they differ by %.1e", difference)
    return "rows"


def _probabilities(
    model: nn.Module, plan: ScoringPlan, method: Method, prompts: set[int]
) -> Tensor:
    """[M, V] probabilities after the rows of some prompts, in the order of the rows."""
    parts = list(next_token_log_probs(model, plan, method, prompts=prompts))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return torch.cat([log_p for _, log_p in parts])[torch.from_numpy(order)].exp()


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
def answer_positions(head: nn.Module, where: Tensor) -> Iterator[None]:
    """Within, the head projects the needed positions only, in `HEAD_DTYPE`: [B, T, D] → [1, M, V].

    The model's own forward still scales or soft-caps what the head returns, in that dtype.
    Replacing `forward` keeps the module's hooks, on which sharded engines gather its weight.

    Args:
        head: the output projection.
        where: [M, 2] (sequence, position) pairs.
    """
    forward, replaced = head.forward, "forward" in vars(head)

    def project(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        at = where.to(hidden.device)
        dtype = HEAD_DTYPE.get(hidden.device.type, torch.float32)
        needed = hidden[at[:, 0], at[:, 1]].unsqueeze(0).to(dtype)
        with torch.autocast(hidden.device.type, enabled=False), _LinearIn(dtype):
            return forward(needed, *args, **kwargs)

    head.forward = project
    try:
        yield
    finally:
        del head.forward
        if replaced:
            head.forward = forward


class _LinearIn(TorchFunctionMode):
    """Computes every linear map in one dtype, whatever that of its weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            args = [arg.to(self._dtype) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards everything is as it was.

    Restores each module's own train/eval flag and the random states of Python, NumPy, torch and
    its devices, also when the body raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    devices = range(torch.accelerator.device_count()) if accelerator else []
    device_type = accelerator.type if accelerator else "cuda"
    model.eval()
    try:
        with torch.random.fork_rng(devices, device_type=device_type), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _row_sequences(plan: ScoringPlan, prompts: Iterable[int]) -> list[TokenSequence]:
    chosen = set(prompts)
    return [
        TokenSequence(
            tokens=tokens,
            parents=tuple(range(-1, len(tokens) - 1)),
            depths=tuple(range(len(tokens))),
            outputs=(len(tokens) - 1,),
            rows=(row,),
        )
        for row, tokens in enumerate(plan.rows)
        if plan.row_prompt[row] in chosen
    ]


def _tree_sequences(plan: ScoringPlan, prompts: Iterable[int]) -> list[TokenSequence]:
    members: dict[int, list[int]] = {prompt: [prompt] for prompt in prompts}
    for row in range(plan.num_prompts, len(plan.rows)):
        if plan.row_prompt[row] in members:
            members[int(plan.row_prompt[row])].append(row)
    return [_tree_sequence(plan, rows) for rows in members.values()]


def _tree_sequence(plan: ScoringPlan, rows: Sequence[int]) -> TokenSequence:
    """One prompt's tokens and, after them, the last token of each further row."""
    prompt = plan.rows[rows[0]]
    place = {row: len(prompt) - 1 + index for index, row in enumerate(rows)}
    further = rows[1:]
    return TokenSequence(
        tokens=(*prompt, *(plan.rows[row][-1] for row in further)),
        parents=(
            *range(-1, len(prompt) - 1),
            *(place[int(plan.row_parent[row])] for row in further),
        ),
        depths=(*range(len(prompt)), *(len(plan.rows[row]) - 1 for row in further)),
        outputs=tuple(place.values()),
        rows=tuple(rows),
    )


def _batches(
    sequences: Sequence[TokenSequence], limit: int, max_outputs: int
) -> Iterator[list[TokenSequence]]:
    """Longest first, at most `limit` padded tokens and `max_outputs` positions each."""
    batch: list[TokenSequence] = []
    outputs = 0
    for sequence in sorted(sequences, key=lambda s: -len(s.tokens)):
        full = batch and (
            (len(batch) + 1) * len(batch[0].tokens) > limit
            or outputs + len(sequence.outputs) > max_outputs
        )
        if full:
            yield batch
            batch, outputs = [], 0
        batch.append(sequence)
        outputs += len(sequence.outputs)
    if batch:
        yield batch


def _inputs(
    model: nn.Module, batch: Sequence[TokenSequence], method: Method, device: torch.device
) -> dict[str, Any]:
    """Padded token ids and, for trees, the ancestor mask and position ids.

    Rows are padded with repetitions of their last token: with no padding token in sight no mask
    is needed, and the model keeps its fastest attention.
    """
    width = len(batch[0].tokens)
    tokens = np.array([_pad(sequence.tokens, width) for sequence in batch])
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(device)}
    if _accepts(model, "use_cache"):
        inputs["use_cache"] = False
    if method == "tree":
        depths = np.array([_pad(sequence.depths, width) for sequence in batch])
        inputs["position_ids"] = torch.from_numpy(depths).to(device)
        allowed = torch.from_numpy(np.stack([_ancestors(s, width) for s in batch])).to(device)
        dtype = next(model.parameters()).dtype
        blocked = torch.finfo(dtype).min
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        inputs["attention_mask"] = mask.masked_fill(~allowed, blocked).unsqueeze(1)
    return inputs


def _ancestors(sequence: TokenSequence, width: int) -> np.ndarray:
    """[T, T] bool: which tokens each token sees, its ancestors and itself."""
    allowed = np.eye(width, dtype=bool)
    for position, parent in enumerate(sequence.parents):
        if parent >= 0:
            allowed[position] |= allowed[parent]
    return allowed


def _pad(values: tuple[int, ...], length: int) -> tuple[int, ...]:
    return values + values[-1:] * (length - len(values))


def _accepts(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
