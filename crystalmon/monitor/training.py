"""One training, watched: what a callback does between its first step and its last.

What happens at a probe is `probe.Monitor`'s; what rank 0 writes is `recorder.Recorder`'s.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from crystalmon.monitor.actions import ActionQueue, check_possible
from crystalmon.monitor.beginnings import (
    Beginning,
    beginning_of,
    innermost,
    keep_beginning,
    trained_further,
)
from crystalmon.monitor.best_checkpoint import (
    check_choice,
    chooses_by,
    chooses_now,
    evaluation_metrics,
)
from crystalmon.monitor.budget import Budget
from crystalmon.monitor.console import Console, costly
from crystalmon.monitor.failures import Failures
from crystalmon.monitor.lineage import Origin
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.recorder import Recorder
from crystalmon.monitor.run_folder import claim_folder
from crystalmon.monitor.run_info import run_info, trainer_name
from crystalmon.monitor.schedule import Forecast, Schedule, probe_steps
from crystalmon.monitor.settings import Settings
from crystalmon.monitor.training_experiments import ExperimentsInTraining
from crystalmon.phases.limits import Limits
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.lock import RunLock
from crystalmon.runs.names import OVERHEAD_KEY
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.reference import Reference
from crystalmon.runs.trainer_log import LogRow
from crystalmon.scoring.engines import runnable
from crystalmon.scoring.models import model_name
from crystalmon.scoring.precision_trial import check_precision
from crystalmon.scoring.ranks import CONFIGURATION_ERRORS, Ranks, current_ranks
from crystalmon.scoring.rendering import View

logger = logging.getLogger(__name__)


class Training:
    """Watches one training: probes it when it is time, and acts on what is found.

    Every method is called on every rank. What concerns the run folder happens on rank 0; its
    result, or its error, reaches all.

    Args:
        settings: what the user has asked for.
        args, state: the trainer's; the state tells this training from others.
        earlier: what the same trainer has begun before, if anything: a second call of `train`, or
            another batch size after the first did not fit.

    Attributes:
        monitor: once the base is known; None if it could not be scored.
        failures: of probes, writes and actions.
        last_step: the latest probe's, -1 before the first.
    """

    def __init__(
        self,
        settings: Settings,
        args: TrainingArguments,
        state: TrainerState,
        earlier: Training | None = None,
    ) -> None:
        self._settings = settings
        self._args, self._state = args, weakref.ref(state)
        self.monitor: Monitor | None = None
        self.failures = Failures(settings.strict)
        self.last_step = -1
        share = settings.max_overhead
        self._meter = Budget(math.inf if share is None else share)
        budget = None if share is None else self._meter
        self._schedule = Schedule(probe_steps(state.max_steps, settings.every), budget)
        self._forecast = Forecast(self._schedule.steps, self._meter)
        self._last: ProbeRecord | None = None
        self._actions = ActionQueue(settings.actions, self.failures)
        self._console = Console(verbose=settings.verbose)
        self._recorder: Recorder | None = None  # on rank 0 alone
        self._experiments: ExperimentsInTraining | None = None
        self._held: RunLock | None = None  # on rank 0 alone
        self._folder = Path()  # known when it begins
        self._closed = False
        self._model: weakref.ref[nn.Module] | None = None
        self._beginning: Beginning | None = None
        self._first_base = earlier and earlier.own_base

    @property
    def view(self) -> View:
        """In which the model is probed."""
        return self._settings.view

    @property
    def state(self) -> TrainerState | None:
        """The trainer's state; None once that is gone, and the training with it."""
        return self._state()

    @property
    def own_base(self) -> Reference | None:
        """The base that this trainer's first training began with, if it was the model itself."""
        if self.monitor is not None and self.monitor.is_own_base:
            return self.monitor.reference
        return self._first_base

    def begin(self, state: TrainerState, model: Any, tokens: Any) -> None:
        """Score the base, open the run folder and the trackers, probe step 0.

        Raises:
            Exception: for mistakes of configuration, before any training is spent; the caller
                closes this then.
        """
        check_possible(self._settings.actions, self._args)
        with self._meter.spending():
            self._prepare(state, model, tokens)
        with self._meter.spending(apart=True):
            self._begin_experiments(tokens, state.global_step)
        first = self.last_step < 0
        wanted = None if first else self._wanted(state.global_step)
        if first or wanted:
            # the trainer clears its control before the first step: actions wait until after it
            self._probe(state, wanted, unchanged=True)
        self._schedule.begin(state.global_step)
        self._measure_experiments(state, False, *CONFIGURATION_ERRORS)
        self._model = weakref.ref(innermost(model))
        if self._beginning is not None:
            keep_beginning(model, self._beginning)

    def step(self, state: TrainerState, control: TrainerControl) -> None:
        """Probe if this step is on the schedule, or the last."""
        self._act(state, control)
        whole = max(self._schedule.tokens.values(), default=0)
        forecast = self._forecast.at(state.global_step, whole)
        if forecast and self._recorder is not None and self._settings.max_overhead is None:
            self._console.say(costly(*forecast))
        last = state.global_step >= state.max_steps or control.should_training_stop
        self.probe_if_wanted(state, control, last)

    def probe_if_wanted(self, state: TrainerState, control: TrainerControl, last: bool) -> None:
        """Probe if it is time; `last` says that training ends here."""
        prompts = self._wanted(state.global_step, last)
        chosen = chooses_now(self._args, self._folder.name, state, control)
        if chosen and self.last_step < state.global_step:
            prompts = max(self._schedule.tokens, default=0)
        if prompts:
            self._probe(state, prompts)
            self._act(state, control)
        self._measure_experiments(state, last)
        if last and self._recorder is not None:  # the trainer may close its reporters next
            with self._meter.spending():
                self._recorder.catch_up()

    def evaluated(self, state: TrainerState, metrics: dict[str, float]) -> None:
        """Add the suite's metrics to an evaluation's, where these choose the best checkpoint."""
        if not chooses_by(self._args, self._folder.name) or self._closed:
            return
        if self.last_step < state.global_step:
            self._probe(state)
        now = self._last is not None and self._last.step == state.global_step
        metrics |= evaluation_metrics(self._last if now else None, self._folder.name)

    def log(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        """Keep what the trainer logs, until the run folder is closed."""
        if self._recorder is not None and not self._closed:
            with self._meter.spending():
                self._recorder.write_log(LogRow.of(state.global_step, state.epoch, logs))

    def is_of(self, args: TrainingArguments, model: Any) -> bool:
        """Whether this is a training of that trainer: the same arguments and the same model."""
        known = self._model and self._model()
        return self._args is args and known is not None and known is innermost(model)

    def close(self) -> None:
        """Close the run folder and the trackers, and let others write to the folder."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._recorder is not None:
                with self._meter.spending():
                    self._recorder.close()
                self._recorder.note(OVERHEAD_KEY, self._meter.spent_share)
        finally:
            if self._held is not None:
                self._held.release()

    def conclude(self) -> None:
        """Say how it went."""
        if self.failures.count:
            logger.warning("crystalmon: %d failures; see the log above.", self.failures.count)
        recorder, state, limit = self._recorder, self.state, self._settings.max_overhead
        if recorder is None or recorder.last is None:
            return
        end = Snapshot(recorder.last, recorder.texts)
        self._console.conclude(end, recorder.folder, recorder.advice(recorder.last))
        self._console.spent(recorder.probes, self._meter.spent_share, limit)
        if state is not None and state.global_step > self.last_step and limit is not None:
            self._console.unobserved(self.last_step, state.global_step, limit)

    @property
    def _kind(self) -> tuple[str, View]:
        """What tells the bases of one model apart."""
        return self._settings.suite.hash, self._settings.view

    # --- how ---------------------------------------------------------------------------------

    def _prepare(self, state: TrainerState, model: Any, tokens: Any) -> None:
        """All that comes before the first probe, but for experiments."""
        ranks, settings = current_ranks(), self._settings
        output, inner, step = Path(str(self._args.output_dir)), runnable(model), state.global_step
        self._folder = claim_folder(output, state, settings.suite.name, settings.view_name)
        self._console = Console(self._folder.name, settings.verbose)
        check_choice(self._args, self._folder.name)
        ranks.on_main(self._lock)
        origin = Origin(self._folder, step, model_name(inner), settings.suite, settings.view)
        history = ranks.on_main(origin.history)
        beginning = beginning_of(model, state)
        progress = state.is_world_process_zero and settings.verbose and not self._args.disable_tqdm
        monitor = self._make_monitor(inner, tokens, origin, beginning, progress)
        self.monitor = monitor
        if monitor is None:
            return
        self._take_over(monitor, origin, history, ranks)
        ranks.on_main(lambda: self._open(monitor, history, state))
        if monitor.is_own_base:
            beginning.bases.setdefault(self._kind, monitor.reference)
        self._beginning = beginning

    def _lock(self) -> None:
        """Rank 0: keep other processes from the run folder."""
        self._held = RunLock(self._folder)

    def _make_monitor(
        self, model: Any, tokens: Any, origin: Origin, beginning: Beginning, progress: bool
    ) -> Monitor | None:
        """The monitor, with its base scored; None if memory does not hold that on some rank."""
        ranks, settings = current_ranks(), self._settings
        trained = beginning.training() is not self.state
        known = beginning.bases.get(self._kind) if trained else None
        reference = origin.base(settings.reference, self._first_base, known, ranks)
        asked, trial = ranks.on_main(lambda: origin.precision(settings.precision))
        suite, view, precision = settings.suite, settings.view, check_precision(asked)
        make = partial(Monitor, model, tokens, suite, reference, view=view, precision=precision)
        monitor = self.failures.if_memory_holds(partial(make, progress=progress))
        if monitor is None:
            return None
        monitor.progress = False  # the trainer has a bar of its own
        if trial is not None:
            monitor.route = replace(monitor.route, trial=trial)
        if trained and monitor.is_own_base:
            monitor.reference = trained_further(monitor.reference)
        return monitor

    def _take_over(
        self, monitor: Monitor, origin: Origin, history: list[ProbeRecord], ranks: Ranks
    ) -> None:
        """Go on from what is known: the probes of a resumed run, or of what the model came from."""
        monitor.course.limits = Limits(self._settings.limits)
        monitor.course.inherit(ranks.on_main(lambda: origin.inherited(monitor.base_q)))
        self._schedule.tokens = tokens = monitor.tokens()
        for record in history:
            monitor.replay(record)
            self._schedule.probed(record)
        before, limits = ranks.on_main(origin.limits), self._settings.limits
        monitor.course.limits.forget(key for key in limits if before.get(key) != limits[key])
        self.last_step = history[-1].step if history else -1
        if monitor.seconds_a_probe is not None:
            self._meter.expect(max(tokens.values()), monitor.seconds_a_probe)

    def _open(self, monitor: Monitor, history: list[ProbeRecord], state: TrainerState) -> None:
        """Rank 0: open the run folder and the trackers, and say what will be monitored."""
        folder, args, settings = self._folder, self._args, self._settings
        info = run_info(monitor, settings.to_info(), trainer_name(args), state.max_steps, args)
        lock = cast(RunLock, self._held)  # rank 0 has taken it
        looked = settings.reference == "auto" and not monitor.is_own_base
        found = monitor.reference.folder if looked else None  # before the recorder copies it
        self._recorder = Recorder(
            folder,
            monitor,
            info,
            state.global_step,
            history,
            args,
            self.failures,
            lock,
            self._console,
            settings.logged,
        )
        planned = len(self._schedule.steps)
        self._console.introduce(monitor, folder, planned, settings.max_overhead, found)
        self._console.warn_of(settings.actions, args, folder)

    def _begin_experiments(self, tokens: Any, step: int) -> None:
        if self.monitor is None:
            return
        found = ExperimentsInTraining(
            self._settings.experiments,
            self.monitor,
            tokens,
            self._folder,
            self._meter,
            self.failures,
            self._recorder,
        )
        with self.failures.caught(
            "the experiments could not begin, and are left out of this run", *CONFIGURATION_ERRORS
        ):
            found.begin(self.monitor, step)
            self._experiments = found

    def _wanted(self, step: int, last: bool = False) -> int:
        """How many prompts of each task to ask now, 0 for none: by the clock of rank 0."""
        if self.monitor is None or step <= self.last_step:
            return 0
        return self._schedule.wants(step, last, current_ranks().broadcast)

    def _probe(
        self, state: TrainerState, prompts: int | None = None, unchanged: bool = False
    ) -> None:
        """Probe this step, on every rank; a failure is logged and counted, or raised if strict.

        Args:
            state: the trainer's.
            prompts, unchanged: see `Monitor.probe`.
        """
        monitor, before = self.monitor, self._meter.spent
        if monitor is None:
            return
        with self._meter.spending():
            self.last_step = step = state.global_step
            self._schedule.taken()
            record = None
            with self.failures.caught(f"probe at step {step} failed; training goes on"):
                record = monitor.probe(step, state.epoch, unchanged=unchanged, prompts=prompts)
            if monitor.ranks.all(record is not None) and record is not None:
                self._schedule.probed(record)
                self._last = record = replace(record, share=self._meter.spent_share)
                if self._recorder is not None:
                    self._recorder.write(record, monitor.events, monitor.doubtful_after)
                self._actions.add(monitor.events)
        if monitor.has_scored:  # storing, trackers and a failure count
            tokens = self._schedule.tokens
            self._meter.expect(tokens[prompts or max(tokens)], self._meter.spent - before)

    def _measure_experiments(
        self, state: TrainerState, last: bool = False, *passed: type[Exception]
    ) -> None:
        if self._experiments is not None:
            self._experiments.measure(state.global_step, last, *passed)

    def _act(self, state: TrainerState, control: TrainerControl) -> None:
        """Do what the user has asked for on the latest events."""
        say = (lambda *_: None) if self._recorder is None else self._recorder.act
        self._actions.run(state, control, say)
