"""Weights & Biases: the active run, or one of its own for a stored run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalmon.metrics.catalogue import PHASES
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import STEP_KEY
from crystalmon.runs.records import Event
from crystalmon.runs.run import Run
from crystalmon.trackers.base import Tracker, sentence
from crystalmon.trackers.panels import SUMMARIES, media


class WandbTracker(Tracker):
    """Logs into the active wandb run.

    wandb's own step counts log calls and must not go back. So no `step=` is passed, and the
    trainer's step is logged as the metric that transformers plots against.
    """

    _run_id: str | None = None
    _sentences: tuple[str, ...] = ()

    @contextmanager
    def opened_for(self, run: Run, project: str) -> Iterator[str]:
        """Open a wandb run for a stored run; raises a ValueError if wandb does not take it."""
        import wandb

        if wandb.run is not None and not wandb.run.disabled:
            raise ValueError(
                f"wandb has an active run, {wandb.run.name or wandb.run.id!r}. Finish it first: "
                "the stored run becomes a run of its own."
            )
        try:
            opened = wandb.init(project=project, name=run.name, config=dict(run.info))
        except (wandb.Error, ValueError) as error:
            raise ValueError(
                f"wandb does not take the run: {' '.join(str(error).split())}. Correct that, log "
                "in with `wandb login`, or set WANDB_MODE=offline."
            ) from error
        with opened:
            if opened.disabled:
                raise ValueError("wandb is disabled. Unset WANDB_MODE, or set it to offline.")
            yield opened.url or str(opened.dir)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers with the trainer's step, and the phase by its name."""
        run = self._active_run()
        run.log({**metrics, STEP_KEY: step})
        if (phase := metrics.get(f"{self.name}/phase")) is not None:
            run.summary[f"{self.name}/phase_name"] = PHASES[int(phase)]

    def show(self, snapshot: Snapshot) -> None:
        """Log the answers as an image and as a table; the summary says where they may end."""
        import wandb

        run = self._active_run()
        run.log(media(wandb, snapshot, self.name))
        run.summary[f"{self.name}/may_end_on"] = snapshot.ends

    def event(self, event: Event) -> None:
        """Add the event's sentence to the run's summary; alert if it concerns the whole suite."""
        run = self._active_run()
        self._sentences += (sentence(event),)
        run.summary[f"{self.name}/events"] = list(self._sentences)
        if event.task is None:
            self.alert(f"crystalmon: {event.kind}", sentence(event))

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert, which reaches the user by mail or chat."""
        self._active_run().alert(title=title, text=text)

    def close(self) -> None:
        """Keep the report as an artifact."""
        import wandb

        if wandb.run is None or self.write_report is None:
            return
        with tempfile.TemporaryDirectory() as place:
            page = self.write_report(Path(place) / "report.html")
            artifact = wandb.Artifact(f"{self.name}-report-{wandb.run.id}", type="report")
            artifact.add_file(str(page), name=page.name)
            wandb.run.log_artifact(artifact)

    def _active_run(self) -> Any:
        """The active run; a new one is first told which metric the step is."""
        import wandb

        run = wandb.run
        if run is None:
            raise RuntimeError("wandb has no active run. Call wandb.init() before training")
        if run.id != self._run_id:
            for glob in ("/*", "_tasks/*", "_experiments/*", "_media/*"):
                run.define_metric(f"{self.name}{glob}", step_metric=STEP_KEY)
            for key, summary in SUMMARIES.items():
                run.define_metric(f"{self.name}/{key}", step_metric=STEP_KEY, summary=summary)
            self._run_id, self._sentences = run.id, ()
        return run
