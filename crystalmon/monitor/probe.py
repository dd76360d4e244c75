"""One probe without a trainer: score → metrics → phases → record."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from crystalmon.metrics.answers import (
    DISSIMILARITY_WINDOWS,
    TaskMeasurement,
    answer_distributions,
    dissimilarities,
    measure_task,
)
from crystalmon.metrics.bootstrap import REPLICATES, bootstrap_interval, bootstrap_weights
from crystalmon.metrics.catalogue import BY_KEY
from crystalmon.metrics.vocabulary import OWN_OBSERVABLES
from crystalmon.monitor.base_model import compared, find_base, own_base
from crystalmon.phases import PhaseState, SuiteDetector
from crystalmon.phases.stored import observe
from crystalmon.runs.records import PHASES, Event, ProbeRecord, TaskRecord
from crystalmon.runs.reference import Reference
from crystalmon.scoring.compatibility import check_fit, probing_ranks
from crystalmon.scoring.models import adapter_layers
from crystalmon.scoring.plan import View, build_plan, describe_merges
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import Scores, score
from crystalmon.suites.tasks import TaskSuite, load_suite

logger = logging.getLogger(__name__)

PROVEN_WITHIN = 0.1
"""Mean total variation of a model's answers, since its route was last proven, from which the route
is proven again."""


class Monitor:
    """Probes a model with a suite and compares it with a frozen base.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, or a processor that has one.
        suite: a bundled suite's name, a path, or a `TaskSuite`.
        reference: what to compare with; see `base_model.find_base`.
        view: `raw` or `chat`.
        progress: show a progress bar while scoring.
        answers_only: accept a base with other tokens for the same suite, such as another
            tokenizer's: answers are compared by choice, and what compares vocabularies is NaN.

    Attributes:
        base_q, base_coverage: by task, the base's answers [P, C] and their mean total probability.
        seconds_a_probe: what scoring the suite last took, maybe in an earlier run of the same base;
            None if that is not known.
        doubtful_after: None, or a step: the probes between it and the latest one may be wrong, as
            their route has just been found not to give the model's own answers.
        is_own_base: whether the base is the model as it was when this monitor was made.
        remembered: whether the cache had the answers of this base, and nothing was scored.
        without_adapters: whether `auto` was asked for: its own base is scored without adapters.

    In a run of several processes every rank makes a monitor and probes at the same steps: the
    prompts are split among them, and each has the whole record.

    Raises:
        TypeError: if the model has no language-modelling head.
        ValueError: for a faulty suite or a reference that does not fit; the message says which.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        suite: str | Path | TaskSuite = "randomness",
        reference: str | Path | Reference = "auto",
        *,
        view: View = "raw",
        progress: bool = False,
        answers_only: bool = False,
    ) -> None:
        self._started, self._spent = time.perf_counter(), 0.0
        self.model = model
        self.suite = load_suite(suite)
        self.plan = build_plan(self.suite, tokenizer, view)
        check_fit(model, self.plan)
        if self.plan.merges:
            logger.info(describe_merges(self.plan.merges))
        self.ranks = probing_ranks(model)
        self._batch_tokens: int | None = None
        self._progress = progress
        self.seconds_a_probe: float | None = None
        self._start: Scores | None = None
        with self._bar("reference") as bar:
            found = find_base(
                reference,
                model,
                tokenizer,
                self.suite,
                self.plan,
                ranks=self.ranks,
                progress=bar.update,
                answers_only=answers_only,
            )
            bare = str(reference) == "auto"
            self.is_own_base, self.without_adapters = found is None, bare
            if found is None:
                self._take_own_base(tokenizer, bare, bar.update)
            else:
                self.reference, self.remembered = found, False
                self.route = choose_route(model, self.plan, self.ranks)
        answers = {
            task.name: answer_distributions(self.reference.log_choice[task.name])
            for task in self.suite
        }
        self.base_q = {name: q for name, (q, _) in answers.items()}
        self.base_coverage = {name: float(share.mean()) for name, (_, share) in answers.items()}
        self.inherited: dict[str, PhaseState] = {}
        self.detector = SuiteDetector(self.base_q)
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=2 * max(DISSIMILARITY_WINDOWS))
        self._spent = time.perf_counter() - self._started
        self.events: list[Event] = []
        self._last_step = -1
        self.doubtful_after: int | None = None
        self._probes, self._next_proof, self._proven_at = 0, 1, -1
        self._proven_q: Mapping[str, np.ndarray] = self.base_q

    def probe(
        self, step: int = 0, epoch: float | None = None, *, unchanged: bool = False
    ) -> ProbeRecord:
        """Score the whole suite once.

        Args:
            step: the training step, larger than that of the last probe.
            epoch: the trainer's epoch, for the record.
            unchanged: the model is as it was when this monitor was made. If it is its own base,
                its answers are known and not scored again.

        Returns:
            The record; the events that it raised are in `Monitor.events`.
        """
        if step <= self._last_step:
            raise ValueError(
                f"step must be larger than that of the last probe ({self._last_step}), got {step}. "
                "Make a new Monitor to start over."
            )
        started = time.perf_counter()
        known, self._start = self._start if unchanged else None, None
        scores = known or self._score(f"probe at step {step}")
        q, coverage = self._answers(scores)
        self.doubtful_after = None
        if unchanged:
            self._proven_at = step
        elif not self._holds(step, q):
            scores = self._score(f"probe at step {step}")
            q, coverage = self._answers(scores)
        self._batch_tokens = scores.batch_tokens
        measured = self._measure(q, {"coverage": coverage, **scores.observed})
        self._last_step = step
        self._history.append(q)
        self.events = self.detector.update(
            step, q, {name: task.metrics["coverage"] for name, task in measured.items()}
        )
        seconds = time.perf_counter() - started
        self._spent += seconds
        if known is None:
            self.seconds_a_probe = seconds
        return self._record(step, epoch, seconds, q, measured)

    def _score(self, what: str) -> Scores:
        with self._bar(what) as bar:
            return score(
                self.model,
                self.plan,
                self._observe,
                route=self.route,
                ranks=self.ranks,
                max_batch_tokens=self._batch_tokens,
                progress=bar.update,
            )

    def _answers(self, scores: Scores) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """By task, q [P, C]; and the coverage of each prompt, [N]."""
        answers = [answer_distributions(table) for table in scores.log_choice]
        q = {task.name: own for task, (own, _) in zip(self.suite, answers, strict=True)}
        return q, np.concatenate([share for _, share in answers])

    def _holds(self, step: int, q: Mapping[str, np.ndarray]) -> bool:
        """Whether the route, if it is time to prove it again, still gives the model's own answers.

        What a model does with a mask may show only once it is trained. So the route is proven at
        the 1st, 2nd, 4th, 8th … probe, and when the answers have moved. If it fails, a safer one
        is taken from now on.
        """
        self._probes += 1
        moves = [np.abs(own - self._proven_q[name]).sum(axis=1) / 2 for name, own in q.items()]
        moved = np.nan_to_num(np.concatenate(moves)).mean()
        if self._probes < self._next_proof and moved < PROVEN_WITHIN:
            return True
        self._next_proof = 2 * self._probes
        route = choose_route(self.model, self.plan, self.ranks, best=self.route)
        self._proven_q, proven, self._proven_at = dict(q), self._proven_at, step
        if route == self.route:
            return True
        if self.ranks.is_main:
            logger.warning(
                f"crystalmon: prompts run as {self.route} no longer get the model's own answers. "
                f"From step {step} on they are run as {route}; the probes after step {proven} may "
                "be wrong."
            )
        self.route, self.doubtful_after = route, proven
        return False

    def _take_own_base(self, tokenizer: Any, bare: bool, progress: Callable[[int], Any]) -> None:
        """Take this model as its own base; without adapters if `bare`.

        A first probe would find the same answers, unless the model carries adapters.
        """
        own = own_base(
            self.model,
            tokenizer,
            self.suite,
            self.plan,
            bare=bare,
            ranks=self.ranks,
            progress=progress,
        )
        self.reference, self.route, self.remembered = own.reference, own.route, own.remembered
        self._start = None if bare and adapter_layers(self.model) else own.scores
        self.seconds_a_probe = own.seconds

    def inherit(self, states: Mapping[str, PhaseState]) -> None:
        """Before the first probe, take over the phases of the run that the model came from."""
        self.inherited = dict(states)
        self.detector = SuiteDetector(self.base_q, states)

    def replay(self, record: ProbeRecord) -> list[Event]:
        """Take up a stored probe instead of scoring one: how a resumed run catches up."""
        self._last_step = self._proven_at = record.step
        self._history.append({name: task.q for name, task in record.tasks.items()})
        return observe(self.detector, record)

    def remeasure(self, record: ProbeRecord) -> ProbeRecord:
        """Take up a stored probe after an earlier step was probed anew.

        The metrics of its answers are measured again, since the seed and the probes before it may
        have changed; those of the vocabulary are kept.

        Returns:
            The record as it would have been; the events that it raised are in `Monitor.events`.
        """
        q = {name: task.q for name, task in record.tasks.items()}
        measured = self._measure(q, {})
        self.events = self.replay(record)
        made = self._record(record.step, record.epoch, record.seconds, q, measured)
        tasks = {
            name: replace(
                task,
                metrics={**record.tasks[name].metrics, **task.metrics},
                ci={**record.tasks[name].ci, **task.ci},
            )
            for name, task in made.tasks.items()
        }
        metrics, ci = {**record.metrics, **made.metrics}, {**record.ci, **made.ci}
        return replace(record, phase=made.phase, metrics=metrics, ci=ci, tasks=tasks)

    @property
    def shares_tokens(self) -> bool:
        """Whether the base has the same tokens for the suite, so that vocabularies compare."""
        return self.reference.info.plan == self.plan.fingerprint

    def _observe(self, prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> Mapping[str, Tensor]:
        if not self.shares_tokens:
            found = compared(log_p, log_p, begins)
            return {k: v if k in OWN_OBSERVABLES else v * torch.nan for k, v in found.items()}
        base = torch.from_numpy(self.reference.log_p(prompts)).to(log_p.device)
        return compared(log_p, base, begins)

    def _measure(
        self, q: Mapping[str, np.ndarray], per_prompt: Mapping[str, np.ndarray]
    ) -> dict[str, TaskMeasurement]:
        """By task; `per_prompt` holds what is averaged over prompts, [N] values by key."""
        # the same resamples at every probe, so that intervals move only when the model does
        rng = np.random.default_rng(0)
        measured: dict[str, TaskMeasurement] = {}
        start = 0
        for task in self.suite:
            stop = start + len(task.prompts)
            own = {key: values[start:stop] for key, values in per_prompt.items()}
            past = np.stack([*(probe[task.name] for probe in self._history), q[task.name]])
            weights = bootstrap_weights(len(task.prompts), REPLICATES, rng)
            measured[task.name] = measure_task(
                q[task.name],
                self.base_q[task.name],
                {**own, **dissimilarities(past)},
                weights,
                self.detector.tasks[task.name].seed,
            )
            start = stop
        return measured

    def _record(
        self,
        step: int,
        epoch: float | None,
        seconds: float,
        q: Mapping[str, np.ndarray],
        measured: Mapping[str, TaskMeasurement],
    ) -> ProbeRecord:
        tasks = {
            name: TaskRecord(
                q=q[name],
                metrics=task.metrics,
                ci={
                    key: bootstrap_interval(task.metrics[key], value)
                    for key, value in task.replicates.items()
                },
                phase=self.detector.tasks[name].phase,
                seed=self.detector.tasks[name].seed,
                view=self.plan.view,
            )
            for name, task in measured.items()
        }
        metrics, ci = self._suite_level(measured)
        return ProbeRecord(
            step=step,
            epoch=epoch,
            time=time.time(),
            seconds=seconds,
            share=self._spent / (time.perf_counter() - self._started),
            phase=self.detector.phase,
            metrics=metrics,
            ci=ci,
            tasks=tasks,
        )

    def _suite_level(
        self, measured: Mapping[str, TaskMeasurement]
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """Means over tasks; what concerns nucleation, over the tasks that take part in it."""
        metrics: dict[str, float] = {}
        ci: dict[str, tuple[float, float]] = {}
        taking_part = self.detector.taking_part
        for key in next(iter(measured.values())).replicates:
            names = taking_part if BY_KEY[key].nucleation else list(measured)
            if names:
                metrics[key] = float(np.mean([measured[name].metrics[key] for name in names]))
                replicates = np.mean([measured[name].replicates[key] for name in names], axis=0)
                ci[key] = bootstrap_interval(metrics[key], replicates)
        phases = [task.phase for task in self.detector.tasks.values()]
        for phase in PHASES:
            metrics[f"tasks_{phase}"] = float(phases.count(phase))
        return metrics, ci

    def _bar(self, what: str) -> tqdm[Any]:
        """A bar that shows itself only when scoring takes more than two seconds."""
        return tqdm(
            total=len(self.plan.rows),
            desc=f"crystalmon {what}",
            unit="row",
            leave=False,
            delay=2.0,
            disable=not self._progress,
        )
