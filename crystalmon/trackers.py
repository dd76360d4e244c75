"""wandb, TensorBoard, trackio and others behind one small protocol.

A tracker joins the run that transformers' own reporters have begun, on the trainer's step axis.
Its library is imported on first use, so that a library that is missing is that tracker's failure
and nobody else's.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crystalmon.names import DEFAULT_NAME, STEP_KEY
from crystalmon.pace import Pace
from crystalmon.panels import ANSWERS, DISTRIBUTIONS, SECTIONS, SUMMARIES
from crystalmon.records import PHASES, Event
from crystalmon.scalar_trackers import SCALAR_TRACKERS, ScalarTracker

if TYPE_CHECKING:
    from crystalmon.report.snapshot import Snapshot

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


class WandbTracker:
    """Logs into the active wandb run.

    No `step=` is passed: wandb's own step counts log calls and must not go back, so the trainer's
    step goes in as the metric that transformers plots against. Events are sentences in the run's
    summary, and those of the whole suite are alerts.

    Args:
        name: what the metrics' names begin with.
        write_report: makes the page that becomes an artifact at the end. None for no report.
    """

    def __init__(self, name: str = DEFAULT_NAME, write_report: WriteReport | None = None) -> None:
        self._name, self._write_report = name, write_report
        self._run_id: str | None = None
        self._sentences: list[str] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe."""
        run = self._active_run()
        run.log({**metrics, STEP_KEY: step})
        phase = metrics.get(f"{self._name}/phase")
        if phase is not None:
            run.summary[f"{self._name}/phase_name"] = PHASES[int(phase)]

    def show(self, snapshot: Snapshot) -> None:
        """Log the answers as an image and as a table."""
        import wandb

        picture = wandb.Image(snapshot.image, caption=f"step {snapshot.record.step}")
        table = wandb.Table(columns=list(snapshot.columns), data=list(snapshot.rows))
        self._active_run().log(
            {
                f"{self._name}{ANSWERS}": picture,
                f"{self._name}{DISTRIBUTIONS}": table,
                STEP_KEY: snapshot.record.step,
            }
        )

    def event(self, event: Event) -> None:
        """Add the event's sentence to the run's summary; alert if it is of the whole suite."""
        run = self._active_run()
        self._sentences.append(sentence(event))
        run.summary[f"{self._name}/events"] = list(self._sentences)
        if event.task is None:
            self.alert(f"crystalmon: {event.kind}", sentence(event))

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert, which reaches the user by mail or chat."""
        self._active_run().alert(title=title, text=text)

    def close(self) -> None:
        """Keep the report as an artifact; the run itself is the trainer's."""
        import wandb

        if wandb.run is None or self._write_report is None:
            return
        with tempfile.TemporaryDirectory() as place:
            page = self._write_report(Path(place) / "report.html")
            artifact = wandb.Artifact(f"{self._name}-report-{wandb.run.id}", type="report")
            artifact.add_file(str(page), name=page.name)
            wandb.run.log_artifact(artifact)

    def _active_run(self) -> Any:
        """The active run; on meeting it first, tell it which metric the step is."""
        import wandb

        run = wandb.run
        if run is None:
            raise RuntimeError("wandb has no active run. Call wandb.init() before training")
        if run.id != self._run_id:
            for glob in ("/*", "_tasks/*", "_experiments/*", "_media/*"):
                run.define_metric(f"{self._name}{glob}", step_metric=STEP_KEY)
            for key, summary in SUMMARIES.items():
                run.define_metric(f"{self._name}/{key}", step_metric=STEP_KEY, summary=summary)
            self._run_id = run.id
            self._sentences = []
        return run


class TrackioTracker:
    """Logs into the active trackio run; events are its alerts, louder for the whole suite.

    Args:
        name: what the metrics' names begin with.
    """

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        self._name = name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe."""
        import trackio

        trackio.log({**metrics, STEP_KEY: step})

    def show(self, snapshot: Snapshot) -> None:
        """Log the answers as an image and as a table."""
        import trackio

        caption = f"step {snapshot.record.step}"
        trackio.log(
            {
                f"{self._name}{ANSWERS}": trackio.Image(snapshot.image, caption=caption),
                f"{self._name}{DISTRIBUTIONS}": trackio.Table(
                    columns=snapshot.columns, data=snapshot.rows
                ),
                STEP_KEY: snapshot.record.step,
            }
        )

    def event(self, event: Event) -> None:
        """Raise the event as an alert: a note for a task, a warning for the suite."""
        import trackio

        levels = trackio.AlertLevel
        # the text carries the step: trackio's own one counts log calls
        trackio.alert(
            title=event.kind,
            text=sentence(event),
            level=levels.WARN if event.task is None else levels.INFO,
        )

    def alert(self, title: str, text: str) -> None:
        """Raise an alert of the middle level."""
        import trackio

        trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)

    def close(self) -> None:
        """Do nothing: the run is the trainer's."""


class TensorBoardTracker:
    """Writes its own event file, in a subfolder of the trainer's.

    The trainer's writer is out of reach, and TensorBoard shows one event file a folder at a time:
    a second file beside the first would shadow it. In a subfolder it is a run of its own, named
    after its parent, on the same step axis.

    Args:
        output_dir: the trainer's output folder.
        name: the subfolder's name.
        folder: to write to, where it is not to be found beside a trainer's.
    """

    def __init__(
        self, output_dir: str, name: str = DEFAULT_NAME, folder: Path | None = None
    ) -> None:
        self._output_dir, self._name, self._folder = output_dir, name, folder
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe, and write it out."""
        writer = self._open(step)
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def show(self, snapshot: Snapshot) -> None:
        """Add the answers as an image, and write it out."""
        writer = self._open(snapshot.record.step)
        writer.add_image(
            f"{self._name}{ANSWERS}", snapshot.image, snapshot.record.step, dataformats="HWC"
        )
        writer.flush()

    def event(self, event: Event) -> None:
        """Add the event's sentence as text under `<name>_events/<kind>`, and write it out."""
        writer = self._open(event.step)
        place = f"/{event.task}" if event.task is not None else ""
        writer.add_text(f"{self._name}_events/{event.kind}{place}", sentence(event), event.step)
        writer.flush()

    def alert(self, title: str, text: str) -> None:
        """Do nothing: TensorBoard has no alerts, and shows every event as text."""

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder or tensorboard_folder(self._output_dir, self._name)
            # purge_step: in a folder that a resumed run shares, later steps are superseded
            self._writer = SummaryWriter(str(folder), purge_step=step)
            self._writer.add_custom_scalars(tensorboard_layout(self._name))
        return self._writer


def tensorboard_folder(output_dir: str, name: str = DEFAULT_NAME) -> Path:
    """Where the TensorBoard tracker writes: beside what transformers' own writer writes.

    That is the subfolder `name` of `TENSORBOARD_LOGGING_DIR` if that is set, else of the
    folder below `<output_dir>/runs` with the newest event file of this process, else of
    `<output_dir>/runs`.
    """
    chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if chosen:
        return Path(chosen).expanduser() / name
    runs = Path(output_dir) / "runs"
    # events.out.tfevents.<time>.<host>.<pid>.<count>
    mine = [
        file
        for file in runs.rglob(f"events.out.tfevents.*.{os.getpid()}.*")
        if not file.parent.name.startswith(DEFAULT_NAME)
    ]
    newest = max(mine, key=lambda file: file.stat().st_mtime_ns, default=None)
    return (runs if newest is None else newest.parent) / name


def tensorboard_layout(name: str = DEFAULT_NAME) -> dict[str, dict[str, list[Any]]]:
    """The layout of TensorBoard's tab for custom scalars: sections, charts, names of curves."""
    return {
        section: {panel.title: ["Multiline", panel.curves(name)] for panel in panels}
        for section, panels in SECTIONS.items()
    }


def sentence(event: Event) -> str:
    """An event as one line of text."""
    place = "suite" if event.task is None else event.task
    return f"step {event.step}: {event.kind} ({place}): {event.message}"


def make_tracker(
    report_to: Sequence[str],
    output_dir: str,
    name: str = DEFAULT_NAME,
    write_report: WriteReport | None = None,
) -> CompositeTracker:
    """The trackers that a trainer reports to.

    Args:
        report_to: the trainer's `report_to`; names that no tracker here covers are logged and
            passed over.
        output_dir: the trainer's output folder.
        name: what the names of metrics begin with.
        write_report: makes the page for the trackers that keep one.
    """
    factories: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker(name, write_report),
        "tensorboard": lambda: TensorBoardTracker(output_dir, name),
        "trackio": lambda: TrackioTracker(name),
        **{kind: partial(ScalarTracker, kind) for kind in SCALAR_TRACKERS},
    }
    for kind in report_to:
        if kind not in factories and kind != "none":
            logger.warning(
                "crystalmon does not log to %s. The run folder has every probe: "
                "crystalmon report %s",
                kind,
                output_dir,
            )
    return CompositeTracker({kind: make() for kind, make in factories.items() if kind in report_to})
