"""One probe without a trainer: the model is scored; what follows from its answers is `course`'s."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from crystalmon.metrics.answers import MAJORITY, MEASURABLE, answer_distributions
from crystalmon.monitor.asked import Asked, choose_subsets
from crystalmon.monitor.base_answers import compare_vocabulary, own_vocabulary
from crystalmon.monitor.base_model import ScoringJob, take_base
from crystalmon.monitor.course import Course
from crystalmon.monitor.route_proof import RouteProof
from crystalmon.phases import SuiteDetector
from crystalmon.phases.partial import LEAST_TASKS
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.reference import Reference
from crystalmon.scoring.compatibility import check_fit
from crystalmon.scoring.engines import check_engine, probing_ranks
from crystalmon.scoring.plan import build_plan, describe_merges
from crystalmon.scoring.precision_trial import AskedPrecision, check_precision
from crystalmon.scoring.rendering import View
from crystalmon.scoring.route import still_holds
from crystalmon.scoring.score import Scores, score
from crystalmon.scoring.trial import proof_rows
from crystalmon.scoring.trie import count_tree
from crystalmon.suites.tasks import TaskSuite, load_suite

logger = logging.getLogger(__name__)


class Monitor:
    """Probes a model with a suite and compares it with a frozen base.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, or a processor that has one.
        suite: a bundled suite's name, a path, or a `TaskSuite`.
        reference: what to compare with; see `base_model.take_base`.
        view: how prompts are sent; see `rendering.View`.
        precision: of the layers, `auto`, `model` or `float32`; see `route.choose_route`. `auto`
            takes that of a base which is already there, so that both are scored alike.
        progress: show a progress bar while scoring.
        answers_only: accept a base with other tokens for the same suite, such as another
            tokenizer's: answers are compared by choice, and what compares vocabularies is NaN.

    Attributes:
        course: the run's answers so far, and what was found in them.
        base_q, base_coverage: by task, the base's answers [P, C] that the model's are compared
            with, and their mean total probability. Those to the plain prompts, where the base
            does not answer in this view.
        progress: whether scoring shows a bar.
        subsets: by number of prompts asked of each task, which ones: by task, ascending indices.
            The largest number stands for all.
        seconds_a_probe: what scoring the whole suite last took, maybe in an earlier run of the same
            base; None if that is not known.
        has_scored: whether the latest probe has run the model: the first finds the base's answers.
        doubtful_after: None, or a step: the probes between it and the latest one may be wrong, as
            their route has just been found not to give the model's own answers.
        is_own_base: whether the base is the model as it was when this monitor was made.
        remembered: whether the cache had the answers of this base, and nothing was scored.
        without_adapters: whether `auto` was asked for: its own base is scored without adapters.

    In a run of several processes every rank makes a monitor and probes at the same steps: the
    prompts are split among them, and each has the whole record.

    Raises:
        UnsupportedModel: if the model cannot be measured; the message says why.
        TypeError: if the model is no module, or there is no tokenizer.
        ValueError: for a faulty suite, an unknown precision, or a reference that does not fit; the
            message says which.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        suite: str | Path | TaskSuite = "randomness",
        reference: str | Path | Reference = "auto",
        *,
        view: View = "raw",
        precision: AskedPrecision = "auto",
        progress: bool = False,
        answers_only: bool = False,
    ) -> None:
        self._started, self._spent = time.perf_counter(), 0.0
        check_precision(precision)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch module, got {type(model).__name__}.")
        self.model = model
        self.suite = load_suite(suite)
        self.plan = build_plan(self.suite, tokenizer, view)
        check_engine(model)
        check_fit(model, self.plan)
        if self.plan.merges:
            logger.info(describe_merges(self.plan.merges))
        self.ranks = probing_ranks(model, self.plan)
        self._batch_tokens: int | None = None
        self.progress = progress
        job = ScoringJob(model, tokenizer, self.suite, self.plan, self.ranks, precision)
        base = take_base(reference, job, self._bar, answers_only=answers_only)
        self.reference, self.route = base.reference, base.route
        self.is_own_base, self.remembered = base.is_own, base.remembered
        self.without_adapters = str(reference) == "auto"
        self.seconds_a_probe, self._start = base.seconds, base.scores
        compared = self.reference.compared
        answers = {task.name: answer_distributions(compared[task.name]) for task in self.suite}
        self.base_q = {name: q for name, (q, _) in answers.items()}
        self.base_coverage = {name: float(share.mean()) for name, (_, share) in answers.items()}
        # of a task that the base hardly answers, the few prompts that it does answer do not count
        answered = {name: share >= MEASURABLE for name, (_, share) in answers.items()}
        self._answered = {name: own & (own.mean() >= MAJORITY) for name, own in answered.items()}
        self.course = Course(self.base_q, view, self.reference.in_view, self.reference.observed)
        few = len(self.detector.taking_part) < LEAST_TASKS
        self.subsets = choose_subsets(self.base_q, self._answered, only_all=few)
        self._all = self.subsets[max(self.subsets)]
        self._spent = time.perf_counter() - self._started
        self.doubtful_after: int | None = None
        self.has_scored = False
        self._proof = RouteProof(self.base_q)

    def probe(
        self,
        step: int = 0,
        epoch: float | None = None,
        *,
        unchanged: bool = False,
        prompts: int | None = None,
    ) -> ProbeRecord:
        """Score the suite once, or a part of it.

        Args:
            step: the training step, larger than that of the last probe.
            epoch: the trainer's epoch, for the record.
            unchanged: the model is as it was when this monitor was made. If it is its own base,
                its answers are known and not scored again.
            prompts: how many prompts of each task to ask, one of `subsets`; None for all. Metrics
                are those of these prompts against the base's answers to the same ones.

        Returns:
            The record; the events that it raised are in `Monitor.events`.
        """
        if step <= self.course.last_step:
            raise ValueError(
                f"step must be larger than that of the last probe ({self.course.last_step}), got "
                f"{step}. Make a new Monitor to start over."
            )
        started = time.perf_counter()
        known, self._start = self._start if unchanged else None, None
        asked = self._all if known or prompts is None else self.subsets[prompts]
        scores = known or self._score(f"probe at step {step}", asked)
        q, coverage = self._answers(scores, asked)
        self.doubtful_after = None
        if unchanged:
            self._proof.step = step
        elif not self._holds(step, q, asked, scores.kept):
            scores = self._score(f"probe at step {step}", asked)
            q, coverage = self._answers(scores, asked)
        self.has_scored = known is None
        self._batch_tokens = scores.batch_tokens
        answered = np.concatenate([self._answered[name][rows] for name, rows in asked.items()])
        measurable = (coverage >= MEASURABLE) & answered
        per_prompt = {"coverage": coverage, "measurable": measurable * 1.0, **scores.observed}
        measured = self.course.measure(step, q, asked, per_prompt)
        seconds = time.perf_counter() - started
        self._spent += seconds
        if self.has_scored and asked is self._all:
            self.seconds_a_probe = seconds
        share = self._spent / (time.perf_counter() - self._started)
        record = self.course.record(step, epoch, seconds, share, measured, q, asked)
        self.course.conclude(record)
        return record

    def tokens(self) -> dict[int, int]:
        """By size of a probe, see `subsets`: its unique tokens, in proportion to which it costs."""
        found = {}
        for size, asked in self.subsets.items():
            found[size] = count_tree(self.plan.rows[row] for row in self._rows(asked))[0]
        return found

    def _indices(self, asked: Asked) -> np.ndarray:
        """[n] the plan's prompts."""
        starts = np.cumsum([0, *(len(task.prompts) for task in self.suite)])
        parts = [start + asked[task.name] for start, task in zip(starts, self.suite, strict=False)]
        return np.concatenate(parts)

    def _rows(self, asked: Asked) -> list[int]:
        """The plan's rows of the prompts asked."""
        return np.flatnonzero(np.isin(self.plan.row_prompt, self._indices(asked))).tolist()

    def _score(self, what: str, asked: Asked) -> Scores:
        prompts = self._indices(asked)
        rows = self._rows(asked)
        with self._bar(what, len(rows)) as bar:
            scores = score(
                self.model,
                self.plan,
                self._observe,
                route=self.route,
                ranks=self.ranks,
                max_batch_tokens=self._batch_tokens,
                progress=bar.update,
                prompts=None if asked is self._all else prompts.tolist(),
                keep=proof_rows(self.plan, self.route, rows),
            )
        self.route = scores.route
        return scores

    def _answers(self, scores: Scores, asked: Asked) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """By task, q [p, C]; and the coverage of each prompt, [n]."""
        tables = zip(self.suite, scores.log_choice, strict=True)
        answers = [answer_distributions(table[asked[task.name]]) for task, table in tables]
        q = {task.name: own for task, (own, _) in zip(self.suite, answers, strict=True)}
        return q, np.concatenate([share for _, share in answers])

    def _holds(
        self,
        step: int,
        q: Mapping[str, np.ndarray],
        asked: Asked,
        kept: Mapping[int, Tensor],
    ) -> bool:
        """Whether the route, if it is time to prove it again, still gives the answers of rows.

        If not, prompts are run as rows from now on.
        """
        if not self._proof.count_probe(q, asked):
            return True
        rows = proof_rows(self.plan, self.route, self._rows(asked))
        holds = still_holds(self.model, self.plan, self.route, rows, kept, self.ranks)
        proven = self._proof.step
        self._proof.note(step, q, asked)
        if holds:
            return True
        safe = replace(self.route, method="rows")
        if self.ranks.is_main:
            logger.warning(
                f"crystalmon: prompts run as {self.route} no longer get the model's own answers. "
                f"From step {step} on they are run as {safe}; the probes after step {proven} may "
                "be wrong."
            )
        self.route, self.doubtful_after = safe, proven
        return False

    @property
    def unanswered(self) -> list[str]:
        """The tasks that cannot be measured: the base answers them in no view that is known."""
        return [name for name, own in self._answered.items() if not own.any()]

    @property
    def detector(self) -> SuiteDetector:
        """Of the phases."""
        return self.course.detector

    @property
    def events(self) -> list[Event]:
        """Those that the latest probe raised."""
        return self.course.events

    def replay(self, record: ProbeRecord) -> list[Event]:
        """Take up a stored probe instead of scoring one; return the events that it raises."""
        self._proof.step = record.step
        return self.course.replay(record)

    @property
    def shares_tokens(self) -> bool:
        """Whether the base has the same tokens for the suite, so that vocabularies compare."""
        return self.reference.info.plan == self.plan.fingerprint

    def _observe(self, prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> Mapping[str, Tensor]:
        if not self.shares_tokens:
            return own_vocabulary(log_p, fill=math.nan)
        base = torch.from_numpy(self.reference.log_p(prompts)).to(log_p.device)
        return compare_vocabulary(log_p, base, begins)

    def _bar(self, what: str, rows: int) -> tqdm[Any]:
        """A bar that shows itself only when scoring takes more than two seconds."""
        return tqdm(
            total=rows,
            desc=f"crystalmon {what}",
            unit="row",
            leave=False,
            delay=2.0,
            disable=not self.progress,
        )
