"""CrystalCallback: when to probe during training, on which rank, and what happens on resume."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import crystalmon
from crystalmon.monitor import Monitor
from crystalmon.records import PHASES, Event, ProbeRecord
from crystalmon.reference import Reference, find_reference, model_name
from crystalmon.store import FOLDER, RUN_FILE, RunStore, read_run
from crystalmon.tasks import TaskSuite, load_suite
from crystalmon.tokentree import VIEWS, View
from crystalmon.trackers import CompositeTracker, make_tracker

logger = logging.getLogger(__name__)

DEFAULT_PROBES = 100


class CrystalCallback(TrainerCallback):
    """Probes the model at intervals while any transformers or TRL trainer trains it.

    Records go to `<output_dir>/crystalmon` and to whatever `report_to` names among wandb,
    tensorboard and trackio, as `crystalmon/<metric>` and `crystalmon_tasks/<task>/<metric>` on
    the trainer's own step axis. Training is not touched: modes, random states and the tokenizer
    are as before, and a probe that fails is logged and counted, not raised. Mistakes of
    configuration are raised when training begins.

    Args:
        suite: a bundled suite's name, the path of a suite file, or a `TaskSuite`.
        every: probe every so many steps; by default about 100 probes a run, dense at first.
            Step 0 and the last step are always probed.
        reference: the base to compare with: `auto` (the one that came with the model's folder,
            else this model at step 0), `initial` (this model at step 0), a run or reference
            folder, or a model id or path.
        view: `raw` sends the prompts as text, `chat` through the chat template.
        strict: raise when a probe fails, instead of going on.

    Raises:
        ValueError: if `every` is not positive or `view` unknown.
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
        self.monitor: Monitor | None = None
        self.failures = 0
        self._schedule: frozenset[int] = frozenset()
        self._last_step = -1
        self._last_phase: str | None = None
        self._store: RunStore | None = None
        self._tracker = CompositeTracker({})

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
        folder = Path(str(args.output_dir)) / FOLDER
        model = getattr(model, "policy", model)
        is_main = state.is_world_process_zero
        if is_main:
            RunStore.check_writable(folder)
        history = self._history(folder, state.global_step)
        try:
            self.monitor = Monitor(
                model,
                processing_class,
                self.suite,
                self._reference_for(folder, state.global_step, model),
                view=self.view,
                progress=is_main and not args.disable_tqdm,
            )
        except (ValueError, TypeError, OSError):
            raise
        except Exception:  # out of memory, a broken kernel: no fault of the configuration
            self._failed("the base could not be scored, so this run is not monitored")
            return
        self._schedule = probe_steps(state.max_steps, self.every)
        for record in history:
            self.monitor.replay(record)
        self._last_step = history[-1].step if history else -1
        if is_main:
            self._open(self.monitor, folder, args, state)
        if state.global_step > self._last_step:
            self._probe(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe if this step is on the schedule, or the last."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step in self._schedule:
            self._probe(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where training stopped early: later the best checkpoint may be loaded over it."""
        if control.should_training_stop:
            self._probe(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe the end if no other event did; close the trackers."""
        if not args.load_best_model_at_end:
            self._probe(state)
        self._tracker.close()
        if self.failures:
            logger.warning("crystalmon: %d failures; see the log above.", self.failures)

    def _reference_for(self, folder: Path, step: int, model: Any) -> str | Path | Reference:
        """On resume, the base that this run started with: step 0 cannot be probed any more."""
        if step == 0 or str(self.reference) not in ("auto", "initial"):
            return self.reference
        if (stored := find_reference(folder)) is not None:
            return stored
        if str(self.reference) == "auto" and find_reference(model_name(model)) is not None:
            return self.reference
        raise FileNotFoundError(
            f"{folder} holds no reference, and at step {step} the initial model is gone. "
            "Name the base model: CrystalCallback(reference='<model id or path>')."
        )

    def _history(self, folder: Path, step: int) -> list[ProbeRecord]:
        """The records of a run that is being resumed from `step`.

        Raises:
            ValueError: if that run was monitored with another suite or view.
        """
        if step == 0 or not (folder / RUN_FILE).is_file():
            return []
        run = read_run(folder)
        before = (run.info.get("suite_hash"), run.info.get("config", {}).get("view"))
        if before != (self.suite.hash, self.view):
            raise ValueError(
                f"the run in {folder} must be resumed with its own suite and view, "
                f"{run.info.get('suite')!r} and {before[1]!r}, got {self.suite.name!r} and "
                f"{self.view!r}. Use those, or another output_dir."
            )
        return [record for record in run.records if record.step <= step]

    def _open(
        self, monitor: Monitor, folder: Path, args: TrainingArguments, state: TrainerState
    ) -> None:
        """Rank 0: the run folder with the reference in it, and the trackers."""
        info = {
            "versions": _versions(),
            "config": {
                "every": self.every,
                "reference": str(self.reference)
                if isinstance(self.reference, str | Path)
                else "given",
                "view": self.view,
                "strict": self.strict,
            },
            "method": monitor.method,
            "suite": self.suite.name,
            "suite_hash": self.suite.hash,
            "suite_texts": {
                task.name: {"prompts": list(task.prompts), "choices": list(task.choice_texts)}
                for task in self.suite
            },
            "reference": monitor.reference.info.id,
            "reference_model": monitor.reference.info.model,
            "model": model_name(monitor.model),
            "trainer": type(args)
            .__name__.replace("TrainingArguments", "Trainer")
            .removesuffix("Config"),
            "max_steps": state.max_steps,
        }
        resume_step = state.global_step if state.global_step > 0 else None
        self._store = RunStore.open(folder, info, resume_step=resume_step)
        if state.global_step == 0 or find_reference(folder) is None:
            monitor.reference.save(self._store.reference_folder)
        self._tracker = make_tracker(args.report_to or [], str(args.output_dir))
        _say(
            f"{self.suite.name}: {len(self.suite)} tasks, {self.suite.num_prompts} prompts, "
            f"{len(self._schedule)} probes; base {monitor.reference.info.model or 'this model'}; "
            f"records in {folder}"
        )

    def _probe(self, state: TrainerState) -> None:
        """Probe once per step; a failure is logged and counted, or raised if strict."""
        step = state.global_step
        if self.monitor is None or step <= self._last_step:
            return
        self._last_step = step
        try:
            record = self.monitor.probe(step, state.epoch)
        except Exception:
            self._failed(f"probe at step {step} failed; training goes on")
            return
        if self._store is None:
            return
        try:
            self._store.append(record, self.monitor.events)
        except Exception:
            self._failed(f"the probe at step {step} could not be stored; training goes on")
        self._tracker.log(step, tracker_metrics(record))
        self._tracker.show(record, self.suite)
        for event in self.monitor.events:
            self._tracker.event(event)
        _announce(record, self.monitor.events, self._last_phase)
        self._last_phase = record.phase

    def _failed(self, what: str) -> None:
        """Within an except block: raise on if strict, else log and count."""
        if self.strict:
            raise
        self.failures += 1
        logger.exception("crystalmon: %s.", what)


def probe_steps(max_steps: int, every: int | None = None) -> frozenset[int]:
    """The steps at which to probe.

    Args:
        max_steps: length N of the run, in optimizer steps.
        every: fixed interval, or None for the default: every step up to N = 100, beyond that
            round(N · (i/100)²), i = 0 … 100, which is dense at first, where collapse happens.

    Returns:
        Steps that always include 0 and N.
    """
    if every is not None:
        return frozenset({*range(0, max_steps, every), max_steps})
    if max_steps <= DEFAULT_PROBES:
        return frozenset(range(max_steps + 1))
    shares = ((i / DEFAULT_PROBES) ** 2 for i in range(DEFAULT_PROBES + 1))
    return frozenset(round(max_steps * share) for share in shares)


def tracker_metrics(record: ProbeRecord) -> dict[str, float]:
    """One probe as flat scalars, under the names that trackers show."""
    scalars = {f"crystalmon/{key}": value for key, value in record.metrics.items()}
    scalars["crystalmon/phase"] = float(PHASES.index(record.phase))
    scalars["crystalmon/probe_seconds"] = record.seconds
    scalars["crystalmon/probe_share"] = record.share
    for name, task in record.tasks.items():
        prefix = f"crystalmon_tasks/{name}"
        scalars |= {f"{prefix}/{key}": value for key, value in task.metrics.items()}
        scalars[f"{prefix}/phase"] = float(PHASES.index(task.phase))
    return scalars


def _announce(record: ProbeRecord, events: Iterable[Event], phase_before: str | None) -> None:
    """One line per kind of event, and one when the suite's phase is another."""
    tasks: dict[str, list[str]] = {}
    for event in events:
        if event.task is not None:
            tasks.setdefault(event.kind, []).append(event.task)
    for kind, names in tasks.items():
        _say(f"step {record.step}: {kind} in {', '.join(names)}")
    broken = [name for name, task in record.tasks.items() if not np.isfinite(task.q).all()]
    if broken:
        _say(f"step {record.step}: no finite answers in {', '.join(broken)}; their phases are held")
    if record.phase != phase_before:
        order = record.metrics.get("order")
        shown = "" if order is None else f" (order {order:.2f})"
        _say(f"step {record.step}: the suite is {record.phase}{shown}")


def _say(line: str) -> None:
    """Print a line above the progress bar; a terminal that refuses it must not stop training."""
    try:
        tqdm.write(f"crystalmon | {line}")
    except (OSError, ValueError):  # closed, full, or an encoding without the characters
        logger.info("%s", line)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"crystalmon": crystalmon.__version__}
    for name in ("torch", "transformers", "trl", "accelerate", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
