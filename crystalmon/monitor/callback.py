"""CrystalCallback: when to probe during training, on which rank, and what happens on resume."""

from __future__ import annotations

import logging
import math
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crystalmon.monitor.actions import Actions, action_name, actions_for, check_actions, take
from crystalmon.monitor.budget import Budget
from crystalmon.monitor.console import announce, conclude, costly, say
from crystalmon.monitor.lineage import Origin
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.run_folder import claim_folder
from crystalmon.monitor.run_info import run_info, training_settings
from crystalmon.monitor.schedule import Forecast, Schedule, probe_steps
from crystalmon.monitor.training_experiments import (
    Experiments,
    ExperimentsInTraining,
    check_experiments,
    experiment_metrics,
)
from crystalmon.report.caveats import scarce
from crystalmon.report.page import write_report
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.files import RUN_FILE, explained
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.reference import INFO_FILE, Reference, load_reference
from crystalmon.runs.results import Result
from crystalmon.runs.store import RunStore
from crystalmon.scoring.models import model_name
from crystalmon.scoring.plan import VIEWS, View
from crystalmon.scoring.ranks import current_ranks
from crystalmon.suites.tasks import TaskSuite, load_suite
from crystalmon.trackers.base import CompositeTracker, sentence, tracker_metrics
from crystalmon.trackers.make import make_tracker

logger = logging.getLogger(__name__)


class CrystalCallback(TrainerCallback):
    """Probes the model at intervals while any transformers or TRL trainer trains it.

    Records go to `<output_dir>/crystalmon` and to the trackers that `report_to` names (wandb,
    tensorboard, trackio; to those of `scalar_trackers` scalars alone), as `crystalmon/<metric>` and
    `crystalmon_tasks/<task>/<metric>` on the trainer's own step axis. Training is not touched:
    modes, random states and the tokenizer are as before, and a probe that fails is logged and
    counted, not raised. Mistakes of configuration are raised when training begins.

    In a run of several processes the prompts are split among them, and rank 0 writes. A second
    callback of the same trainer writes to `<output_dir>/crystalmon-<suite>`, under that name in
    the trackers too.

    Args:
        suite: a bundled suite's name, the path of a suite file, or a `TaskSuite`.
        every: probe every so many steps; by default about 100 probes a run, dense at first.
            Step 0 and the last step are always probed, but for `max_overhead`.
        reference: the base to compare with: `auto` (the one that came with the model's folder,
            else this model at step 0), `initial` (this model at step 0), a run or reference
            folder, or a model id or path.
        view: `raw` sends the prompts as text, `chat` through the chat template.
        strict: raise when a probe fails, instead of going on.
        actions: what to do when a signal is raised, e.g. `{"nucleation_onset": "save",
            "support_leak": ["alert", "stop"]}`. By kind of event: of the suite where the suite
            raises it, else of any task; `<task>/<kind>` for one task. `save`, `stop` and
            `evaluate` set the trainer's control, `alert` goes through W&B and trackio, and a
            function is called with (event, state, control), on every rank.
        experiments: further measurements, each with its interval in steps; see
            `experiments.training`. The first of each is not refused for `max_overhead`.
        max_overhead: the largest share of the wall time to spend on monitoring, such as 0.01,
            from where training begins or is resumed to its last step. Scheduled probes, the last
            one too, then wait until they are affordable, and while the model is changing any step
            may be probed for what was saved; see `budget.Budget`. A run too short to earn the
            base's answers back gets no probe but the first. Since time decides, two such runs do
            not probe the same steps. Pictures count; those after the last step, and the report,
            do not.

    Raises:
        ValueError: if `every` is not positive, `max_overhead` not within (0, 1], or `view`, an
            action or an experiment unknown.
        SuiteError: if the suite is faulty.
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
        if every is not None and (not isinstance(every, int) or isinstance(every, bool)):
            raise TypeError(f"every must be an int or None, got {type(every).__name__}.")
        if every is not None and every < 1:
            raise ValueError(f"every must be positive, got {every}. Use None for the default.")
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
        self.suite = load_suite(suite)
        self.every = every
        self.reference = reference
        self.view: View = view
        self.strict = strict
        self.actions = check_actions(actions, (task.name for task in self.suite))
        self.max_overhead = _checked_share(max_overhead)
        self.experiments = check_experiments(experiments, suite=self.suite, view=view)
        self._training: weakref.ref[TrainerState] | None = None
        self._start_over()

    def _start_over(self) -> None:
        """Forget an earlier training, of which this one may share the callback."""
        self.monitor: Monitor | None = None
        self.failures = 0
        self._schedule = Schedule()
        self._meter = Budget(math.inf if self.max_overhead is None else self.max_overhead)
        self._forecast = Forecast(self._schedule.steps, self._meter)
        self._last_step = -1
        self._refused = False
        self._last_record: ProbeRecord | None = None
        self._stopped_at: int | None = None
        self._untaken: list[Event] = []
        self._store: RunStore | None = None
        self._tracker = CompositeTracker({})
        self._experiments: ExperimentsInTraining | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find the reference, open the run folder and the trackers, probe step 0.

        Mistakes of configuration raise here, before any training is spent.
        """
        if self._training is not None and self._training() is state:
            logger.warning("crystalmon: one callback is attached twice; it counts once.")
            return
        self._start_over()
        self._training = weakref.ref(state)
        budget = None if self.max_overhead is None else self._meter
        self._schedule = Schedule(probe_steps(state.max_steps, self.every), budget)
        self._forecast = Forecast(self._schedule.steps, self._meter)
        with self._meter.spending():
            self._begin(args, state, _unwrapped(model), processing_class)
        if self._last_step < 0 or self._wanted(state.global_step):
            # the trainer clears its control before the first step: act on this probe after it
            self._probe(state, unchanged=True)
        self._experiment(state)

    def _begin(
        self, args: TrainingArguments, state: TrainerState, model: Any, processing_class: Any
    ) -> None:
        """All that comes before the first probe."""
        ranks, step = current_ranks(), state.global_step
        folder = claim_folder(Path(str(args.output_dir)), state, self.suite.name)
        # what concerns the run folder happens on rank 0; its result, or its error, on every rank
        origin = Origin(folder, step, model_name(model), self.suite, self.view)
        history = ranks.on_main(origin.history)
        reference = self.reference
        if not isinstance(reference, Reference):
            reference = ranks.on_main(lambda: origin.reference(str(self.reference)))
        try:
            self.monitor = Monitor(
                model,
                processing_class,
                self.suite,
                reference,
                view=self.view,
                progress=state.is_world_process_zero and not args.disable_tqdm,
            )
        except (ValueError, TypeError, OSError):
            raise
        except Exception:  # out of memory, a broken kernel: no fault of the configuration
            self._failed("the base could not be scored, so this run is not monitored")
            return
        monitor = self.monitor
        base = monitor.reference.info.id
        monitor.inherit(ranks.on_main(lambda: origin.inherited(base, monitor.base_q)))
        for record in history:
            self.monitor.replay(record)
        known = monitor.seconds_a_probe or max((r.seconds for r in history), default=None)
        if known is not None:
            self._meter.expect(known)
        self._last_step = history[-1].step if history else -1
        self._last_record = history[-1] if history else None
        ranks.on_main(lambda: self._open(monitor, folder, args, state))
        self._begin_experiments(monitor, processing_class, folder, step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe if this step is on the schedule, or the last."""
        if self._stopped_at is not None and state.global_step > self._stopped_at:
            logger.warning("crystalmon: this trainer does not stop when a callback asks it to.")
            self._stopped_at = None
        self._act(state, control)
        forecast = self._forecast.at(state.global_step)
        if forecast and self._store is not None and self.max_overhead is None:
            say(costly(*forecast))
        last = state.global_step >= state.max_steps or control.should_training_stop
        if self._wanted(state.global_step, last):
            self._probe(state)
            self._act(state, control)
        self._experiment(state, last)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where training stopped early: later the best checkpoint may be loaded over it."""
        if control.should_training_stop:
            self._probe_the_end(state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same, for what stops on the evaluation that comes after an epoch's end."""
        if control.should_training_stop:
            self._probe_the_end(state, control)

    def _probe_the_end(self, state: TrainerState, control: TrainerControl) -> None:
        if self._wanted(state.global_step, last=True):
            self._probe(state)
            self._act(state, control)
        self._experiment(state, last=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe the end if no other event did; close the trackers."""
        try:
            if not args.load_best_model_at_end:
                self._probe_the_end(state, control)
        finally:
            self._close()
        if self.failures:
            logger.warning("crystalmon: %d failures; see the log above.", self.failures)
        if self._store is None:
            return
        if (last := self._last_record) is not None:
            conclude(last, self._store.folder)
            if self.max_overhead is None:
                say(f"probing took {last.share:.1%} of the time up to its last probe")
        # with the base, trackers and pictures
        say(f"monitoring took {self._meter.spent / self._meter.elapsed:.2%} of the time")
        if self._refused and last is not None:
            say(
                f"the last probe is that of step {last.step}: another one would have taken over "
                f"{self.max_overhead:.2%} of the time"
            )

    def _wanted(self, step: int, last: bool = False) -> bool:
        """Whether to probe now: by the schedule on every rank, by the clock of rank 0."""
        if self.monitor is None or step <= self._last_step:
            return False
        if not self._schedule.asks(step, last):
            return False
        if self._schedule.budget is None:
            return True
        # all ranks, also those that do not share the prompts out
        wait = current_ranks().broadcast(self._schedule.steps_to_wait(step, last))
        self._schedule.rest(step, wait)
        self._refused = last and wait > 0
        return wait == 0

    def _close(self) -> None:
        """The run folder first: a tracker may take the report of it."""
        try:
            if self._store is not None:
                self._store.close()
        except Exception:
            self._failed("the last probes could not be stored")
        finally:
            self._tracker.close()

    def _open(
        self, monitor: Monitor, folder: Path, args: TrainingArguments, state: TrainerState
    ) -> None:
        """Rank 0: the run folder with the reference in it, and the trackers."""
        info = run_info(
            monitor, self._config(), _trainer_name(args), state.max_steps, training_settings(args)
        )
        resume_step = state.global_step if state.global_step > 0 else None
        stored = folder / REFERENCE_FOLDER
        if resume_step is None or not (stored / INFO_FILE).is_file():
            # before the run's own files: what is there stays whole if this fails
            with explained(folder, "take the base's answers"):
                monitor.reference.save(stored)
            monitor.reference = load_reference(stored)  # on disk they need no memory
        elif load_reference(stored).info.id != monitor.reference.info.id:
            raise ValueError(
                f"the run in {folder} must be resumed with its own base, "
                f"{load_reference(stored).info.model!r}, got {self.reference!r}. Leave out "
                "reference=, or choose another output_dir."
            )
        if resume_step is None and (folder / RUN_FILE).is_file():
            say(f"the earlier run in {folder} is superseded; its lines stay on file")
        self._store = RunStore.open(folder, info, resume_step=resume_step)
        self._tracker = make_tracker(
            args.report_to or [],
            str(args.output_dir),
            folder.name,
            partial(write_report, [folder]),
        )
        limit = "" if self.max_overhead is None else f" or {self.max_overhead:.2%} of the time"
        say(
            f"{self.suite.name}: {len(self.suite)} tasks, {self.suite.num_prompts} prompts, "
            f"{len(self._schedule.steps)} probes{limit}; "
            f"base {monitor.reference.info.model or 'this model'}; records in {folder}"
        )
        if warning := scarce(monitor.base_coverage):
            say(warning)

    def _config(self) -> dict[str, Any]:
        """The arguments as `run.json` keeps them."""
        named = isinstance(self.reference, str | Path)
        return {
            "every": self.every,
            "max_overhead": self.max_overhead,
            "reference": str(self.reference) if named else "given",
            "view": self.view,
            "strict": self.strict,
            "experiments": {each.name: every for each, every in self.experiments.items()},
            "actions": {
                signal: [action_name(action) for action in actions]
                for signal, actions in self.actions.items()
            },
        }

    def _probe(self, state: TrainerState, unchanged: bool = False) -> None:
        """Probe this step; a failure is logged and counted, or raised if strict."""
        if self.monitor is None:
            return
        before = self._meter.spent
        with self._meter.spending():
            self._probe_with(self.monitor, state, unchanged)
        # storing, trackers and a failure count; the first may come free with the base's answers
        took = self._meter.spent - before
        self._meter.expect(max(took, self.monitor.seconds_a_probe or 0.0))

    def _probe_with(self, monitor: Monitor, state: TrainerState, unchanged: bool) -> None:
        self._last_step = step = state.global_step
        self._schedule.taken()
        record = None
        try:
            record = monitor.probe(step, state.epoch, unchanged=unchanged)
        except Exception:
            self._failed(f"probe at step {step} failed; training goes on")
        if not monitor.ranks.all(record is not None) or record is None:
            return
        events = monitor.events
        self._schedule.probed(record, events)
        if self._store is not None:
            self._write(self._store, record, events)
        self._untaken += events
        self._last_record = record

    def _write(self, store: RunStore, record: ProbeRecord, events: list[Event]) -> None:
        """Rank 0: one probe to the run folder, the trackers and the terminal."""
        try:
            store.append(record, events)
        except Exception:
            self._failed(
                f"the probe at step {record.step} could not be stored and waits for the next one; "
                "training goes on"
            )
        self._tracker.log(record.step, tracker_metrics(record, store.folder.name))
        choices = {task.name: task.choice_texts for task in self.suite}
        self._tracker.show(Snapshot(record, choices))
        for event in events:
            self._tracker.event(event)
        announce(record, events, self._last_record)

    def _begin_experiments(
        self, monitor: Monitor, processing_class: Any, folder: Path, step: int
    ) -> None:
        show = partial(self._show, folder.name)
        found = ExperimentsInTraining(
            self.experiments, monitor, processing_class, folder, self._meter, self._failed, show
        )
        try:
            found.begin(monitor, step)
        except (ValueError, TypeError, OSError):
            raise
        except Exception:  # out of memory, a broken kernel: no fault of the configuration
            self._failed("the experiments could not begin, and are left out of this run")
            return
        self._experiments = found

    def _experiment(self, state: TrainerState, last: bool = False) -> None:
        """Measure the experiments that are due; their time is counted where they take it."""
        if self._experiments is not None:
            self._experiments.measure(state.global_step, last)

    def _show(self, name: str, result: Result) -> None:
        """Rank 0: what an experiment has found, to the trackers."""
        self._tracker.log(result.step or 0, experiment_metrics(result, name))

    def _act(self, state: TrainerState, control: TrainerControl) -> None:
        """Do what the user has asked for on the latest events, on every rank alike."""
        events, self._untaken = self._untaken, []
        for event, action in ((e, a) for e in events for a in actions_for(self.actions, e)):
            name = action_name(action)
            if self._store is not None:
                say(f"{sentence(event)}: {name}")
                # what happens to the whole suite the trackers alert of by themselves
                if action == "alert" and event.task is not None:
                    self._tracker.alert(f"crystalmon: {event.kind}", sentence(event))
            if action == "stop":
                self._stopped_at = state.global_step
            try:
                take(action, event, state, control)
            except Exception:
                self._failed(f"{name} failed on {event.kind}; training goes on")

    def _failed(self, what: str) -> None:
        """Within an except block: raise on if strict, else log and count."""
        if self.strict:
            raise
        self.failures += 1
        logger.exception("crystalmon: %s.", what)


def _unwrapped(model: Any) -> Any:
    """The language model itself, from within PPO's, an engine's or the compiler's wrapper."""
    for inner in ("_orig_mod", "module", "policy"):
        model = getattr(model, inner, model)
    return model


def _trainer_name(args: TrainingArguments) -> str:
    """As its arguments' class tells: `SFTConfig` → `SFT`, `TrainingArguments` → `Trainer`."""
    name = type(args).__name__
    return name.replace("TrainingArguments", "Trainer").removesuffix("Config")


def _checked_share(max_overhead: float | None) -> float | None:
    if max_overhead is None:
        return None
    if not isinstance(max_overhead, int | float) or isinstance(max_overhead, bool):
        raise TypeError(
            f"max_overhead must be a number or None, got {type(max_overhead).__name__}."
        )
    if not 0 < max_overhead <= 1:
        raise ValueError(
            f"max_overhead must be within (0, 1], got {max_overhead}. 0.01 is 1% of the time."
        )
    return float(max_overhead)
