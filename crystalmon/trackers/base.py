"""wandb, TensorBoard, trackio and others behind one small protocol.

A tracker joins the run that transformers' own reporters have begun, on the trainer's step axis.
Its library is imported on first use, so that a library that is missing is that tracker's failure
and nobody else's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import PHASES, Event
from crystalmon.trackers.picture_rate import Pace

if TYPE_CHECKING:
    from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.records import ProbeRecord

logger = logging.getLogger(__name__)


WriteReport = Callable[[Path], Path]
"""Writes the report of the run to an HTML file, and returns the file."""


class Tracker(Protocol):
    """Where the probes of a running training show up."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe, or what an experiment has found.

        Args:
            step: optimizer steps done.
            metrics: by the name to show, prefix included. Non-finite values are allowed.
        """
        ...

    def show(self, snapshot: Snapshot) -> None:
        """Show one probe's answers, as far as this tracker has pictures and tables."""
        ...

    def event(self, event: Event) -> None:
        """Log one event."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Alert whoever watches, where the tracker can."""
        ...

    def close(self) -> None:
        """Finish what this tracker has opened itself; the trainer's run is not its own."""
        ...


class CompositeTracker:
    """Sends everything to several trackers; one that fails does not silence the others.

    A tracker's first failure is logged as a warning. It is tried again at the next probe, since
    a failure may pass, but not reported again.

    Args:
        trackers: by the name that a warning shows.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        self._reported: set[str] = set()
        self._pace = Pace()
        self._waiting: Snapshot | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers' names."""
        return tuple(self._trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe everywhere."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def show(self, snapshot: Snapshot) -> None:
        """Show one probe's answers everywhere, at a modest rate; the last one always."""
        if self._pace.is_due(snapshot.record.phase):
            self._show(snapshot)
        else:
            self._waiting = snapshot

    def _show(self, snapshot: Snapshot) -> None:
        self._waiting = None
        began = time.monotonic()
        self._each(lambda tracker: tracker.show(snapshot))
        self._pace.took(time.monotonic() - began)

    def event(self, event: Event) -> None:
        """Log one event everywhere."""
        self._each(lambda tracker: tracker.event(event))

    def alert(self, title: str, text: str) -> None:
        """Alert through every tracker that can."""
        self._each(lambda tracker: tracker.alert(title, text))

    def close(self) -> None:
        """Show the last probe, if it was not, and close every tracker."""
        if self._waiting is not None:
            self._show(self._waiting)
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                action(tracker)
            except Exception as error:
                if name not in self._reported:
                    self._reported.add(name)
                    logger.warning(
                        "crystalmon could not log to %s (%s: %s). Training and the other trackers "
                        "go on, and the run folder has every probe; further failures of %s are "
                        "not reported.",
                        name,
                        type(error).__name__,
                        error,
                        name,
                    )


def sentence(event: Event) -> str:
    """An event as one line of text."""
    place = "suite" if event.task is None else event.task
    return f"step {event.step}: {event.kind} ({place}): {event.message}"


def tracker_metrics(record: ProbeRecord, name: str = DEFAULT_NAME) -> dict[str, float]:
    """What trackers log of one probe: `<name>/<metric>`, `<name>_tasks/<task>/<metric>`.

    Args:
        record: the probe.
        name: what the names begin with.
    """
    scalars = {f"{name}/{key}": value for key, value in record.metrics.items()}
    scalars[f"{name}/phase"] = float(PHASES.index(record.phase))
    scalars[f"{name}/probe_seconds"] = record.seconds
    scalars[f"{name}/probe_share"] = record.share
    for task_name, task in record.tasks.items():
        prefix = f"{name}_tasks/{task_name}"
        scalars |= {f"{prefix}/{key}": value for key, value in task.metrics.items()}
        scalars[f"{prefix}/phase"] = float(PHASES.index(task.phase))
    return scalars
