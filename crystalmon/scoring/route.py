"""route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import (
    Route,
    _accepts,
    logger,
    next_token_log_probs,
    output_head,
    score_rows,
)
from crystalmon.scoring.isolation import MASKED_ATTENTION, undisturbed
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import ONE, Ranks, describe
from crystalmon.scoring.sequences import TokenSequence, pack_size
from crystalmon.scoring.trie import Trie

ROUTE_TOLERANCE = 1e-4
"""Largest difference in a probability between tree and rows, both in float32, at which they count
as equal. A model that ignores the mask is off by far more."""


HALF_TOLERANCE = 3e-2
"""The same between a model's own half precision and float32, which round differently."""


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
