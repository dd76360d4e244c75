"""CrystalCallback: when to probe during a training.

What happens at a probe is `probe.Monitor`'s; what rank 0 writes is `recorder.Recorder`'s.
"""

from __future__ import annotations

import logging
import math
import weakref
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crystalmon.monitor import console
from crystalmon.monitor.actions import Actions, action_name, actions_for, check_actions, take
from crystalmon.monitor.budget import Budget, check_share
from crystalmon.monitor.lineage import Origin
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.recorder import Failures, Recorder
from crystalmon.monitor.run_folder import claim_folder
from crystalmon.monitor.run_info import callback_settings, run_info, trainer_name
from crystalmon.monitor.schedule import Forecast, Schedule, check_every, probe_steps
from crystalmon.monitor.training_experiments import (
    Experiments,
    ExperimentsInTraining,
    check_experiments,
)
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.reference import Reference
from crystalmon.scoring.models import model_name
from crystalmon.scoring.plan import VIEWS, View
from crystalmon.scoring.ranks import CONFIGURATION_ERRORS, current_ranks
from crystalmon.suites.tasks import TaskSuite, load_suite

logger = logging.getLogger(__name__)


class CrystalCallback(TrainerCallback):
    """Probes the model at intervals while a transformers or TRL trainer trains it.

    Each probe goes to `<output_dir>/crystalmon` and to the trackers in the trainer's `report_to`,
    as `crystalmon/<metric>` and `crystalmon_tasks/<task>/<metric>` on the trainer's step axis.

    Training is not changed: modules' modes, random states and the tokenizer are restored after
    each probe. A probe that fails is logged and counted, and training goes on. Mistakes of
    configuration are raised before the first step. With several processes, each scores its share of
    the prompts and rank 0 writes. A second callback on the same trainer writes to
    `<output_dir>/crystalmon-<suite>` and uses that name in the trackers.

    Args:
        suite: the name of a bundled suite, the path of a suite file, or a `TaskSuite`.
        every: probe every so many steps. None: about 100 probes a run, dense at first. The first
            and the last step are always probed unless `max_overhead` forbids it.
        reference: the base to compare with. `auto`: the one stored with the model's folder, else
            this model at step 0. `initial`: this model at step 0. Or a run folder, a reference
            folder, or a model id or path.
        view: `raw` sends the prompts as they are, `chat` through the chat template.
        strict: raise when a probe fails.
        actions: what to do on an event, such as `{"nucleation_onset": "save",
            "support_leak": ["alert", "stop"]}`. A key is a kind of event (of the suite if the
            suite raises that kind, else of any task) or `<task>/<kind>`. An action is `save`,
            `stop`, `evaluate`, `alert` (W&B and Trackio), or a function of (event, state, control),
            which is called on every rank.
        max_overhead: the largest share of the run's wall time to spend on monitoring, such as
            0.01. Probes after the first wait until they fit; while the model moves, saved-up time
            is spent on extra probes. All monitoring counts, but for pictures and the report made
            after the last step. Which steps are probed then depends on the clock.
        experiments: further measurements, by name or as an experiment, each with its interval in
            steps: `{"context": 100}`. The first measurement of each ignores `max_overhead`.

    Raises:
        ValueError: for an `every` below 1, a `max_overhead` outside (0, 1], an unknown view, action
            or experiment.
        SuiteError: for a faulty suite.
    """

    def __init__(
        self,
        suite: str | Path | TaskSuite = "randomness",
        *,
        every: int | None = None,
        reference: str | Path | Reference = "auto",
        view: View = "raw",
        strict: bool = False,
        actions: Actions | None = None,
        max_overhead: float | None = None,
        experiments: Experiments | None = None,
    ) -> None:
        if not isinstance(reference, str | Path | Reference):
            raise TypeError(
                f"reference must be a name, a path or a Reference, got {type(reference).__name__}."
            )
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
        self.suite = load_suite(suite)
        self.every = check_every(every)
        self.reference = reference
        self.view: View = view
        self.strict = strict
        self.actions = check_actions(actions, (task.name for task in self.suite))
        self.max_overhead = check_share(max_overhead)
        self.experiments = check_experiments(experiments, suite=self.suite, view=view)
        self._training: weakref.ref[TrainerState] | None = None
        self._start_over(0)

    @property
    def failures(self) -> int:
        """How many probes, writes and actions have failed in this training."""
        return self._failures.count

    def _start_over(self, max_steps: int) -> None:
        """Begin a training, forgetting an earlier one that had this callback too."""
        self.monitor: Monitor | None = None
        self._failures = Failures(self.strict)
        self._meter = Budget(math.inf if self.max_overhead is None else self.max_overhead)
        budget = None if self.max_overhead is None else self._meter
        self._schedule = Schedule(probe_steps(max_steps, self.every), budget)
        self._forecast = Forecast(self._schedule.steps, self._meter)
        self._last_step = -1
        self._stopped_at: int | None = None
        self._untaken: list[Event] = []
        self._recorder: Recorder | None = None  # on rank 0 alone
        self._experiments: ExperimentsInTraining | None = None

    # --- the trainer's events ----------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Score the base, open the run folder and the trackers, probe step 0.

        Raises:
            Exception: for mistakes of configuration, before any training is spent.
        """
        if self._training is not None and self._training() is state:
            logger.warning("crystalmon: one callback is attached twice; it counts once.")
            return
        self._training = weakref.ref(state)
        self._start_over(state.max_steps)
        with self._meter.spending():
            self._begin(args, state, _unwrapped(model), processing_class)
        if self._last_step < 0 or self._wanted(state.global_step):
            # the trainer clears its control before the first step: actions wait until after it
            self._probe(state, unchanged=True)
        self._measure_experiments(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe if this step is on the schedule, or the last."""
        if self._stopped_at is not None and state.global_step > self._stopped_at:
            logger.warning("crystalmon: this trainer does not stop when a callback asks it to.")
            self._stopped_at = None
        self._act(state, control)
        forecast = self._forecast.at(state.global_step)
        if forecast and self._recorder is not None and self.max_overhead is None:
            console.say(console.costly(*forecast))
        last = state.global_step >= state.max_steps or control.should_training_stop
        self._probe_if_wanted(state, control, last)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where training stopped early: later the best checkpoint may be loaded over it."""
        if control.should_training_stop:
            self._probe_if_wanted(state, control, last=True)

    # an evaluation after an epoch's end may stop training too; saving is what comes after it
    on_save = on_epoch_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe the end if no other event did; close the run folder and the trackers."""
        try:
            if not args.load_best_model_at_end:
                self._probe_if_wanted(state, control, last=True)
        finally:
            if self._recorder is not None:
                self._recorder.close()
        if self.failures:
            logger.warning("crystalmon: %d failures; see the log above.", self.failures)
        if self._recorder is not None:
            refused = self.max_overhead if self._schedule.refused else None
            share = self._meter.spent / self._meter.elapsed
            console.conclude(self._recorder.last, self._recorder.folder, share, refused)

    # --- what they do ------------------------------------------------------------------------

    def _begin(
        self, args: TrainingArguments, state: TrainerState, model: Any, processing_class: Any
    ) -> None:
        """All that comes before the first probe, on every rank.

        What concerns the run folder happens on rank 0; its result, or its error, on all.
        """
        ranks, step = current_ranks(), state.global_step
        folder = claim_folder(Path(str(args.output_dir)), state, self.suite.name)
        origin = Origin(folder, step, model_name(model), self.suite, self.view)
        history = ranks.on_main(origin.history)
        reference = self.reference
        if not isinstance(reference, Reference):
            reference = ranks.on_main(lambda: origin.reference(str(self.reference)))
        progress = state.is_world_process_zero and not args.disable_tqdm
        # what is counted here is out of memory, or a broken kernel
        with self._failures.caught(
            "the base could not be scored, so this run is not monitored", *CONFIGURATION_ERRORS
        ):
            self.monitor = Monitor(
                model, processing_class, self.suite, reference, view=self.view, progress=progress
            )
        monitor = self.monitor
        if monitor is None:
            return
        base_id = monitor.reference.info.id
        monitor.inherit(ranks.on_main(lambda: origin.inherited(base_id, monitor.base_q)))
        for record in history:
            monitor.replay(record)
        known = monitor.seconds_a_probe or max((r.seconds for r in history), default=None)
        if known is not None:
            self._meter.expect(known)
        self._last_step = history[-1].step if history else -1
        ranks.on_main(lambda: self._open(monitor, folder, history, args, state))
        found = ExperimentsInTraining(
            self.experiments,
            monitor,
            processing_class,
            folder,
            self._meter,
            self._failures,
            self._recorder,
        )
        with self._failures.caught(
            "the experiments could not begin, and are left out of this run", *CONFIGURATION_ERRORS
        ):
            found.begin(monitor, step)
            self._experiments = found

    def _open(
        self,
        monitor: Monitor,
        folder: Path,
        history: list[ProbeRecord],
        args: TrainingArguments,
        state: TrainerState,
    ) -> None:
        """Rank 0: open the run folder and the trackers, and say what will be monitored."""
        settings, trainer = callback_settings(self), trainer_name(args)
        info = run_info(monitor, settings, trainer, state.max_steps, args)
        self._recorder = Recorder(
            folder, monitor, info, state.global_step, history, args, self._failures
        )
        console.introduce(monitor, folder, len(self._schedule.steps), self.max_overhead)

    def _wanted(self, step: int, last: bool = False) -> bool:
        """Whether to probe now: by the schedule on every rank, by the clock of rank 0."""
        if self.monitor is None or step <= self._last_step:
            return False
        return self._schedule.wants(step, last, current_ranks().broadcast)

    def _probe_if_wanted(self, state: TrainerState, control: TrainerControl, last: bool) -> None:
        if self._wanted(state.global_step, last):
            self._probe(state)
            self._act(state, control)
        if last and self._recorder is not None:
            self._recorder.catch_up()
        self._measure_experiments(state, last)

    def _probe(self, state: TrainerState, unchanged: bool = False) -> None:
        """Probe this step, on every rank; a failure is logged and counted, or raised if strict."""
        monitor, before = self.monitor, self._meter.spent
        if monitor is None:
            return
        with self._meter.spending():
            self._last_step = step = state.global_step
            self._schedule.taken()
            record = None
            with self._failures.caught(f"probe at step {step} failed; training goes on"):
                record = monitor.probe(step, state.epoch, unchanged=unchanged)
            if monitor.ranks.all(record is not None) and record is not None:
                self._schedule.probed(record, monitor.events)
                if self._recorder is not None:
                    self._recorder.write(record, monitor.events, monitor.doubtful_after)
                self._untaken += monitor.events
        # storing, trackers and a failure count; the first may come free with the base's answers
        took = self._meter.spent - before
        self._meter.expect(max(took, monitor.seconds_a_probe or 0.0))

    def _measure_experiments(self, state: TrainerState, last: bool = False) -> None:
        if self._experiments is not None:
            self._experiments.measure(state.global_step, last)

    def _act(self, state: TrainerState, control: TrainerControl) -> None:
        """Do what the user has asked for on the latest events, on every rank alike."""
        events, self._untaken = self._untaken, []
        for event, action in ((e, a) for e in events for a in actions_for(self.actions, e)):
            if self._recorder is not None:
                self._recorder.act(event, action)
            if action == "stop":
                self._stopped_at = state.global_step
            failed = f"{action_name(action)} failed on {event.kind}; training goes on"
            with self._failures.caught(failed):
                take(action, event, state, control)


def _unwrapped(model: Any) -> Any:
    """The language model itself, from within PPO's, an engine's or the compiler's wrapper."""
    for inner in ("_orig_mod", "module", "policy"):
        model = getattr(model, inner, model)
    return model
