"""Trackio: the active run, or one of its own for a stored run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import STEP_KEY
from crystalmon.runs.records import Event
from crystalmon.runs.run import Run
from crystalmon.trackers.base import Tracker, check_writable, sentence
from crystalmon.trackers.panels import media


class TrackioTracker(Tracker):
    """Logs into the active trackio run; events are alerts, louder for the whole suite.

    transformers closes that run before other callbacks hear of the training's end.
    """

    _joined: bool = False

    @contextmanager
    def opened_for(self, run: Run, project: str) -> Iterator[str]:
        """Open a trackio run for a stored run."""
        import trackio

        # trackio itself would only warn, and keep nothing
        check_writable(Path(importlib.import_module("trackio.utils").TRACKIO_DIR), "TRACKIO_DIR")
        trackio.init(project=project, name=run.name, config=dict(run.info), embed=False)
        try:
            yield f"trackio show --project {project}"
        finally:
            trackio.finish()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers with the trainer's step; trackio's own step counts log calls."""
        self._log({**metrics, STEP_KEY: step})

    def show(self, snapshot: Snapshot) -> None:
        """Log the answers as an image and as a table."""
        import trackio

        self._log(media(trackio, snapshot, self.name))

    def event(self, event: Event) -> None:
        """Raise the event as an alert: a note for a task, a warning for the suite."""
        self.alert(event.kind, sentence(event), "WARN" if event.task is None else "INFO")

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Raise an alert."""
        import trackio

        trackio.alert(title=title, text=text, level=trackio.AlertLevel[level])

    def _log(self, content: dict[str, Any]) -> None:
        import trackio

        try:
            trackio.log(content)
        except RuntimeError as error:
            if self._joined:
                raise RuntimeError(
                    "the trainer has closed its trackio run, so the probe after it is missing "
                    "there; `crystalmon send` sends a stored run whole"
                ) from error
            raise
        self._joined = True
