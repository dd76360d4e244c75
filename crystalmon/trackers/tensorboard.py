"""tensorboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import Event
from crystalmon.trackers.panels import ANSWERS, SECTIONS

if TYPE_CHECKING:
    from crystalmon.report.snapshot import Snapshot
from crystalmon.trackers.base import sentence


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
