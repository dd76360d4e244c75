"""CrystalCallback: what a user attaches to a trainer.

Each training that it is told of is watched by a `training.Training`: one trainer may train twice,
and one may train within another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crystalmon.monitor.actions import Actions, check_actions
from crystalmon.monitor.beginnings import begun_views
from crystalmon.monitor.budget import DEFAULT_SHARE, check_share
from crystalmon.monitor.console import Console
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.schedule import check_every
from crystalmon.monitor.settings import Settings
from crystalmon.monitor.training import Training
from crystalmon.monitor.training_experiments import Experiments, check_experiments
from crystalmon.monitor.views import AUTO, Views, find_view, name_views
from crystalmon.phases.limits import check_limits
from crystalmon.runs.reference import Reference
from crystalmon.scoring.engines import check_engine, unwrapped
from crystalmon.scoring.models import model_name
from crystalmon.scoring.precision_trial import AskedPrecision, check_precision
from crystalmon.scoring.ranks import current_ranks
from crystalmon.scoring.rendering import View
from crystalmon.suites.tasks import TaskSuite, load_suite
from crystalmon.trackers.base import Logged, check_logged

logger = logging.getLogger(__name__)


class CrystalCallback(TrainerCallback):
    r"""Probes the model at intervals while a transformers or TRL trainer trains it.

    Each probe goes to `<output_dir>/crystalmon` and to the trackers in the trainer's `report_to`,
    as `crystalmon/<metric>` on the trainer's step axis. What the trainer itself logs is kept
    in that folder too, for the report.

    With `metric_for_best_model="crystalmon/order"`, or another metric of the suite, each evaluation
    of the trainer has these metrics too, and is a whole probe, whatever `max_overhead` says. So the
    best checkpoint, early stopping and hyperparameter search can go by them. Callbacks that read
    them come after this one.

    Training is not changed: modules' modes, random states and the tokenizer are restored after
    each probe. A probe that fails is logged and counted, and training goes on. Mistakes of
    configuration are raised before the first step. With several processes, each scores its share of
    the prompts and rank 0 writes. A second callback on the same trainer writes to
    `<output_dir>/crystalmon-<suite>` and uses that name in the trackers, a second view to
    `<output_dir>/crystalmon-<view>`.

    Args:
        suite: the name of a bundled suite, the path of a suite file, or a `TaskSuite`.
        every: probe every so many steps, or, below 1, every such share of the run, as far as
            `max_overhead` allows. None: about 100 probes a run, dense at first. The first and the
            last step are always probed.
        reference: the base to compare with. `auto`: the one stored with the model's folder, else
            this model as it was before its first training in this process. `initial`: this model at
            step 0; if one trainer trains twice, before the first time. Or a run folder, a reference
            folder, or a model id or path.
        view: how the prompts are sent. `raw`: as they are. `chat`: through the tokenizer's chat
            template. `"Q: {prompt}\nA:"`: through a template of your own. `auto`: as where the
            model came from, if that was monitored; else as the training data is written:
            conversations as `chat`, other prompts in the format that they have in common. Several
            views, such as `["raw", "chat"]` or `{"qa": "Q: {prompt}"}`, are probed side by side
            and share `max_overhead`; experiments are measured in the first.
        precision: of the layers while probing. `model`: as in training, with the answers projected
            in float32. `float32`: all in float32, which a model trained in half precision pays for.
            `auto`: float32 unless on some prompts the model's own is within 0.02 of its
            probabilities and 1.5 times as fast; `run.json` tells what was found. A base that is
            there already, and a resumed run, keep theirs.
        strict: raise when a probe fails.
        actions: what to do on an event, such as `{"nucleation_onset": "save",
            "support_leak": ["alert", "stop"]}`. A key is a kind of event (of the suite if the
            suite raises that kind, else of any task) or `<task>/<kind>`. An action is `save`,
            `stop`, `evaluate` (if the trainer's `eval_strategy` is set), `alert` (W&B and Trackio),
            or a function of (event, state, control), which is called on every rank.
        limits: on metrics of the suite, by key: `{"free_energy": 2.0}` raises
            `free_energy_limit` when the KL to the base is above 2 nats. Of a metric of which more
            is better, such as `entropy`, it is a lower limit.
        max_overhead: the share of the run's wall time that all monitoring may take, the base's
            answers and the trackers included; 0.02 by default. Within it, probes are as many as
            fit, more where the model moves, and ask fewer prompts of each task where all would take
            too long; see `schedule.Schedule`. Each run gets its base and four small probes, however
            short it is. Which steps are probed depends on the clock. None, or 1: all planned steps
            are probed, with all prompts.
        experiments: further measurements, by name or as an experiment, each with its interval in
            steps: `{"context": 100}`. They are measured whatever `max_overhead` says.
        log: what trackers get. `suite`: the suite's main metrics. `tasks`: all of them, and those
            of each task.
        verbose: say in the terminal what happens. Warnings are logged all the same.

    Raises:
        ValueError: for an `every` such as 0 or 2.5, a `max_overhead` outside (0, 1], an unknown
            view, precision, action, metric of a limit or experiment.
        SuiteError: for a faulty suite.
    """

    def __init__(
        self,
        suite: str | Path | TaskSuite = "randomness",
        *,
        every: float | None = None,
        reference: str | Path | Reference = "auto",
        view: Views = AUTO,
        precision: AskedPrecision = "auto",
        strict: bool = False,
        actions: Actions | None = None,
        limits: Mapping[str, float] | None = None,
        max_overhead: float | None = DEFAULT_SHARE,
        experiments: Experiments | None = None,
        log: Logged = "suite",
        verbose: bool = True,
    ) -> None:
        if not isinstance(reference, str | Path | Reference):
            raise TypeError(
                f"reference must be a name, a path or a Reference, got {type(reference).__name__}."
            )
        self._views = name_views(view)
        self._experiments = experiments
        checked, limited = load_suite(suite), check_limits(limits)
        self.settings = Settings(
            suite=checked,
            every=check_every(every),
            reference=reference,
            view=next(iter(self._views.values())),
            view_name="",
            precision=check_precision(precision),
            strict=strict,
            actions=check_actions(actions, (task.name for task in checked), limited),
            limits=limited,
            max_overhead=check_share(max_overhead),
            experiments=check_experiments(experiments, suite=checked),
            logged=check_logged(log),
            verbose=verbose,
        )
        self._trainings: list[tuple[Training, ...]] = []
        self._stranger = False

    @property
    def monitor(self) -> Monitor | None:
        """What probes the model of the latest training, in the first view; None before that."""
        return self._trainings[-1][0].monitor if self._trainings else None

    @property
    def failures(self) -> int:
        """How many probes, writes and actions have failed in the latest training."""
        return sum(each.failures.count for each in self._trainings[-1]) if self._trainings else 0

    @property
    def last_step(self) -> int:
        """The step of the latest training's latest probe, -1 before the first."""
        return self._trainings[-1][0].last_step if self._trainings else -1

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
        check_engine(model, args)
        if any(views[0].state is state for views in self._trainings):
            logger.warning("crystalmon: one callback is attached twice; it counts once.")
            return
        living = [views for views in self._trainings if views[0].state is not None]
        earlier = next((views for views in self._trainings if views[0].is_of(args, model)), ())
        for training in earlier:  # the same trainer begins anew: that training is over
            training.close()
        data = getattr(kwargs.get("train_dataloader"), "dataset", None)
        asked = self._settings_by_view(args, state, model, processing_class, data)
        before = {training.view: training for training in earlier}
        trainings = tuple(Training(each, args, state, before.get(each.view)) for each in asked)
        self._trainings = [*(views for views in living if views is not earlier), trainings]
        try:
            for training in trainings:
                training.begin(state, model, processing_class)
        except BaseException:
            for training in trainings:
                training.close()
            raise

    def _settings_by_view(
        self, args: TrainingArguments, state: TrainerState, model: Any, tokens: Any, data: Any
    ) -> list[Settings]:
        """What to do in each view, `auto` found out."""
        views = self._views
        if AUTO in views.values():
            auto = self._find_view(args, state, model, tokens, data)
            views = {name: auto if view == AUTO else view for name, view in views.items()}
        named: dict[View, str] = {}
        for name, view in views.items():
            named.setdefault(view, name)  # two names may stand for one view, which counts once
        first, *further = named
        share = self.settings.max_overhead
        shared = replace(self.settings, max_overhead=share and share / len(named))
        experiments = check_experiments(self._experiments, suite=shared.suite, view=first)
        return [
            replace(shared, view=first, experiments=experiments),
            *(replace(shared, view=v, view_name=named[v], experiments={}) for v in further),
        ]

    def _find_view(
        self, args: TrainingArguments, state: TrainerState, model: Any, tokens: Any, data: Any
    ) -> View:
        """What `auto` stands for in this training; rank 0 says so."""
        suite, others = self.settings.suite, [v for v in self._views.values() if v != AUTO]
        known = begun_views(model, suite)
        places = [Path(str(args.output_dir)) if state.global_step else None]
        places += [self.settings.reference, model_name(unwrapped(model))]
        view, why = current_ranks().on_main(
            lambda: find_view(suite, others, known, places, tokens, data)
        )
        if state.is_world_process_zero:
            shown = "they stand (view raw)" if view == "raw" else f"{view!r}"
            told = f"prompts are sent as {shown}: {why}; view= sets another"
            Console(verbose=self.settings.verbose).say(told)
        return view

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe if this step is on the schedule, or the last."""
        for training in self._of(state):
            training.step(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the suite's metrics, where the trainer chooses its best checkpoint by one of them."""
        for training in self._watching(state):
            training.evaluated(state, {} if metrics is None else metrics)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the trainer's own numbers beside the records."""
        for training in self._watching(state):
            training.log(state, logs or {})

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where training stopped early: later the best checkpoint may be loaded over it."""
        if control.should_training_stop:
            for training in self._of(state):
                training.probe_if_wanted(state, control, last=True)

    # an evaluation after an epoch's end may stop training too; saving is what comes after it
    on_save = on_epoch_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe the end if no other event did; close the run folder and the trackers."""
        trainings = self._of(state)
        try:
            if not args.load_best_model_at_end:
                for training in trainings:
                    training.probe_if_wanted(state, control, last=True)
        finally:
            for training in trainings:
                training.close()
        for training in trainings:
            training.conclude()

    def _of(self, state: TrainerState) -> tuple[Training, ...]:
        """The views of the training that a state belongs to; none if its beginning was not seen."""
        if found := self._watching(state):
            return found
        if not self._stranger:
            self._stranger = True
            logger.warning(
                "crystalmon: the callback was added while training runs, when its base is gone, so "
                "this training is not monitored. Pass it in the trainer's callbacks=."
            )
        return ()

    def _watching(self, state: TrainerState) -> tuple[Training, ...]:
        return next((views for views in self._trainings if views[0].state is state), ())
