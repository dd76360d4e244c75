"""Choosing how a model is run, by trying: as trees or rows, in float32 or its own precision.

A model's own answers, in rows, are the truth. A faster or more exact way is taken if it gives the
same answers, up to rounding, on every rank.

Answers are compared by `deviation`, which is relative to how much they differ between prompts. A
bound on probabilities would not do: over a large vocabulary an untrained model's are all tiny, so
that one which ignores the mask would pass.

Axes: M rows, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import (
    Route,
    TooLargeInFloat32,
    accepts,
    next_token_log_probs,
    output_head,
    score_rows,
)
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.models import UnsupportedModel, context_length, longrope_switch
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.precision import MASKED_ATTENTION
from crystalmon.scoring.precision_trial import (
    AskedPrecision,
    compare_precisions,
    noted_half,
    suffices,
)
from crystalmon.scoring.ranks import ONE, Ranks, describe
from crystalmon.scoring.sequences import TokenSequence, chain, pack_size
from crystalmon.scoring.trie import Trie

logger = logging.getLogger(__name__)

ROUTE_TOLERANCE = 1e-4
"""Largest `deviation` between tree and rows, both in float32, at which they count as equal.
Rounding is near 1e-6."""

HALF_TOLERANCE = 0.3
"""The same between a model's own half precision and float32, which round differently."""

LEAST_SPREAD = 0.3
"""Differences between prompts, in nats, below which `deviation` would measure rounding alone."""

Answers = Callable[[Route], Tensor]
"""What a model answers to the trial when run by a route: log-probabilities [M, V]."""


def choose_route(
    model: nn.Module,
    plan: ScoringPlan,
    ranks: Ranks = ONE,
    precision: AskedPrecision = "float32",
) -> Route:
    """The best route that gives a model's own numbers, found out on some of a plan's prompts.

    Prompts are packed as trees, of the size that costs least, if the model then honours the mask.

    Args:
        model, plan, ranks: see `score`.
        precision: of the layers. `model`: as the model computes. `float32`: that, if the answers
            are then the model's own up to rounding. `auto`: likewise, unless the model's own are
            within `MODEL_ERROR` of them and take less than 1 / `FASTER` of the time; the route's
            `trial` says what was found. Of a model that computes in float32 all are the same.

    Raises:
        UnsupportedModel: if the model has no language-modelling head, or is not causal.
        RankError: if another rank has failed.
    """
    head = output_head(model)
    width = getattr(head, "in_features", None) or cast(Tensor, head.weight).shape[-1]
    pack = pack_size(plan, max(1, int(width)), context_length(model))
    told, filled = _trial(plan, pack)

    def answers(route: Route, wanted: Sequence[int] = told) -> Tensor:
        rows = filled if route.method == "tree" else wanted
        return _answers(model, plan, route, rows, wanted, ranks)

    with undisturbed(model):
        route, truth = _in_rows(model, plan, told, precision, answers, ranks)
        ranks.together(partial(_check_causal, model, head, plan, route, truth, told))
        if route.trial is not None and suffices(route.trial):
            route = replace(route, precision="model")
        # a kernel that does not know the mask may fail on the device, where it cannot be caught
        masked = route.precision == "float32" or _takes_mask(model)
        if masked and accepts(model, "position_ids") and not _straddles(model, plan):
            tree = replace(route, method="tree", pack=pack)
            route, _ = _better(route, truth, tree, answers, ranks)
    return route


def _in_rows(
    model: nn.Module,
    plan: ScoringPlan,
    told: Sequence[int],
    precision: AskedPrecision,
    answers: Callable[..., Tensor],
    ranks: Ranks,
) -> tuple[Route, Tensor]:
    """The best route in rows, with the trial that `auto` goes by, and its answers [M, V].

    Args:
        model, plan, precision, ranks: see `choose_route`.
        told: the rows of the trial.
        answers: what the model answers to them by a route, or to those of them that are given.
    """
    floats, prompts = computes_wide(model), _prompts(plan, told)
    # in two precisions: little is asked
    first = told if floats or precision == "model" else prompts
    seconds: dict[str, float] = {}

    def timed(route: Route) -> Tensor:
        if next(model.parameters()).device.type != "cpu":
            answers(route, first)  # kernels are loaded the first time
        started = time.perf_counter()
        found = answers(route, first)
        seconds[route.precision] = time.perf_counter() - started
        return found

    route, wide = Route("rows", "model"), Route("rows", "float32")
    with noted_half(output_head(model)) as half:
        own = truth = timed(route)
    if floats and not any(half):
        route = wide  # its own numbers are those of float32 layers
    elif precision != "model":
        route, truth = _better(route, truth, wide, timed, ranks)
        if route == wide and precision == "auto":
            trial = ranks.broadcast(compare_precisions(plan, prompts, own, truth, seconds))
            route = replace(route, trial=trial)
    if rest := told[len(first) :]:
        truth = torch.cat([truth, answers(route, rest)])
    return route, truth


def _prompts(plan: ScoringPlan, told: Sequence[int]) -> list[int]:
    """Of ascending rows those that are prompts, which come first."""
    return [row for row in told if row < plan.num_prompts]


def still_holds(model: nn.Module, plan: ScoringPlan, route: Route, ranks: Ranks = ONE) -> bool:
    """Whether a route still gives the answers of rows in the same precision, on one full pack.

    What a model does with a mask may show only once it is trained. The pack holds the prompts that
    cost least; at its first, middle and last place a prompt and its last row are compared.

    Args:
        model, plan, ranks: see `score`.
        route: that held before; of rows there is nothing to prove.

    Raises:
        RankError: if another rank has failed.
    """
    if route.method == "rows":
        return True
    cheap = np.argsort(_branch_costs(plan), kind="stable").tolist()
    order = sorted(_fitting(plan, cheap, route.pack), key=lambda prompt: plan.rows[prompt])
    trees = [np.flatnonzero(plan.row_prompt == prompt).tolist() for prompt in order]
    told = sorted({row for at in (0, len(trees) // 2, -1) for row in (trees[at][0], trees[at][-1])})
    filled = sorted(row for tree in trees for row in tree)
    with undisturbed(model):
        truth = _answers(model, plan, replace(route, method="rows"), told, told, ranks)
        found = _answers(model, plan, route, filled, told, ranks)
    tolerance = ROUTE_TOLERANCE if route.precision == "float32" else HALF_TOLERANCE
    return ranks.all(deviation(found, truth) < tolerance)


def _answers(
    model: nn.Module,
    plan: ScoringPlan,
    route: Route,
    rows: Sequence[int],
    wanted: Sequence[int],
    ranks: Ranks,
) -> Tensor:
    """Log-probabilities [M, V] after the rows that are wanted, from running others with them."""
    found: dict[int, Tensor] = {}  # a batch comes twice where another rank was out of memory

    def keep(answered: np.ndarray, log_p: Tensor) -> None:
        pairs = zip(answered.tolist(), log_p, strict=True)
        found.update((row, each.cpu()) for row, each in pairs if row in wanted)

    score_rows(model, plan, route, keep, ranks=ranks, split=False, rows=rows)
    return torch.stack([found[row] for row in sorted(found)])


def choose_precision(
    model: nn.Module, sequences: Sequence[TokenSequence], ranks: Ranks = ONE
) -> Route:
    """Rows in float32 if that gives a model's own numbers, up to rounding, on some sequences.

    Raises:
        UnsupportedModel: if the model has no language-modelling head.
        RankError: if another rank has failed.
    """
    head = output_head(model)

    def answers(route: Route) -> Tensor:
        found = [next_token_log_probs(model, head, [each], route)[1] for each in sequences]
        return torch.cat(found)

    with undisturbed(model):
        own = Route("rows", "model")
        truth = ranks.together(lambda: answers(own))
        return _better(own, truth, Route("rows", "float32"), answers, ranks)[0]


def _check_causal(
    model: nn.Module,
    head: nn.Module,
    plan: ScoringPlan,
    route: Route,
    truth: Tensor,
    told: Sequence[int],
) -> None:
    """Refuse a model whose answer to a prompt depends on what follows it: padding would change it.

    Args:
        truth: the model's answers to the rows of the trial, `told`.

    Raises:
        UnsupportedModel: if it does, as a bidirectional model's answer.
    """
    prompts = _prompts(plan, told)
    place = max(range(len(prompts)), key=lambda place: len(plan.rows[prompts[place]]))
    prompt = plan.rows[prompts[place]]
    others = sum((row for row in plan.rows[: plan.num_prompts] if row != prompt), ())
    switch = longrope_switch(model) or 0  # a longer sequence is another matter than a later token
    most = context_length(model) or 2 * len(prompt)
    if len(prompt) <= switch:
        most = min(most, switch)
    more = others[: most - len(prompt)][: len(prompt)]
    followed = chain(prompt + more, (len(prompt) - 1,), 0)
    found = next_token_log_probs(model, head, [followed], route)[1].cpu()
    difference = deviation(found, truth[[place]], truth)
    if difference > (ROUTE_TOLERANCE if route.precision == "float32" else HALF_TOLERANCE):
        raise UnsupportedModel(
            "model must be causal, but what follows a prompt changes the answer of "
            f"{type(model).__name__} to it. Use a decoder-only language model."
        )


def _better(
    route: Route, truth: Tensor, candidate: Route, answers: Answers, ranks: Ranks
) -> tuple[Route, Tensor]:
    """The candidate and its answers if they are those of `route` on every rank, else the latter."""
    exact = route.precision == candidate.precision == "float32"
    tolerance = ROUTE_TOLERANCE if exact else HALF_TOLERANCE
    found, why = truth, ""
    try:
        found = answers(candidate)
    except TooLargeInFloat32:
        why = "memory does not hold its layers in float32"
        logger.warning("crystalmon: not run as %s: %s.", candidate, why)
    except Exception as error:  # whatever a model does with what it does not know
        why = describe(error)
    else:
        difference = deviation(found, truth)
        if not difference < tolerance:
            why = f"its answers deviate by {difference:.1e} of what prompts change"
    if ranks.all(not why):  # asked also after an error, which other ranks may not have met
        return candidate, found
    logger.info("not run as %s: %s", candidate, why or "another rank cannot")
    return route, truth


def deviation(found: Tensor, truth: Tensor, among: Tensor | None = None) -> float:
    """How far answers lie from the true ones, relative to how much the prompt changes those.

    max_m rms_v(z'_mv − z_mv) / max(rms_mv(z_mv − mean_m z_mv), `LEAST_SPREAD`), where z are
    log-probabilities [M, V], does not depend on the size of the vocabulary. Of a single row, the
    mean is that over the vocabulary. Values that are infinite, or NaN, in both are left out; it is
    infinite if one has them elsewhere.

    Args:
        found, truth: z' and z.
        among: other answers, whose z make the denominator.
    """
    for kind in (torch.isnan, torch.isfinite):
        if not torch.equal(kind(found), kind(truth)):
            return float("inf")
    rows = truth if among is None else among
    error = (found - truth).nan_to_num(posinf=0.0, neginf=0.0)
    mean = rows.mean(dim=0) if len(rows) > 1 else rows.nan_to_num(posinf=0.0, neginf=0.0).mean()
    spread = (rows - mean).nan_to_num(posinf=0.0, neginf=0.0)
    scale = spread.square().mean().sqrt().clamp_min(LEAST_SPREAD)
    return float(error.square().mean(dim=1).sqrt().max() / scale)


def computes_wide(model: nn.Module) -> bool:
    """Whether a model is in float32 or float64 throughout, with an attention that routes use.

    Weights of integers are those of a quantized model, whose own code decides what is computed.
    """
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *floating)}
    return _takes_mask(model) and dtypes <= {torch.float32, torch.float64}


def _straddles(model: nn.Module, plan: ScoringPlan) -> bool:
    """Whether a plan's rows lie on both sides of longrope's switch, and may not share a pack."""
    switch = longrope_switch(model)
    return switch is not None and len({len(row) > switch for row in plan.rows}) > 1


def _takes_mask(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", None) in MASKED_ATTENTION


def _tree_sizes(plan: ScoringPlan) -> tuple[np.ndarray, np.ndarray]:
    """[N] by prompt: its rows, and the length of the longest."""
    lengths = np.zeros(plan.num_prompts, dtype=np.int64)
    np.maximum.at(lengths, plan.row_prompt, [len(row) for row in plan.rows])
    return np.bincount(plan.row_prompt, minlength=plan.num_prompts), lengths


def _branch_costs(plan: ScoringPlan) -> np.ndarray:
    """[N] tokens that the rows of a prompt take; much more for those whose tree has no branch."""
    unfinished, lengths = _tree_sizes(plan)
    costs = unfinished * lengths
    return np.where(unfinished > 2, costs, costs + costs.max() * len(costs))


def _trial(plan: ScoringPlan, pack: int) -> tuple[list[int], list[int]]:
    """Rows whose answers tell whether trees are honoured, and those that fill a pack with them.

    The first are of the prompt with the longest row (a sliding window may be shorter), the one
    whose tree has branches and costs least in rows, and some from the first to the last place of a
    pack, since what a model does may depend on how far into a sequence a token stands. Of each
    they are the prompt, its longest row, and its last, which comes after all its others in a pack.
    """
    _, lengths = _tree_sizes(plan)
    order = sorted(range(plan.num_prompts), key=lambda prompt: plan.rows[prompt])
    some = np.linspace(0, plan.num_prompts - 1, num=6, dtype=int)
    told = {int(np.argmin(_branch_costs(plan))), int(np.argmax(lengths)), *(order[i] for i in some)}
    rows, filled = set[int](), list[int]()
    for prompt in _fitting(plan, [*sorted(told), *order], pack, len(told)):
        own = np.flatnonzero(plan.row_prompt == prompt).tolist()  # the prompt itself is first
        filled += own
        if prompt in told:
            rows |= {own[0], max(own, key=lambda row: (len(plan.rows[row]), row)), own[-1]}
    return sorted(rows), sorted(set(filled))


def _fitting(plan: ScoringPlan, prompts: Sequence[int], pack: int, least: int = 1) -> list[int]:
    """Of the prompts, in their order, those whose trees fit into a pack; the first in any case."""
    trie, found = Trie(), list[int]()
    unfinished, _ = _tree_sizes(plan)
    for place, prompt in enumerate(prompts):
        tokens = trie.missing(plan.rows[prompt]) + int(unfinished[prompt]) - 1
        if prompt not in found and (place < least or len(trie) + tokens <= pack):
            for row in np.flatnonzero(plan.row_prompt == prompt):
                trie.add(plan.rows[row])
            found.append(prompt)
    return found
