"""CrystalCallback: what a user attaches to a trainer.

Each training that it is told of is watched by a `training.Training`: one trainer may train twice,
and one may train within another.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crystalmon.monitor.actions import Actions, check_actions
from crystalmon.monitor.budget import DEFAULT_SHARE, check_share
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.schedule import check_every
from crystalmon.monitor.training import Settings, Training
from crystalmon.monitor.training_experiments import Experiments, check_experiments
from crystalmon.runs.reference import Reference
from crystalmon.scoring.plan import VIEWS, View
from crystalmon.scoring.precision_trial import AskedPrecision, check_precision
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
        every: probe every so many steps, as far as `max_overhead` allows. None: about 100 probes a
            run, dense at first. The first and the last step are always probed.
        reference: the base to compare with. `auto`: the one stored with the model's folder, else
            this model as it was before its first training in this process. `initial`: this model at
            step 0; if one trainer trains twice, before the first time. Or a run folder, a reference
            folder, or a model id or path.
        view: `raw` sends the prompts as they are, `chat` through the chat template.
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
        max_overhead: the share of the run's wall time that all monitoring may take, the base's
            answers and the trackers included; 0.02 by default. Within it, probes are as many as
            fit, more where the model moves, and ask fewer prompts of each task where all would take
            too long; see `schedule.Schedule`. Each run gets its base and four small probes, however
            short it is. Which steps are probed depends on the clock. None: all planned steps are
            probed, with all prompts.
        experiments: further measurements, by name or as an experiment, each with its interval in
            steps: `{"context": 100}`. They are measured whatever `max_overhead` says.

    Raises:
        ValueError: for an `every` below 1, a `max_overhead` outside (0, 1], an unknown view,
            precision, action or experiment.
        SuiteError: for a faulty suite.
    """

    def __init__(
        self,
        suite: str | Path | TaskSuite = "randomness",
        *,
        every: int | None = None,
        reference: str | Path | Reference = "auto",
        view: View = "raw",
        precision: AskedPrecision = "auto",
        strict: bool = False,
        actions: Actions | None = None,
        max_overhead: float | None = DEFAULT_SHARE,
        experiments: Experiments | None = None,
    ) -> None:
        if not isinstance(reference, str | Path | Reference):
            raise TypeError(
                f"reference must be a name, a path or a Reference, got {type(reference).__name__}."
            )
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
        checked = load_suite(suite)
        self.settings = Settings(
            suite=checked,
            every=check_every(every),
            reference=reference,
            view=view,
            precision=check_precision(precision),
            strict=strict,
            actions=check_actions(actions, (task.name for task in checked)),
            max_overhead=check_share(max_overhead),
            experiments=check_experiments(experiments, suite=checked, view=view),
        )
        self._trainings: list[Training] = []
        self._stranger = False

    @property
    def monitor(self) -> Monitor | None:
        """What probes the model of the latest training; None before the first."""
        return self._trainings[-1].monitor if self._trainings else None

    @property
    def failures(self) -> int:
        """How many probes, writes and actions have failed in the latest training."""
        return self._trainings[-1].failures.count if self._trainings else 0

    @property
    def last_step(self) -> int:
        """The step of the latest training's latest probe, -1 before the first."""
        return self._trainings[-1].last_step if self._trainings else -1

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
        if any(training.state is state for training in self._trainings):
            logger.warning("crystalmon: one callback is attached twice; it counts once.")
            return
        earlier = next((each for each in self._trainings if each.is_of(args, model)), None)
        if earlier is not None:  # the same trainer begins anew: that training is over
            earlier.close()
        living = [each for each in self._trainings if each.state is not None]
        training = Training(self.settings, args, state, earlier)
        self._trainings = [*(each for each in living if each is not earlier), training]
        training.begin(args, state, model, processing_class)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe if this step is on the schedule, or the last."""
        training = self._of(state)
        if training is not None:
            training.step(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where training stopped early: later the best checkpoint may be loaded over it."""
        training = self._of(state)
        if training is not None and control.should_training_stop:
            training.probe_if_wanted(state, control, last=True)

    # an evaluation after an epoch's end may stop training too; saving is what comes after it
    on_save = on_epoch_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe the end if no other event did; close the run folder and the trackers."""
        training = self._of(state)
        if training is None:
            return
        try:
            if not args.load_best_model_at_end:
                training.probe_if_wanted(state, control, last=True)
        finally:
            training.close()
        training.conclude()

    def _of(self, state: TrainerState) -> Training | None:
        """The training that a state belongs to; None if its beginning was not seen."""
        for training in self._trainings:
            if training.state is state:
                return training
        if not self._stranger:
            self._stranger = True
            logger.warning(
                "crystalmon: the callback was added while training runs, when its base is gone, so "
                "this training is not monitored. Pass it in the trainer's callbacks=."
            )
        return None
