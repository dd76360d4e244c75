"""wandb."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.runs.names import DEFAULT_NAME, STEP_KEY
from crystalmon.runs.records import PHASES, Event
from crystalmon.trackers.panels import ANSWERS, DISTRIBUTIONS, SUMMARIES

if TYPE_CHECKING:
    from crystalmon.report.snapshot import Snapshot
from crystalmon.trackers.base import WriteReport, sentence


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
