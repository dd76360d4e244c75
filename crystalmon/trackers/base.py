"""What every tracker does, and several trackers as one.

A tracker joins the run that transformers' own reporter has begun, on the trainer's step axis. Its
library is imported on first use: if it is missing, only this tracker fails.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from crystalmon.metrics.catalogue import BY_KEY, METRICS, PHASES
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import Event, ProbeRecord, TaskRecord
from crystalmon.runs.run import Run

logger = logging.getLogger(__name__)

Logged = Literal["suite", "tasks"]
"""What trackers get: the suite's main metrics, or all metrics and those of each task too."""
LOGGED: tuple[str, ...] = get_args(Logged)

MAIN = frozenset(metric.key for metric in METRICS if metric.panel is not None)
"""The suite's main metrics: those that a dashboard has a panel for."""

WriteReport = Callable[[Path], Path]
"""Writes the report of the run to an HTML file, and returns the file."""


@dataclass(eq=False)
class Tracker:
    """Shows the probes of a running training. What a subclass does not override does nothing.

    Args:
        name: what the names of metrics begin with.
        output_dir: the trainer's output folder.
        write_report: for trackers that keep the report; None for no report.
        logged: what the metrics are of.
    """

    name: str = DEFAULT_NAME
    output_dir: str = ""
    write_report: WriteReport | None = None
    logged: Logged = "suite"

    def opened_for(self, run: Run, project: str) -> AbstractContextManager[str]:
        """Open a run of the tracker's own for a stored run; gives the place where it is found.

        Raises:
            ValueError: if the tracker takes runs only while they are made.
        """
        raise ValueError(f"{type(self).__name__} takes runs only while they are made.")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers, some of them perhaps not finite, by their full names."""

    def show(self, snapshot: Snapshot) -> None:
        """Show one probe's answers, as a picture or a table."""

    def event(self, event: Event) -> None:
        """Log one event."""

    def alert(self, title: str, text: str) -> None:
        """Alert whoever watches the run."""

    def close(self) -> None:
        """Finish what this tracker has opened; the run itself belongs to the trainer."""


class CompositeTracker(Tracker):
    """Sends everything to several trackers; one that fails does not silence the others.

    A tracker's first failure is logged as a warning. The tracker is tried again at the next probe,
    but further failures are not reported.

    Args:
        trackers: by the name that a warning shows.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = dict(trackers)
        self._reported: set[str] = set()
        self._waiting: Snapshot | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers everywhere."""
        self._each("log", step, metrics)

    def show(self, snapshot: Snapshot) -> None:
        """Keep one probe's answers for `catch_up`: training does not wait for pictures."""
        self._waiting = snapshot

    def event(self, event: Event) -> None:
        """Log one event everywhere."""
        self._each("event", event)

    def alert(self, title: str, text: str) -> None:
        """Alert through every tracker that can."""
        self._each("alert", title, text)

    def close(self) -> None:
        """Show the last probe's answers, if they were not shown, and close every tracker."""
        self.catch_up()
        self._each("close")

    def catch_up(self) -> None:
        """Show the latest probe's answers everywhere: training ends, and no other one follows."""
        snapshot, self._waiting = self._waiting, None
        if snapshot is not None:
            self._each("show", snapshot)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in self.trackers.items():
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                if name not in self._reported:
                    self._reported.add(name)
                    logger.warning(
                        f"crystalmon could not log to {name} ({type(error).__name__}: {error}). "
                        "Training and the other trackers continue, and the run folder has every "
                        f"probe. Further failures of {name} are not reported."
                    )


def sentence(event: Event) -> str:
    """An event as one line of text."""
    return f"step {event.step}: {event.kind} ({event.task or 'suite'}): {event.message}"


def tracker_metrics(
    record: ProbeRecord, name: str = DEFAULT_NAME, logged: Logged = "suite"
) -> dict[str, float]:
    """What trackers log of one probe: `<name>/<metric>`, `<name>_tasks/<task>/<metric>`.

    Of the suite alone these are its `MAIN` metrics.
    """
    scalars = {f"{name}/probe_share": record.share}
    if logged == "tasks":
        scalars[f"{name}/probe_seconds"] = record.seconds
    tasks = {f"{name}_tasks/{task}": found for task, found in record.tasks.items()}
    for prefix, found in {name: record, **(tasks if logged == "tasks" else {})}.items():
        for key, value in found.metrics.items():
            if _refers_to_nothing(found, key, value):
                continue
            if logged == "tasks" or key in MAIN:
                scalars[f"{prefix}/{key}"] = value
        scalars[f"{prefix}/phase"] = float(PHASES.index(found.phase))
    return scalars


def _refers_to_nothing(found: ProbeRecord | TaskRecord, key: str, value: float) -> bool:
    """Whether a task has nothing that a metric could be of: no order to lose, no onset, no seed."""
    if isinstance(found, ProbeRecord) or key not in BY_KEY:
        return False
    if key == "seed":  # without one it is the nearest wording, however far
        return found.seed is None
    relative = BY_KEY[key].nucleation or BY_KEY[key].held or key == "seed_set_size"
    return relative and math.isnan(value)


def check_logged(logged: Any) -> Logged:
    """What trackers are to get, checked.

    Raises:
        ValueError: if it is none of `LOGGED`.
    """
    if logged not in LOGGED:
        raise ValueError(f"log must be one of {', '.join(LOGGED)}, got {logged!r}.")
    return logged


def check_writable(folder: Path, variable: str) -> None:
    """Make a folder; an OSError says which environment variable names another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {folder}: {error.strerror or error}. Make room, or set {variable} to "
            "another folder."
        ) from error
