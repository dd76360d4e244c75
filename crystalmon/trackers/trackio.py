"""trackio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crystalmon.runs.names import DEFAULT_NAME, STEP_KEY
from crystalmon.runs.records import Event
from crystalmon.trackers.panels import ANSWERS, DISTRIBUTIONS

if TYPE_CHECKING:
    from crystalmon.report.snapshot import Snapshot
from crystalmon.trackers.base import sentence


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
