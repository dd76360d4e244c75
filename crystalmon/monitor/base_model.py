"""The base to compare with, from what the user asked for: found on disk, or scored now.

A base is scored once, and not at all if the cache knows it. After that only its answers are kept,
and no second model stays in memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crystalmon.metrics.answers import answer_distributions, is_measurable
from crystalmon.monitor.base_answers import (
    Progress,
    ReferenceMismatch,
    base_metrics,
    check_kept,
    check_reference,
    make_base,
    tokenizer_name,
)
from crystalmon.monitor.known_base import KnownBase
from crystalmon.runs.find_reference import find_reference, named_reference
from crystalmon.runs.reference import Reference, load_reference
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import (
    UnsupportedModel,
    adapters_change_nothing,
    free_memory,
    load_whole,
    model_name,
    vocabulary_size,
    without_adapters,
)
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.precision_trial import AskedPrecision, check_precision
from crystalmon.scoring.ranks import ONE, Ranks, attempt, describe
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import Scores
from crystalmon.suites.tasks import TaskSuite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TakenBase:
    """A base to compare with, and how the model is run.

    Args:
        reference: the base's answers.
        route: how to run the model.
        is_own: whether the base is this model as it was just now.
        scores: what a probe of the model now would find; None if that is not known.
        seconds: what scoring the base took when it was scored; None if that is not known.
        remembered: whether the cache had it, and nothing was scored.
    """

    reference: Reference
    route: Route
    is_own: bool = False
    scores: Scores | None = None
    seconds: float | None = None
    remembered: bool = False


def take_base(
    reference: str | Path | Reference,
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
    begin_again: Callable[[int], Any] | None = None,
    answers_only: bool = False,
    precision: AskedPrecision = "auto",
) -> TakenBase:
    """The base that the user asked for, and how to run the model so that both are scored alike.

    Where the base does not answer a task in this view, such as one without a chat template in a
    chat, its answers to the plain prompts are added, to compare with.

    Args:
        precision: of the layers; see `route.choose_route`. `auto` takes that of a base which is
            already there.
        begin_again: called before the plain prompts are scored, with their number of rows, which
            `progress` then counts.
        reference, model, tokenizer, suite, plan, ranks, progress, answers_only: see `find_base`.

    Raises:
        ReferenceMismatch, FileNotFoundError: see `find_base`.
        ValueError: see `make_base`.
    """
    take = partial(
        _take_base,
        reference,
        model,
        tokenizer,
        suite,
        ranks=ranks,
        progress=progress,
        answers_only=answers_only,
        precision=precision,
    )
    taken = take(plan)
    lacking = _unanswered(taken.reference.log_choice)
    if plan.view == "raw" or not lacking or taken.reference.plain:
        return taken

    def take_plain() -> Reference:
        raw = build_plan(suite, tokenizer)
        if begin_again is not None:
            begin_again(len(raw.rows))
        return take(raw).reference

    other, failure = attempt(take_plain)
    one = taken.reference.info
    if other is None or (other.info.fingerprint, other.info.model) != (one.fingerprint, one.model):
        logger.info("the base is not known in the view raw: %s", describe(failure))
        return taken  # such as a stored one, of this view alone
    plain = other.log_choice
    answered = {name: plain[name] for name in lacking if name not in _unanswered(plain)}
    return replace(taken, reference=replace(taken.reference, plain=answered))


def _unanswered(log_choice: Mapping[str, np.ndarray]) -> list[str]:
    """The tasks that a base does not answer."""
    coverage = {name: answer_distributions(table)[1] for name, table in log_choice.items()}
    return [name for name, own in coverage.items() if not is_measurable(own)]


def _take_base(
    reference: str | Path | Reference,
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    ranks: Ranks,
    progress: Progress | None,
    answers_only: bool,
    precision: AskedPrecision,
) -> TakenBase:
    """The base in one view."""
    found = find_base(
        reference,
        model,
        tokenizer,
        suite,
        plan,
        ranks=ranks,
        progress=progress,
        answers_only=answers_only,
        precision=precision,
    )
    if found is not None:
        if precision == "auto":
            precision = check_precision(found.info.precision)
        return TakenBase(found, choose_route(model, plan, ranks, precision=precision))
    bare = str(reference) == "auto"
    own = own_base(
        model,
        tokenizer,
        suite,
        plan,
        bare=bare,
        precision=precision,
        ranks=ranks,
        progress=progress,
    )
    as_bare = not bare or ranks.all(adapters_change_nothing(model))
    return own if as_bare else replace(own, scores=None)  # a probe would find other answers


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
        find = find_reference if str(reference) in ("auto", "initial") else named_reference
        folder = ranks.on_main(lambda: find(place, suite, plan.view))
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
    return ranks.on_main(lambda: load_reference(folder))


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
    if plan.view != "chat" or getattr(tokenizer, "chat_template", None):
        plan = build_plan(suite, tokenizer, plan.view)
    elif max(map(max, plan.rows)) >= vocabulary_size(base):
        raise ReferenceMismatch(
            f"reference {name!r} has no chat template, and its vocabulary is too small for the "
            "tokens of the current model's template. Use view='raw'."
        )
    try:
        return own_base(
            base, tokenizer, suite, plan, precision=precision, progress=progress
        ).reference
    except UnsupportedModel as error:  # the model in training is not to blame
        raise ValueError(f"reference {name!r} cannot be scored: {error}") from error
    finally:
        del base
        free_memory()


def own_base(
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    bare: bool = False,
    precision: AskedPrecision = "float32",
    ranks: Ranks = ONE,
    progress: Progress | None = None,
) -> TakenBase:
    """A model as its own base: from the cache, else scored now and kept there.

    Args:
        model, tokenizer, suite, plan: see `make_base`.
        bare: without PEFT's adapters.
        precision: see `choose_route`.
        ranks, progress: see `scoring.score`.

    Raises:
        ValueError: see `make_base`.
    """
    known = KnownBase(model, suite, plan, ranks, without_adapters=bare, precision=precision)
    found = known.find(lambda reference: check_kept(reference, suite, plan, tokenizer))
    if found is not None:
        names = {"model": model_name(model), "tokenizer": tokenizer_name(tokenizer)}
        base = replace(found, info=replace(found.info, **names))
        tables = tuple(base.log_choice[task.name] for task in suite)
        observed = {key: base.observed[key] for key in base_metrics()}  # as when they are measured
        known.keep(base)
        scores = Scores(tables, observed, None)
        return TakenBase(base, known.route, True, scores, known.seconds, remembered=True)
    started = time.perf_counter()
    with without_adapters(model) if bare else nullcontext():
        base, scores = make_base(
            model,
            tokenizer,
            suite,
            plan,
            route=known.route,
            ranks=ranks,
            progress=progress,
            fingerprint=known.fingerprint,
        )
    seconds = time.perf_counter() - started
    if (run := scores.route or known.route) == known.route:
        base = known.keep(base, seconds)  # else memory was short just now
    return TakenBase(base, run, True, scores, seconds)
