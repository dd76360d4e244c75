"""What rank 0 does with the probes of a training: store, send to trackers and report them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from crystalmon.metrics.answers import answer_distributions
from crystalmon.monitor.actions import Action, action_name
from crystalmon.monitor.console import Console
from crystalmon.monitor.failures import Failures
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.run_info import route_info
from crystalmon.phases.what_to_do import advise
from crystalmon.report.page import write_report
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.compared_answers import same_answers
from crystalmon.runs.files import RUN_FILE, explained, saved_checkpoints
from crystalmon.runs.lock import RunLock
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.reference import INFO_FILE, TENSOR_FILE, Reference, load_reference
from crystalmon.runs.results import Result
from crystalmon.runs.store import RunStore
from crystalmon.runs.trainer_log import LogRow
from crystalmon.runs.wordings import texts_of
from crystalmon.trackers.base import Logged, sentence, tracker_metrics
from crystalmon.trackers.make import make_tracker

logger = logging.getLogger(__name__)


class Recorder:
    """Writes the probes of one training to its run folder and its trackers, on rank 0 alone.

    Args:
        folder: the run folder; the base's answers are stored in it.
        monitor: of this run; it reads its base from the run folder from now on.
        info: the content of `run.json`.
        step: 0, or the step that training resumes from.
        history: the records of the run up to that step.
        args: the trainer's arguments, for `report_to` and `output_dir`.
        failures: where failures are counted.
        lock: of the run folder; once another training has taken that over, nothing more is written.
        console: says what happens.
        logged: what trackers get.

    Attributes:
        last: the latest record of the run, None before the first.
        probes: how many records the run has.
        texts: by task, its prompts and choices.

    Raises:
        RunFolderError: if the folder cannot be written to.
        ValueError: if a run is resumed with another base than its own.
    """

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        info: Mapping[str, Any],
        step: int,
        history: Sequence[ProbeRecord],
        args: Any,
        failures: Failures,
        lock: RunLock,
        console: Console,
        logged: Logged = "suite",
    ) -> None:
        _store_base(folder, monitor, step, console)
        if step == 0 and (folder / RUN_FILE).is_file():
            console.say(
                f"{folder} holds an earlier run: its lines stay in the files, reports show this run"
            )
        self.folder, self._failures, self._lock = folder, failures, lock
        self._console = console
        self._monitor = monitor
        self._store = RunStore.open(folder, info, resume_step=step or None)
        self._logged: Logged = logged
        self._training, self._model = info.get("training", {}), info.get("model")
        self._tracker = make_tracker(
            args.report_to or [],
            str(args.output_dir),
            folder.name,
            partial(write_report, [folder]),
            logged,
        )
        self.texts = texts_of(monitor.suite)
        self.last, self.probes = (history[-1] if history else None), len(history)
        self._noted = monitor.route

    @property
    def owns_folder(self) -> bool:
        """Whether the run folder is still this training's."""
        return self._lock.held

    def write(
        self, record: ProbeRecord, events: Sequence[Event], doubtful_after: int | None = None
    ) -> None:
        """Store one probe, send it to the trackers, and print what it changed.

        Args:
            record, events: of the probe.
            doubtful_after: see `RunStore.append`.
        """
        if not self.owns_folder:
            return
        with self._failures.caught(
            f"the probe at step {record.step} could not be stored and waits for the next one; "
            "training goes on"
        ):
            self._store.append(record, events, doubtful_after)
        with self._failures.caught(f"{self.folder} could not be completed"):
            if self._monitor.route != self._noted:
                self._noted = self._monitor.route
                self._store.note(route_info(self._noted))
            self._mend_folder()
        self._tracker.log(record.step, tracker_metrics(record, self.folder.name, self._logged))
        self._tracker.show(Snapshot(record, self.texts))
        for event in events:
            self._tracker.event(self._with_advice(event, record))
        self._console.announce(record, events, self.last)
        self.last, self.probes = record, self.probes + 1

    def advice(self, last: ProbeRecord) -> dict[str, str]:
        """By kind of the run's events so far, what to do; see `what_to_do.advise`."""
        saved = saved_checkpoints(self.folder.parent)
        events = self._monitor.course.raised
        return advise(events, last, saved, self._training, self._model)

    def _with_advice(self, event: Event, record: ProbeRecord) -> Event:
        """An event of the suite that says what to do: trackers send it as an alert."""
        words = None if event.task is not None else self.advice(record).get(event.kind)
        return replace(event, message=f"{event.message}. {words}") if words else event

    def write_log(self, row: LogRow) -> None:
        """Store what the trainer has logged."""
        if row.values and self.owns_folder:
            with self._failures.caught(
                f"the trainer's log at step {row.step} could not be stored and waits for the next "
                "probe; training goes on"
            ):
                self._store.append_log(row)

    def _mend_folder(self) -> None:
        """Write the base's answers again if somebody has deleted them, alone or with the folder."""
        stored = self.folder / REFERENCE_FOLDER
        if not all((stored / name).is_file() for name in (INFO_FILE, TENSOR_FILE)):
            self._monitor.reference.save(stored)
            logger.warning("crystalmon: %s was deleted, and is made again.", stored)

    def log_result(self, result: Result) -> None:
        """Log a result and its seconds as `<folder>_experiments/<experiment>/<key>`."""
        if not self.owns_folder:
            return
        prefix = f"{self.folder.name}_experiments/{result.experiment}"
        scalars = {f"{prefix}/{key}": value.value for key, value in result.estimates.items()}
        scalars[f"{prefix}/seconds"] = result.seconds or 0.0
        self._tracker.log(result.step or 0, scalars)

    def act(self, event: Event, action: Action) -> None:
        """Print that an action follows an event, and send the alert if it is one."""
        self._console.say(f"{sentence(event)}: {action_name(action)}")
        # the trackers alert of suite events by themselves
        if action == "alert" and event.task is not None and self.owns_folder:
            self._tracker.alert(f"crystalmon: {event.kind}", sentence(event))

    def note(self, key: str, value: Any) -> None:
        """Add to what `run.json` says."""
        if self.owns_folder:
            with self._failures.caught(f"{self.folder} could not be completed"):
                self._store.note({key: value})

    def catch_up(self) -> None:
        """Send what trackers still lack, while their runs are open: training ends here."""
        if self.owns_folder:
            self._tracker.catch_up()

    def close(self) -> None:
        """Close the run folder, then the trackers: one of them may keep the report of it."""
        if not self.owns_folder:
            return
        try:
            with self._failures.caught("the last probes could not be stored"):
                self._store.close()
        finally:
            self._tracker.close()


def _store_base(folder: Path, monitor: Monitor, step: int, console: Console) -> None:
    """Write the base's answers into the run folder; those of another base are moved aside.

    A run that is resumed keeps those that it has.

    Raises:
        ValueError: if a run is resumed with another base than its own.
        RunFolderError: if the folder cannot be written to.
    """
    stored, base = folder / REFERENCE_FOLDER, monitor.reference
    own = None
    if (stored / INFO_FILE).is_file():
        try:
            own = load_reference(stored)
        except ValueError:  # a new run replaces what is damaged
            if step > 0:
                raise
    if step > 0 and own is not None:
        if not _alike(own, base):
            raise ValueError(
                f"the run in {folder} must be resumed with its own base, {own.info.model!r}, got "
                f"{base.info.model!r}. What differs: {own.info.differences(base.info)}. Leave out "
                "reference=, or choose another output_dir."
            )
        return
    if own is not None and not _alike(own, base):
        aside = folder / f"{REFERENCE_FOLDER}-{own.info.id}"
        with explained(folder, "move the answers of an earlier base aside"):
            shutil.rmtree(aside, ignore_errors=True)
            stored.rename(aside)
        console.say(
            f"the earlier run in {folder} had another base: that base's answers are now in {aside}"
        )
    # before the run's own files: an earlier run stays whole if this fails
    base.save(stored)
    monitor.reference = load_reference(stored)  # read from disk, it takes no memory


def _alike(one: Reference, other: Reference) -> bool:
    """Whether two references are one base's, scored twice."""
    answers = (
        {name: answer_distributions(q)[0] for name, q in each.compared.items()}
        for each in (one, other)
    )
    same = one.info.plan == other.info.plan and one.plain.keys() == other.plain.keys()
    return same and same_answers(*answers)
