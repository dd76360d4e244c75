"""The base to compare with, from what the user asked for: found on disk, or scored now.

A base is scored once, and not at all if the cache knows it. After that only its answers are kept,
and no second model stays in memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from crystalmon.monitor.base_answers import (
    ReferenceMismatch,
    base_metrics,
    check_kept,
    check_reference,
    make_base,
    tokenizer_name,
)
from crystalmon.monitor.known_base import KnownBase
from crystalmon.runs.compared_answers import unanswered
from crystalmon.runs.find_reference import find_reference, named_reference
from crystalmon.runs.reference import Reference, ReferenceInfo, load_reference
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


@dataclass(frozen=True)
class ScoringJob:
    """What a base is scored on.

    Args:
        model, tokenizer: for `own_base`, the base's; for `find_base`, the monitored model's.
        suite, plan: what is scored; the plan was built from the suite.
        ranks: see `scoring.score`.
        precision: of the layers; see `route.choose_route`.
        bar: makes a progress bar over so many rows.
    """

    model: nn.Module
    tokenizer: Any
    suite: TaskSuite
    plan: ScoringPlan
    ranks: Ranks = ONE
    precision: AskedPrecision = "auto"
    bar: Callable[[int], tqdm[Any]] | None = None


def take_base(
    reference: str | Path | Reference,
    job: ScoringJob,
    bar: Callable[[str, int], tqdm[Any]],
    *,
    answers_only: bool = False,
) -> TakenBase:
    """The base that the user asked for, and how to run the model so that both are scored alike.

    Where the base does not answer a task in this view, such as one without a chat template in a
    chat, its answers to the plain prompts are added, to compare with.

    Args:
        reference, answers_only: see `find_base`.
        job: of the monitored model. With precision `auto` the model is run in that of a base which
            is already there.
        bar: makes a progress bar from what it is of, and the number of rows.

    Raises:
        ReferenceMismatch, FileNotFoundError: see `find_base`.
        ValueError: see `make_base`.
    """

    def take(what: str, plan: ScoringPlan) -> Reference | TakenBase:
        own = replace(job, plan=plan, bar=partial(bar, what))
        found = find_base(reference, own, answers_only=answers_only)
        return own_base(own, adapters=str(reference) != "auto") if found is None else found

    taken = take("reference", job.plan)
    if isinstance(taken, Reference):
        taken = TakenBase(taken, _route_like(taken, job))
    base = taken.reference
    if job.plan.view == "raw" or base.plain or not unanswered(base.log_choice):
        return taken
    other, failure = attempt(
        lambda: take("reference, plain prompts", build_plan(job.suite, job.tokenizer))
    )
    plain = other.reference if isinstance(other, TakenBase) else other
    if plain is None or not _same_model(plain.info, base.info):
        why = describe(failure) if failure else "another model was found"
        logger.info("the base is not known in the view raw: %s", why)
        return taken  # such as a stored one, of this view alone
    return replace(taken, reference=_with_plain(base, plain))


def _route_like(base: Reference, job: ScoringJob) -> Route:
    """How to run the model where its base is already there."""
    precision = job.precision
    if precision == "auto":
        precision = check_precision(base.info.precision)
    return choose_route(job.model, job.plan, job.ranks, precision=precision)


def _same_model(one: ReferenceInfo, other: ReferenceInfo) -> bool:
    return (one.fingerprint, one.model) == (other.fingerprint, other.model)


def _with_plain(base: Reference, plain: Reference) -> Reference:
    """The base, with its plain answers to the tasks that it answers only so."""
    answered = plain.log_choice.keys() - set(unanswered(plain.log_choice))
    lacking = [name for name in unanswered(base.log_choice) if name in answered]
    return replace(base, plain={name: plain.log_choice[name] for name in lacking})


def find_base(
    reference: str | Path | Reference, job: ScoringJob, *, answers_only: bool = False
) -> Reference | None:
    """The base to compare with, from what the user asked for; None for this model as it is now.

    Args:
        reference: a `Reference`; `auto` (the one that came with the model's folder, else this
            model now, without its adapters: what a LoRA run has trained before is not the base);
            `initial` (this model now); a run or reference folder; or a model id or path, which is
            loaded by rank 0, scored and freed.
        job: of the monitored model.
        answers_only: see `check_reference`.

    Raises:
        ReferenceMismatch: if it was made with another suite, view or tokenizer.
        FileNotFoundError: if a path holds neither a reference nor a model.
    """
    suite, plan, ranks = job.suite, job.plan, job.ranks
    if isinstance(reference, Reference):
        found = reference
    elif str(reference) == "initial":
        return None
    else:
        auto = str(reference) == "auto"
        place = model_name(job.model) if auto else reference
        find = find_reference if auto else named_reference
        folder = ranks.on_main(lambda: find(place, suite, plan.view))
        if folder is not None:
            found = _load_everywhere(folder, ranks)
        elif auto:
            return None
        else:
            found = ranks.on_main(lambda: _score_other(str(reference), job))
    check = partial(check_reference, found, suite, plan, job.tokenizer, answers_only=answers_only)
    ranks.on_main(check)  # it reads the whole file
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


def _score_other(name: str, job: ScoringJob) -> Reference:
    """Load a base model with its own tokenizer, score it where the current model is, free it."""
    try:
        base, tokenizer = load_whole(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"reference {name!r} is neither 'auto', 'initial', a run or reference folder, nor "
            f"a model: {error}"
        ) from error
    base.to(next(job.model.parameters()).device)
    suite, plan = job.suite, job.plan
    if plan.view != "chat" or getattr(tokenizer, "chat_template", None):
        plan = build_plan(suite, tokenizer, plan.view)
    elif max(map(max, plan.rows)) >= vocabulary_size(base):
        raise ReferenceMismatch(
            f"reference {name!r} has no chat template, and its vocabulary is too small for the "
            "tokens of the current model's template. Use view='raw'."
        )
    own = replace(job, model=base, tokenizer=tokenizer, plan=plan, ranks=ONE)
    try:
        return own_base(own).reference
    except UnsupportedModel as error:  # the model in training is not to blame
        raise ValueError(f"reference {name!r} cannot be scored: {error}") from error
    finally:
        del base, own
        free_memory()


def own_base(job: ScoringJob, *, adapters: bool = True) -> TakenBase:
    """A model as its own base: from the cache, else scored now and kept there.

    Args:
        job: the model, and what it is scored on.
        adapters: with PEFT's adapters, if it has any; False: without.

    Raises:
        ValueError: see `make_base`.
    """
    model, suite, plan = job.model, job.suite, job.plan
    known = KnownBase(
        model, suite, plan, job.ranks, without_adapters=not adapters, precision=job.precision
    )
    # with adapters that change something, a probe of this model finds other answers than the base
    as_now = adapters or job.ranks.all(adapters_change_nothing(model))
    found = known.find(lambda reference: check_kept(reference, suite, plan, job.tokenizer))
    if found is not None:
        names = {"model": model_name(model), "tokenizer": tokenizer_name(job.tokenizer)}
        base = replace(found, info=replace(found.info, **names))
        tables = tuple(base.log_choice[task.name] for task in suite)
        observed = {key: base.observed[key] for key in base_metrics()}  # as when they are measured
        known.keep(base)
        scores = Scores(tables, observed, None, known.route) if as_now else None
        return TakenBase(base, known.route, True, scores, known.seconds, remembered=True)
    started = time.perf_counter()
    bar = nullcontext() if job.bar is None else job.bar(len(plan.rows))
    with bar as shown, nullcontext() if adapters else without_adapters(model):
        base, scores = make_base(
            model,
            job.tokenizer,
            suite,
            plan,
            route=known.route,
            ranks=job.ranks,
            progress=None if shown is None else shown.update,
            fingerprint=known.fingerprint,
        )
    seconds = time.perf_counter() - started
    if scores.route.precision == known.route.precision:  # else memory was short just now
        known.route = scores.route
        base = known.keep(base, seconds)
    return TakenBase(base, scores.route, True, scores if as_now else None, seconds)
