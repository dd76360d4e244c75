"""A base's answers to a suite: scored, named, and checked against what is to be compared with them.

`base_model` is where they come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.metrics.vocabulary import own_observables, vocabulary_observables
from crystalmon.runs.reference import Reference, ReferenceInfo, reference_id
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import model_name
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import ONE, Ranks
from crystalmon.scoring.rendering import text_tokenizer
from crystalmon.scoring.route import choose_route, still_holds
from crystalmon.scoring.score import Scores, score
from crystalmon.scoring.trial import proof_rows
from crystalmon.suites.tasks import TaskSuite

logger = logging.getLogger(__name__)

Progress = Callable[[int], Any]


class ReferenceMismatch(ValueError):
    """A reference that was made with another suite, view or tokenizer."""


def make_base(
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    route: Route | None = None,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
    fingerprint: str | None = None,
) -> tuple[Reference, Scores]:
    """Score a suite with the model as it is now: a reference, and what a probe would find.

    Args:
        model, tokenizer: the base; of the tokenizer only the name is kept.
        suite, plan: what to score; the plan was built from the suite.
        route, ranks, progress: see `scoring.score`.
        fingerprint: of the model.

    Raises:
        ValueError: if an answer is NaN: a broken model is no base to compare with.
    """

    def keep(prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> dict[str, Tensor]:
        return {**own_vocabulary(log_p, fill=0.0), "log_p": log_p}

    route = route or choose_route(model, plan, ranks)
    proof = proof_rows(plan, route, range(len(plan.rows)))
    scores = score(model, plan, keep, route=route, ranks=ranks, progress=progress, keep=proof)
    if not still_holds(model, plan, scores.route, proof, scores.kept, ranks):
        route = replace(route, method="rows")
        logger.info("prompts are run as %s: trees do not get the model's own answers", route)
        scores = score(model, plan, keep, route=route, ranks=ranks)
    seen = dict(scores.observed)
    rows = seen.pop("log_p")
    if np.isnan(rows).any():
        raise ValueError(
            f"the reference model's answers must be numbers, got NaN from {model_name(model)}. "
            "Check its weights and precision."
        )
    log_choice = dict(zip((task.name for task in suite), scores.log_choice, strict=True))
    info = ReferenceInfo(
        suite=suite.name,
        suite_hash=suite.hash,
        view=plan.view,
        plan=plan.fingerprint,
        model=model_name(model),
        tokenizer=tokenizer_name(tokenizer),
        vocab_size=rows.shape[1],
        id=reference_id(plan.fingerprint, log_choice),
        precision=scores.route.precision,
        fingerprint=fingerprint,
    )
    return Reference(info, log_choice, rows, seen), replace(scores, observed=seen)


def compare_vocabulary(log_p: Tensor, log_b: Tensor, begins: Tensor) -> Mapping[str, Tensor]:
    """The vocabulary's metrics of answers now and in the base, as exactly as the device can."""
    return vocabulary_observables(_exact(log_p), _exact(log_b), begins)


def own_vocabulary(log_p: Tensor, fill: float) -> Mapping[str, Tensor]:
    """As `compare_vocabulary`, of answers [B, V] alone; what compares them is `fill` throughout."""
    own = own_observables(_exact(log_p))
    none = torch.full_like(own["compliance_entropy"], fill)
    return {key: own.get(key, none) for key in base_metrics()}


def _exact(log_p: Tensor) -> Tensor:
    # the divergence of near-equal distributions is a small difference
    return log_p if log_p.device.type == "mps" else log_p.double()


def base_metrics() -> list[str]:
    """The keys of `compare_vocabulary`, in its order."""
    one = torch.zeros(1, 1)
    return [*compare_vocabulary(one, one, one == 0)]


def check_kept(reference: Reference, suite: TaskSuite, plan: ScoringPlan, tokenizer: Any) -> None:
    """Refuse what the cache has, if it does not fit or lacks a metric.

    Args:
        reference, suite, plan, tokenizer: see `check_reference`.

    Raises:
        ReferenceMismatch: see `check_reference`.
        ValueError: if it is damaged, or lacks a metric.
    """
    check_reference(reference, suite, plan, tokenizer)
    if any(
        (found := reference.observed.get(key)) is None or found.shape != (plan.num_prompts,)
        for key in base_metrics()
    ):
        raise ValueError(f"reference {reference.info.id} lacks a metric")


def check_reference(
    reference: Reference,
    suite: TaskSuite,
    plan: ScoringPlan,
    tokenizer: Any,
    *,
    answers_only: bool = False,
) -> None:
    """Refuse a reference that does not answer this very plan.

    Args:
        reference, suite, plan, tokenizer: what must belong together.
        answers_only: accept one that was made with other tokens for the same suite and view: its
            answers can be compared by choice, its vocabulary cannot.

    Raises:
        ReferenceMismatch: if the suite, the view or the tokens differ; the message names both.
        ValueError: if the reference does not hold the answers that it was made with.
    """
    info = reference.info
    advice = "Use the matching one, or reference='initial' to start from this model."
    if info.suite_hash != suite.hash:
        raise ReferenceMismatch(
            f"reference must be of suite {suite.name!r} ({suite.hash}), got suite "
            f"{info.suite!r} ({info.suite_hash}). {advice}"
        )
    if info.view != plan.view:
        raise ReferenceMismatch(
            f"reference must be of view {plan.view!r}, got view {info.view!r}. {advice}"
        )
    if info.plan != plan.fingerprint and not answers_only:
        if info.tokenizer == tokenizer_name(tokenizer) and plan.view == "chat":
            advice = "If its chat template tells the date, set one that does not, or view='raw'."
        raise ReferenceMismatch(
            f"reference must be of tokenizer {tokenizer_name(tokenizer)!r}, got one made with "
            f"{info.tokenizer!r}, which tokenizes suite {suite.name!r} differently. {advice}"
        )
    shapes = dict(zip((task.name for task in suite), plan.shapes, strict=True))
    whole = (
        {name: table.shape for name, table in reference.log_choice.items()} == shapes
        and reference.shape == (plan.num_prompts, info.vocab_size)
        and reference_id(info.plan, {n: reference.log_choice[n] for n in shapes}) == info.id
        and reference.is_intact()
    )
    if not whole:
        raise ValueError(
            f"the file of reference {info.id} is damaged: it does not hold the answers that it was "
            "made with. Delete the folder and score the base again."
        )


def tokenizer_name(tokenizer: Any) -> str:
    """What a reference calls the tokenizer that it was made with."""
    tokenizer = text_tokenizer(tokenizer)
    name = getattr(tokenizer, "name_or_path", "")
    return f"{type(tokenizer).__name__}({name}, {len(tokenizer)} tokens)"
