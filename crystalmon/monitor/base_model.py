"""The base to compare with, from what the user asked for: found on disk, or scored now.

A base is scored once. After that only its answers are kept, and no second model stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.runs.reference import (
    Reference,
    ReferenceInfo,
    find_reference,
    load_reference,
    reference_id,
)
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import free_memory, load_whole, model_name, vocabulary_size
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.precision_trial import AskedPrecision
from crystalmon.scoring.ranks import ONE, Ranks
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import Observer, Scores, score
from crystalmon.suites.tasks import TaskSuite

Progress = Callable[[int], Any]


class ReferenceMismatch(ValueError):
    """A reference that was made with another suite, view or tokenizer."""


def find_base(
    reference: str | Path | Reference,
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
    answers_only: bool = False,
    precision: AskedPrecision = "auto",
) -> Reference | None:
    """The base to compare with, from what the user asked for; None for this model as it is now.

    Args:
        reference: a `Reference`; `auto` (the one that came with the model's folder, else this
            model now, without its adapters: what a LoRA run has trained before is not the base);
            `initial` (this model now); a run or reference folder; or a model id or path, which is
            loaded by rank 0, scored and freed.
        model, tokenizer, suite, plan: what is being monitored.
        ranks, progress: see `scoring.score`.
        answers_only: see `check_reference`.
        precision: of a base that is loaded; see `route.choose_route`.

    Raises:
        ReferenceMismatch: if it was made with another suite, view or tokenizer.
        FileNotFoundError: if a path holds neither a reference nor a model.
    """
    if isinstance(reference, Reference):
        found = reference
    else:
        place = {"auto": model_name(model), "initial": ""}.get(str(reference), reference)
        folder = ranks.on_main(lambda: find_reference(place, suite, plan.view))
        if folder is not None:
            found = _load_everywhere(folder, ranks)
        elif str(reference) in ("auto", "initial"):
            return None
        else:
            device = next(model.parameters()).device
            found = ranks.on_main(
                lambda: _score_other(str(reference), suite, plan, device, progress, precision)
            )
    check_reference(found, suite, plan, tokenizer, answers_only=answers_only)
    return found


def _load_everywhere(folder: Path, ranks: Ranks) -> Reference:
    """Each rank maps the folder. If some rank cannot see it, all get rank 0's copy."""
    try:
        loaded = load_reference(folder)
    except (OSError, ValueError):
        loaded = None
    ids = ranks.gather(None if loaded is None else loaded.info.id)
    if loaded is not None and len(set(ids)) == 1:
        return loaded
    return ranks.on_main(lambda: load_reference(folder).in_memory())


def _score_other(
    name: str,
    suite: TaskSuite,
    plan: ScoringPlan,
    device: torch.device,
    progress: Progress | None,
    precision: AskedPrecision,
) -> Reference:
    """Load a base model with its own tokenizer, score it where the current model is, free it."""
    try:
        base, tokenizer = load_whole(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"reference {name!r} is neither 'auto', 'initial', a run or reference folder, nor "
            f"a model: {error}"
        ) from error
    base.to(device)
    if plan.view == "raw" or getattr(tokenizer, "chat_template", None):
        plan = build_plan(suite, tokenizer, plan.view)
    elif max(map(max, plan.rows)) >= vocabulary_size(base):
        raise ReferenceMismatch(
            f"reference {name!r} has no chat template, and its vocabulary is too small for the "
            "tokens of the current model's template. Use view='raw'."
        )
    try:
        route = choose_route(base, plan, precision=precision)
        return make_base(base, tokenizer, suite, plan, route=route, progress=progress)[0]
    finally:
        del base
        free_memory()


def make_base(
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    observe: Observer | None = None,
    *,
    route: Route | None = None,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
) -> tuple[Reference, Scores]:
    """Score a suite with the model as it is now: a reference, and what else was observed.

    Args:
        model, tokenizer: the base; of the tokenizer only the name is kept.
        suite, plan: what to score; the plan was built from the suite.
        observe, route, ranks, progress: see `scoring.score`.

    Raises:
        ValueError: if an answer is NaN: a broken model is no base to compare with.
    """

    def keep(prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> dict[str, Tensor]:
        seen = {} if observe is None else observe(prompts, log_p, begins)
        return {**seen, "log_p": log_p}

    route = route or choose_route(model, plan, ranks)
    scores = score(model, plan, keep, route=route, ranks=ranks, progress=progress)
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
        tokenizer=_tokenizer_name(tokenizer),
        vocab_size=rows.shape[1],
        id=reference_id(plan.fingerprint, log_choice),
        precision=route.precision,
    )
    return Reference(info, log_choice, rows), replace(scores, observed=seen)


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
        if info.tokenizer == _tokenizer_name(tokenizer) and plan.view == "chat":
            advice = "If its chat template tells the date, set one that does not, or view='raw'."
        raise ReferenceMismatch(
            f"reference must be of tokenizer {_tokenizer_name(tokenizer)!r}, got one made with "
            f"{info.tokenizer!r}, which tokenizes suite {suite.name!r} differently. {advice}"
        )
    shapes = dict(zip((task.name for task in suite), plan.shapes, strict=True))
    whole = (
        {name: table.shape for name, table in reference.log_choice.items()} == shapes
        and reference.shape == (plan.num_prompts, info.vocab_size)
        and reference_id(info.plan, {n: reference.log_choice[n] for n in shapes}) == info.id
    )
    if not whole:
        raise ValueError(
            f"the file of reference {info.id} is damaged: it does not hold the answers that it was "
            "made with. Delete the folder and score the base again."
        )


def _tokenizer_name(tokenizer: Any) -> str:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    name = getattr(tokenizer, "name_or_path", "")
    return f"{type(tokenizer).__name__}({name}, {len(tokenizer)} tokens)"
