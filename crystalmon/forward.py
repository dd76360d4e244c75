"""Forward passes for scoring: next-token log-probabilities at the positions that a plan needs.

A plan's sequences go through the model in rounds, one batch per rank and round, so that every
rank runs the same number of forward passes. How they are run, the route, is found out by trying.

Axes: B sequences of a batch, T tokens, M positions needed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.isolation import (
    MASKED_ATTENTION,
    answer_positions,
    float32_layers,
    masked_attention,
    undisturbed,
)
from crystalmon.ranks import ONE, RankError, Ranks, describe
from crystalmon.sequences import (
    Method,
    TokenSequence,
    ancestors,
    batches_of,
    pack_size,
    padded,
    sequences_of,
)
from crystalmon.tokentree import ScoringPlan
from crystalmon.trie import Trie

logger = logging.getLogger(__name__)

Consumer = Callable[[np.ndarray, Tensor], Any]
"""Takes (row indices [M], log_p [M, V] float32 on the model's device)."""

MAX_BATCH_TOKENS = {"cpu": 1024}
DEFAULT_BATCH_TOKENS = 16_384
MAX_BATCH_LOGITS = 2**25
"""Logits in a batch, M · V: 128 MiB in float32, 256 MiB in float64; a few such tensors are held at
once while their softmax is taken."""

ROUTE_TOLERANCE = 1e-4
"""Largest difference in a probability between tree and rows, both in float32, at which they count
as equal. A model that ignores the mask is off by far more."""
HALF_TOLERANCE = 3e-2
"""The same between a model's own half precision and float32, which round differently."""


@dataclass(frozen=True)
class Route:
    """How a model is run.

    Args:
        method: `tree` or `rows`; see `sequences`.
        precision: `float32`, the layers computed in float32 whatever the weights' own precision,
            by an attention kernel that can; or `model`, just as the model computes.
        pack: tokens of a packed tree, at most; a single prompt's tree may be larger.
    """

    method: Method = "rows"
    precision: Literal["float32", "model"] = "model"
    pack: int = 256

    def __str__(self) -> str:
        return f"{self.method}, {self.precision}"

    @contextlib.contextmanager
    def taken(self, model: nn.Module) -> Iterator[None]:
        """Within, the model's layers are computed in this route's precision."""
        if self.precision == "model":
            yield
            return
        with masked_attention(model), float32_layers():
            yield


def score_rows(
    model: nn.Module,
    plan: ScoringPlan,
    route: Route,
    consume: Consumer,
    *,
    ranks: Ranks = ONE,
    split: bool = True,
    max_batch_tokens: int | None = None,
    prompts: Iterable[int] | None = None,
) -> int:
    """Next-token log-probabilities after every row of a plan, in batches of similar length.

    log p(v | row) = log_softmax(z)_v with the output projection in float32 or better, whatever the
    model's own precision; only the needed positions are projected. Out of memory, on any rank, the
    limit is halved on all of them and the round tried again. Run it within `undisturbed(model)`.

    Args:
        model: a causal language model.
        plan: what to score.
        route: how; see `choose_route`.
        consume: called with each batch that falls to this rank; twice with the same rows if the
            first time has run out of memory.
        ranks: the processes that score together.
        split: give each rank its share of the batches; else each of them runs all.
        max_batch_tokens: padded tokens per forward pass; chosen by device if None.
        prompts: only the rows of these prompts.

    Returns:
        The limit of padded tokens that memory has held.

    Raises:
        RankError: if another rank has failed.
    """
    head = output_head(model)
    limits = _limits(model, head, route, max_batch_tokens)
    chosen = range(plan.num_prompts) if prompts is None else prompts
    left = np.flatnonzero(np.isin(plan.row_prompt, list(chosen))).tolist()
    share = ranks if split else ONE
    queue = _batches(plan, route.method, left, limits, share.size)
    while queue:
        batches, rest = queue[: share.size], queue[share.size :]
        # a rank without a batch of its own runs the last one again, for nothing
        batch = batches[min(share.rank, len(batches) - 1)]
        counts = share.rank < len(batches)
        failure = _attempt(model, head, batch, route, consume if counts else None)
        if not out_of_memory_somewhere(failure, ranks):
            queue = rest
            continue
        if not any(_divisible(plan, batch) for batch in batches):
            raise failure or RankError("another rank has no memory left for a single prompt")
        failure = None  # it holds on to the tensors of the pass that failed
        _free(model)
        limits = limits.halved(max(len(batch) * len(batch[0].tokens) for batch in batches))
        logger.warning("crystalmon: out of memory; going on with %d tokens a batch.", limits.tokens)
        left = [row for batch in batches + rest for sequence in batch for row in sequence.rows]
        queue = _batches(plan, route.method, left, limits, share.size)
    return limits.tokens


@dataclass(frozen=True)
class _Limits:
    """How much goes into a forward pass.

    Args:
        tokens: of a batch, padding included.
        outputs: positions of a batch that are projected.
        pack: tokens of a packed tree.
    """

    tokens: int
    outputs: int
    pack: int

    def halved(self, failed: int) -> _Limits:
        """After a batch of so many tokens was too large."""
        tokens = min(self.tokens, failed) // 2
        return _Limits(tokens, max(1, self.outputs // 2), min(self.pack, tokens))


def _limits(
    model: nn.Module, head: nn.Module, route: Route, max_batch_tokens: int | None
) -> _Limits:
    tokens, outputs = batch_limits(model, head)
    tokens = max_batch_tokens or tokens
    return _Limits(tokens, outputs, min(route.pack, tokens))


def batch_limits(model: nn.Module, head: nn.Module) -> tuple[int, int]:
    """(padded tokens, positions whose logits are kept) that a batch may hold, by device."""
    device = next(model.parameters()).device
    # a partitioned weight is empty, so its shape does not tell the vocabulary
    vocabulary = getattr(head, "out_features", None) or cast(Tensor, head.weight).shape[0]
    tokens = MAX_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS)
    return tokens, max(1, MAX_BATCH_LOGITS // max(1, int(vocabulary)))


def _batches(
    plan: ScoringPlan, method: Method, rows: Sequence[int], limits: _Limits, size: int
) -> list[list[TokenSequence]]:
    """The batches of some rows; of so many ranks each has a share, if there are enough prompts."""
    sequences = sequences_of(plan, method, rows, limits.pack, limits.outputs)
    share = -(-sum(len(sequence.tokens) for sequence in sequences) // size)
    if share < limits.pack:
        sequences = sequences_of(plan, method, rows, share, limits.outputs)
    width = max((len(sequence.tokens) for sequence in sequences), default=0)
    return list(batches_of(sequences, min(limits.tokens, max(width, share)), limits.outputs))


def _divisible(plan: ScoringPlan, batch: Sequence[TokenSequence]) -> bool:
    """Whether a batch could be made smaller: a prompt's tree stays whole."""
    return len(batch) > 1 or int(np.sum(plan.row_parent[list(batch[0].rows)] < 0)) > 1


def _attempt(
    model: nn.Module,
    head: nn.Module,
    batch: Sequence[TokenSequence],
    route: Route,
    consume: Consumer | None,
) -> Exception | None:
    """Run a batch and hand it on; what went wrong is for all ranks to hear first."""
    try:
        with route.taken(model):
            rows, log_p = next_token_log_probs(model, head, batch, route)
        if consume is not None:
            consume(rows, log_p)
    except Exception as error:
        return error
    return None


def out_of_memory_somewhere(failure: Exception | None, ranks: Ranks) -> bool:
    """Whether any rank has run out of memory in this round; any other failure is raised.

    Raises:
        Exception: this rank's failure; a `RankError` for another's.
    """
    memory = failure is not None and out_of_memory(failure)
    if failure is not None and not memory and ranks.size == 1:
        raise failure
    told = ranks.gather((memory, describe(failure)))
    if failure is not None and not memory:
        raise failure
    for rank, (rank_memory, text) in enumerate(told):
        if text and not rank_memory:
            raise RankError(f"rank {rank} failed: {text}")
    return any(rank_memory for rank_memory, _ in told)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)


_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _free(model: nn.Module) -> None:
    """Give cached blocks back, in which a smaller batch may not fit."""
    if next(model.parameters()).is_cuda:
        torch.cuda.empty_cache()


def next_token_log_probs(
    model: nn.Module,
    head: nn.Module,
    batch: Sequence[TokenSequence],
    route: Route,
) -> tuple[np.ndarray, Tensor]:
    """One forward pass: (row indices [M], log_p [M, V] float32), in the order of the outputs.

    Run it within `undisturbed(model)` and `route.taken(model)`.
    """
    where = [(b, position) for b, sequence in enumerate(batch) for position in sequence.outputs]
    with answer_positions(head, torch.tensor(where)):
        output = model(**_inputs(model, batch, route))
    logits = output.logits if hasattr(output, "logits") else output[0]
    rows = np.array([row for sequence in batch for row in sequence.rows])
    wide = logits[0] if logits.dtype == torch.float64 else logits[0].float()
    return rows, wide.log_softmax(dim=-1).float()


def choose_precision(
    model: nn.Module, sequences: Sequence[TokenSequence], ranks: Ranks = ONE
) -> Route:
    """Rows in float32 if that gives the model's own numbers up to their rounding, else its own.

    Args:
        model: a causal language model.
        sequences: to try, one at a time.
        ranks: the processes that run them together.

    Raises:
        TypeError: if the model has no language-modelling head.
        RankError: if another rank has failed.
    """
    head = output_head(model)

    def answers(route: Route) -> Tensor:
        with route.taken(model):
            found = [next_token_log_probs(model, head, [each], route)[1] for each in sequences]
        return torch.cat(found).exp()

    with undisturbed(model):
        own = Route("rows", "model")
        truth = ranks.together(lambda: answers(own))
        return _better(own, truth, Route("rows", "float32"), answers, ranks)[0]


def choose_route(model: nn.Module, plan: ScoringPlan, ranks: Ranks = ONE) -> Route:
    """The best route that gives a model's own numbers, found out by trying.

    In float32 if the model runs so, and its answers are its own up to their rounding; as trees,
    packed to cost least, if it then honours the mask. Some prompts are tried, the longest among
    them.

    Raises:
        TypeError: if the model has no language-modelling head.
    """
    head = output_head(model)
    width = getattr(head, "in_features", None) or cast(Tensor, head.weight).shape[-1]
    context = getattr(cast(Any, model).config.get_text_config(), "max_position_embeddings", None)
    pack = pack_size(plan, max(1, int(width)), context)
    told, packed = _trial(plan, pack)

    def answers(route: Route) -> Tensor:
        prompts = packed if route.method == "tree" else told
        return _probabilities(model, plan, route, prompts, told, ranks)

    with undisturbed(model):
        if _computes_wide(model):  # then its own numbers are those of float32 layers
            route, truth = Route("rows", "float32"), answers(Route("rows", "float32"))
        else:
            route, truth = Route("rows", "model"), answers(Route("rows", "model"))
            route, truth = _better(route, truth, Route("rows", "float32"), answers, ranks)
        # a kernel that does not know the mask may fail on the device, where it cannot be caught
        masked = route.precision == "float32" or not _unmasked(model)
        if masked and _accepts(model, "position_ids"):
            route, _ = _better(route, truth, Route("tree", route.precision, pack), answers, ranks)
    return route


def _trial(plan: ScoringPlan, pack: int) -> tuple[set[int], set[int]]:
    """Prompts that tell whether trees are honoured, and those to fill a whole pack with them.

    The one with the longest row (a sliding window may be shorter), the one whose tree has branches
    and costs least in rows, and some from the first to the last place of a pack, since what a model
    does may depend on how far into a sequence a token stands.
    """
    unfinished = np.bincount(plan.row_prompt, minlength=plan.num_prompts)
    lengths = np.zeros(plan.num_prompts, dtype=np.int64)
    np.maximum.at(lengths, plan.row_prompt, [len(row) for row in plan.rows])
    order = sorted(range(plan.num_prompts), key=lambda prompt: plan.rows[prompt])
    some = np.linspace(0, plan.num_prompts - 1, num=6, dtype=int)
    branches = np.where(unfinished > 2, unfinished * lengths, np.iinfo(np.int64).max)
    told = {int(np.argmin(branches)), int(np.argmax(lengths)), *(order[i] for i in some)}
    trie, filled = Trie(), set[int]()
    for prompt in [*sorted(told), *order]:
        tokens = trie.missing(plan.rows[prompt]) + int(unfinished[prompt]) - 1
        if prompt in told or len(trie) + tokens <= pack:
            trie.add(plan.rows[prompt])
            for row in np.flatnonzero(plan.row_prompt == prompt):
                trie.add(plan.rows[row])
            filled.add(prompt)
    return told, filled


def _better(
    route: Route,
    truth: Tensor,
    candidate: Route,
    answers: Callable[[Route], Tensor],
    ranks: Ranks,
) -> tuple[Route, Tensor]:
    """The candidate and its answers, if on every rank they are those of `route`."""
    exact = route.precision == candidate.precision == "float32"
    tolerance = ROUTE_TOLERANCE if exact else HALF_TOLERANCE
    found, why = truth, ""
    try:
        found = answers(candidate)
    except Exception as error:  # whatever a model does with what it does not know
        why = describe(error)
    else:
        difference = float((found - truth).nan_to_num().abs().max())
        if not (difference < tolerance and torch.equal(found.isnan(), truth.isnan())):
            why = f"it differs by {difference:.1e}"
    if ranks.all(not why):  # also after an error, which the other ranks need not have met
        return candidate, found
    logger.info("not run as %s: %s", candidate, why or "another rank cannot")
    return route, truth


def _computes_wide(model: nn.Module) -> bool:
    """Whether it is in float32 or float64 throughout, and its attention is what a route takes.

    Weights of integers are of a quantized model, whose own code decides what is computed.
    """
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *floating)}
    return not _unmasked(model) and dtypes <= {torch.float32, torch.float64}


def _unmasked(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", None) not in MASKED_ATTENTION


def _probabilities(
    model: nn.Module,
    plan: ScoringPlan,
    route: Route,
    prompts: set[int],
    told: set[int],
    ranks: Ranks,
) -> Tensor:
    """[M, V] probabilities after the rows of `told`, in their order, all `prompts` being run."""
    found: dict[int, Tensor] = {}  # a batch comes twice where another rank has run out of memory

    def keep(rows: np.ndarray, log_p: Tensor) -> None:
        pairs = zip(rows.tolist(), log_p, strict=True)
        found.update((row, value.exp()) for row, value in pairs if plan.row_prompt[row] in told)

    score_rows(model, plan, route, keep, ranks=ranks, split=False, prompts=prompts)
    return torch.stack([found[row] for row in sorted(found)])


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


def _inputs(model: nn.Module, batch: Sequence[TokenSequence], route: Route) -> dict[str, Any]:
    """Padded token ids and, for trees, the ancestor mask and position ids."""
    device = next(model.parameters()).device
    tokens, depths = padded(batch)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(device)}
    if _accepts(model, "use_cache"):
        inputs["use_cache"] = False
    if route.method == "tree":
        inputs["position_ids"] = torch.from_numpy(depths).to(device)
        allowed = torch.from_numpy(ancestors(batch)).to(device)
        own = next(model.parameters()).dtype
        half = own in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if route.precision == "float32" and half else own
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        inputs["attention_mask"] = mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)
    return inputs


def _accepts(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
