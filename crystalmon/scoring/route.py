"""Choosing how a model is run, by trying: as trees or rows, in float32 or its own precision.

A model's own answers, in rows, are the truth. A faster or more exact way is taken if it gives the
same answers, up to rounding, on every rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import Route, accepts, next_token_log_probs, output_head, score_rows
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.models import context_length
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.precision import MASKED_ATTENTION
from crystalmon.scoring.ranks import ONE, Ranks, describe
from crystalmon.scoring.sequences import TokenSequence, pack_size
from crystalmon.scoring.trie import Trie

logger = logging.getLogger(__name__)

ROUTE_TOLERANCE = 1e-4
"""Largest difference in a probability between tree and rows, both in float32, at which they count
as equal. A model that ignores the mask is off by far more."""

HALF_TOLERANCE = 3e-2
"""The same between a model's own half precision and float32, which round differently."""

Answers = Callable[[Route], Tensor]
"""What a model answers to the trial when run by a route: probabilities [M, V]."""


def choose_route(model: nn.Module, plan: ScoringPlan, ranks: Ranks = ONE) -> Route:
    """The best route that gives a model's own numbers, found out on some of a plan's prompts.

    Layers are computed in float32 if the answers then are the model's own up to rounding. Prompts
    are packed as trees, of the size that costs least, if the model then honours the mask.

    Raises:
        TypeError: if the model has no language-modelling head.
        RankError: if another rank has failed.
    """
    head = output_head(model)
    width = getattr(head, "in_features", None) or cast(Tensor, head.weight).shape[-1]
    pack = pack_size(plan, max(1, int(width)), context_length(model))
    told, packed = _trial(plan, pack)

    def answers(route: Route) -> Tensor:
        found: dict[int, Tensor] = {}  # a batch comes twice where another rank was out of memory

        def keep(rows: np.ndarray, log_p: Tensor) -> None:
            pairs = zip(rows.tolist(), log_p, strict=True)
            found.update((row, each.exp()) for row, each in pairs if plan.row_prompt[row] in told)

        prompts = packed if route.method == "tree" else told
        score_rows(model, plan, route, keep, ranks=ranks, split=False, prompts=prompts)
        return torch.stack([found[row] for row in sorted(found)])

    with undisturbed(model):
        wide = computes_wide(model)  # then its own numbers are those of float32 layers
        route = Route("rows", "float32" if wide else "model")
        truth = answers(route)
        if not wide:
            route, truth = _better(route, truth, Route("rows", "float32"), answers, ranks)
        # a kernel that does not know the mask may fail on the device, where it cannot be caught
        masked = route.precision == "float32" or _takes_mask(model)
        if masked and accepts(model, "position_ids"):
            route, _ = _better(route, truth, Route("tree", route.precision, pack), answers, ranks)
    return route


def choose_precision(
    model: nn.Module, sequences: Sequence[TokenSequence], ranks: Ranks = ONE
) -> Route:
    """Rows in float32 if that gives a model's own numbers, up to rounding, on some sequences.

    Raises:
        TypeError: if the model has no language-modelling head.
        RankError: if another rank has failed.
    """
    head = output_head(model)

    def answers(route: Route) -> Tensor:
        found = [next_token_log_probs(model, head, [each], route)[1] for each in sequences]
        return torch.cat(found).exp()

    with undisturbed(model):
        own = Route("rows", "model")
        truth = ranks.together(lambda: answers(own))
        return _better(own, truth, Route("rows", "float32"), answers, ranks)[0]


def _better(
    route: Route, truth: Tensor, candidate: Route, answers: Answers, ranks: Ranks
) -> tuple[Route, Tensor]:
    """The candidate and its answers if they are those of `route` on every rank, else the latter."""
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
    if ranks.all(not why):  # asked also after an error, which other ranks may not have met
        return candidate, found
    logger.info("not run as %s: %s", candidate, why or "another rank cannot")
    return route, truth


def computes_wide(model: nn.Module) -> bool:
    """Whether a model is in float32 or float64 throughout, with an attention that routes use.

    Weights of integers are those of a quantized model, whose own code decides what is computed.
    """
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *floating)}
    return _takes_mask(model) and dtypes <= {torch.float32, torch.float64}


def _takes_mask(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", None) in MASKED_ATTENTION


def _trial(plan: ScoringPlan, pack: int) -> tuple[set[int], set[int]]:
    """Prompts whose answers tell whether trees are honoured, and those that fill a pack with them.

    The first are the prompt with the longest row (a sliding window may be shorter), the one whose
    tree has branches and costs least in rows, and some from the first to the last place of a pack,
    since what a model does may depend on how far into a sequence a token stands.
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
            for row in np.flatnonzero(plan.row_prompt == prompt):  # the prompt itself is the first
                trie.add(plan.rows[row])
            filled.add(prompt)
    return told, filled
