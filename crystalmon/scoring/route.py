"""Choosing how a model is run, by trying: as trees or rows, in float32 or its own precision.

A model's own answers, in rows, are the truth. A faster or more exact way is taken if it gives the
same answers, up to rounding, on every rank.

Answers are compared by `deviation`, which is relative to how much they differ between prompts. A
bound on probabilities would not do: those of an untrained model over a large vocabulary are all so
small that even a model which ignores the mask would pass.

Axes: M rows, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import (
    Route,
    TooLargeInFloat32,
    accepts,
    next_token_log_probs,
    output_head,
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
from crystalmon.scoring.trial import Trial, varied_trial

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
    trial = varied_trial(model, plan, ranks, pack)
    with undisturbed(model):
        route, truth = _in_rows(trial, precision)
        ranks.together(lambda: _check_causal(trial, route, truth))
        if route.trial is not None and suffices(route.trial):
            route = replace(route, precision="model")
        # a kernel that does not know the mask may fail on the device, where it cannot be caught
        masked = route.precision == "float32" or _takes_mask(model)
        if masked and accepts(model, "position_ids") and not _straddles(model, plan):
            tree = replace(route, method="tree", pack=pack)
            route, _ = _better(route, truth, tree, trial.answers, ranks)
    return route


def _in_rows(trial: Trial, precision: AskedPrecision) -> tuple[Route, Tensor]:
    """The best route in rows, with what `auto` goes by, and its answers to the trial [M, V]."""
    model, ranks = trial.model, trial.ranks
    floats = computes_wide(model)
    # in two precisions: little is asked
    first = trial.compared if floats or precision == "model" else trial.prompts
    seconds: dict[str, float] = {}

    def timed(route: Route) -> Tensor:
        if next(model.parameters()).device.type != "cpu":
            trial.answers(route, first)  # kernels are loaded the first time
        started = time.perf_counter()
        found = trial.answers(route, first)
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
            compared = compare_precisions(trial.plan, trial.prompts, own, truth, seconds)
            route = replace(route, trial=ranks.broadcast(compared))
    if rest := trial.compared[len(first) :]:
        truth = torch.cat([truth, trial.answers(route, rest)])
    return route, truth


def still_holds(
    model: nn.Module,
    plan: ScoringPlan,
    route: Route,
    rows: Sequence[int],
    found: Mapping[int, Tensor],
    ranks: Ranks = ONE,
) -> bool:
    """Whether what a probe found as trees is what rows give in the same precision.

    What a model does with a mask may show only once it is trained.

    Args:
        model, plan, ranks: see `score`.
        route: that of the probe; of rows there is nothing to prove.
        rows: to compare, the same on every rank; see `proof_rows`.
        found: log-probabilities [V] by row, of those that this rank has run; see `Scores.kept`.

    Raises:
        TooLargeInFloat32: if memory, which held the trees, no longer holds a row.
        RankError: if another rank has failed.
    """
    if route.method == "rows":
        return True
    with undisturbed(model):
        truth = Trial(model, plan, ranks, sorted(rows), []).answers(replace(route, method="rows"))
    own = [place for place, row in enumerate(sorted(rows)) if row in found]
    if not own:
        return ranks.all(True)
    mine = torch.stack([found[row] for row in sorted(found)])
    differs = deviation(mine, truth[own], truth)
    return ranks.all(differs < tolerance(exact=route.precision == "float32"))


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


def _check_causal(trial: Trial, route: Route, truth: Tensor) -> None:
    """Refuse a model whose answer to a prompt depends on what follows it: padding would change it.

    Args:
        truth: the model's answers to the trial.

    Raises:
        UnsupportedModel: if it does, as a bidirectional model's answer.
    """
    model, plan, prompts = trial.model, trial.plan, trial.prompts
    place = max(range(len(prompts)), key=lambda place: len(plan.rows[prompts[place]]))
    prompt = plan.rows[prompts[place]]
    others = sum((row for row in plan.rows[: plan.num_prompts] if row != prompt), ())
    switch = longrope_switch(model) or 0  # a longer sequence is another matter than a later token
    most = context_length(model) or 2 * len(prompt)
    if len(prompt) <= switch:
        most = min(most, switch)
    more = others[: most - len(prompt)][: len(prompt)]
    followed = chain(prompt + more, (len(prompt) - 1,), 0)
    found = next_token_log_probs(model, output_head(model), [followed], route)[1].cpu()
    difference = deviation(found, truth[[place]], truth)
    if difference > tolerance(exact=route.precision == "float32"):
        raise UnsupportedModel(
            "model must be causal, but what follows a prompt changes the answer of "
            f"{type(model).__name__} to it. Use a decoder-only language model."
        )


def _better(
    route: Route, truth: Tensor, candidate: Route, answers: Answers, ranks: Ranks
) -> tuple[Route, Tensor]:
    """The candidate and its answers if they are those of `route` on every rank, else the latter."""
    bound = tolerance(exact=route.precision == candidate.precision == "float32")
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
        if not difference < bound:
            why = f"its answers deviate by {difference:.1e} of what prompts change"
    if ranks.all(not why):  # asked also after an error, which other ranks may not have met
        return candidate, found
    logger.info("not run as %s: %s", candidate, why or "another rank cannot")
    return route, truth


def tolerance(exact: bool) -> float:
    """Below which `deviation` counts as rounding, of two routes in float32 or of others."""
    return ROUTE_TOLERANCE if exact else HALF_TOLERANCE


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
