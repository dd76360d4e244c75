"""TensorBoard: an event file beside the trainer's, or a log folder for a stored run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import Event
from crystalmon.runs.run import Run
from crystalmon.trackers.base import Tracker, check_writable, sentence
from crystalmon.trackers.panels import dashboard

FOLDER_VARIABLE = "TENSORBOARD_LOGGING_DIR"
"""The environment variable by which transformers lets the user choose the log folder."""


class TensorBoardTracker(Tracker):
    """Writes its own event file, in a subfolder of the trainer's.

    The trainer's writer is out of reach, and TensorBoard shows one event file a folder: a second
    one would hide the first. In a subfolder it is a run of its own, on the same step axis.
    """

    _folder: Path | None = None
    _writer: Any = None

    @contextmanager
    def opened_for(self, run: Run, project: str) -> Iterator[str]:
        """Choose a log folder for a stored run; TensorBoard has no projects."""
        logs = Path(self.output_dir) / "runs"
        if chosen := os.environ.get(FOLDER_VARIABLE):  # shared by many runs, some of one name
            mark = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:6]
            logs = Path(chosen).expanduser() / f"{run.name}-{mark}"
        self._folder = logs / self.name
        check_writable(self._folder, FOLDER_VARIABLE)
        yield str(self._folder)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers, and write them out."""
        from tensorboard.compat.proto.summary_pb2 import (
            Summary,  # pyright: ignore[reportAttributeAccessIssue]  # protobuf makes it at run time
        )

        # in one event: `add_scalar` makes one for each, and a probe has hundreds
        numbers = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        writer = self._open(step)
        writer.file_writer.add_summary(Summary(value=numbers), step)
        writer.flush()

    def show(self, snapshot: Snapshot) -> None:
        """Add the answers as an image, and where they may end as text, and write them out."""
        writer, step = self._open(snapshot.record.step), snapshot.record.step
        # TensorBoard opens the first two groups of tags: one more of ours would close the trainer's
        writer.add_image(f"{self.name}/answers", snapshot.image, step, dataformats="HWC")
        if snapshot.ends:
            lines = "\n".join(f"- {task}: {words}" for task, words in snapshot.ends.items())
            writer.add_text(f"{self.name}_events/may_end_on", lines, step)
        writer.flush()

    def event(self, event: Event) -> None:
        """Add the event's sentence as text under `<name>_events/<kind>`, and write it out."""
        writer = self._open(event.step)
        place = f"/{event.task}" if event.task is not None else ""
        writer.add_text(f"{self.name}_events/{event.kind}{place}", sentence(event), event.step)
        writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder or tensorboard_folder(self.output_dir, self.name)
            # purge_step: in a folder that a resumed run shares, later steps are superseded
            self._writer = SummaryWriter(str(folder), purge_step=step)
            layout = {
                section: {
                    title: ["Multiline", [f"^{curve}$" for curve in curves]]
                    for title, curves in panels.items()
                }
                for section, panels in dashboard(self.name, self.logged).items()
            }
            self._writer.add_custom_scalars(layout)
        return self._writer


def tensorboard_folder(output_dir: str, name: str = DEFAULT_NAME) -> Path:
    """The subfolder `name` of the trainer's log folder.

    The log folder is `TENSORBOARD_LOGGING_DIR` if that is set, else the folder below
    `<output_dir>/runs` with the newest event file of this process, else `<output_dir>/runs`.
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser() / name
    runs = Path(output_dir) / "runs"
    # events.out.tfevents.<time>.<host>.<pid>.<count>
    files = runs.rglob(f"events.out.tfevents.*.{os.getpid()}.*")
    mine = [file for file in files if not file.parent.name.startswith(DEFAULT_NAME)]
    newest = max(mine, key=lambda file: file.stat().st_mtime_ns, default=None)
    return (runs if newest is None else newest.parent) / name
