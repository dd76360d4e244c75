"""Writing a run: `run.json` whole; probes, events and the trainer's log line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystalmon.runs.files import (
    DOUBT_KEY,
    EVENTS_FILE,
    LOG_FILE,
    RECORDS_FILE,
    RESUME_KEY,
    RUN_FILE,
    append_lines,
    explained,
    json_bytes,
    write_whole,
)
from crystalmon.runs.records import SCHEMA_VERSION, Event, ProbeRecord
from crystalmon.runs.trainer_log import LogRow

FRESH_START = -1
"""The marker's step when training begins anew in an old folder: every earlier line is past it."""


class RunStore:
    """Writes one run to its folder; make one with `RunStore.open`.

    Attributes:
        folder: the run folder, `<output_dir>/crystalmon`.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        self.folder, self._info = folder, info
        # events come first: without their record they do not count
        self._waiting = {EVENTS_FILE: b"", RECORDS_FILE: b"", LOG_FILE: b""}

    @staticmethod
    def check_writable(folder: Path) -> None:
        """Create the folder and prove that a file can be written in it, leaving none behind.

        Raises:
            RunFolderError: if the folder cannot be created, or nothing can be written there.
        """
        with explained(folder, "be written to"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (RECORDS_FILE, EVENTS_FILE, LOG_FILE):
                if (folder / name).exists():
                    (folder / name).open("ab").close()
            write_whole(folder / RUN_FILE, b"{}", keep=False)

    @classmethod
    def open(cls, folder: Path, info: Mapping[str, Any], *, resume_step: int | None) -> RunStore:
        """Start a run, or take up an earlier one, in a folder that is proved writable at once.

        Args:
            folder: the run folder; created if it is not there.
            info: the content of `run.json`; the schema version is added.
            resume_step: the step that training resumes from, or None if it begins anew. Lines
                of an earlier run past that step, or all of them, count as superseded.

        Raises:
            RunFolderError: if the folder cannot be created or written to.
        """
        cls.check_writable(folder)
        write_info(folder, info)
        probes, log = (folder / RECORDS_FILE, folder / EVENTS_FILE), folder / LOG_FILE
        with explained(folder, "be written to"):
            step = FRESH_START if resume_step is None else resume_step
            for files in (probes, (log,)):  # a scan, or an older run, has no log
                if any(file.exists() and file.stat().st_size > 0 for file in files):
                    for file in files:
                        append_lines(file, json_bytes({RESUME_KEY: step}))
        return cls(folder, info)

    def append(
        self, record: ProbeRecord, events: Sequence[Event], doubtful_after: int | None = None
    ) -> None:
        """Write one probe and its events as whole lines, on disk before this returns.

        If a write fails (say, the disk is full), the lines are kept and written by the next call.

        Args:
            record, events: of the probe.
            doubtful_after: mark the earlier records with a larger step as perhaps wrong.

        Raises:
            RunFolderError: if something cannot be written. The lines before are untouched.
        """
        self._waiting[EVENTS_FILE] += b"".join(json_bytes(event.to_json()) for event in events)
        if doubtful_after is not None:
            self._waiting[RECORDS_FILE] += json_bytes({DOUBT_KEY: doubtful_after})
        self._waiting[RECORDS_FILE] += json_bytes(record.to_json())
        self._write(f"take the probe at step {record.step}")

    def append_log(self, row: LogRow) -> None:
        """Write what the trainer has logged, without waiting for the disk.

        After a write that has failed, the next probe writes it.

        Raises:
            RunFolderError: if it cannot be written.
        """
        waits = any(self._waiting.values())
        self._waiting[LOG_FILE] += json_bytes(row.to_json())
        if not waits:
            self._write("take the trainer's log")

    def note(self, info: Mapping[str, Any]) -> None:
        """Change some of what `run.json` says.

        Raises:
            RunFolderError: if it cannot be written.
        """
        self._info = {**self._info, **info}
        write_info(self.folder, self._info)

    def close(self) -> None:
        """Try once more to write the lines that are still kept.

        Raises:
            RunFolderError: if it cannot be written now either: those probes are lost.
        """
        self._write("take the last probes")

    def _write(self, purpose: str) -> None:
        if not (self.folder / RUN_FILE).exists():  # somebody has deleted the folder
            self.folder.mkdir(parents=True, exist_ok=True)
            write_info(self.folder, self._info)
        with explained(self.folder, purpose):
            for name, block in self._waiting.items():
                if block:
                    append_lines(self.folder / name, block, sync=name != LOG_FILE)
                    self._waiting[name] = b""


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write a run folder's `run.json`, whole or not at all; the schema version is added.

    Raises:
        RunFolderError: if it cannot be written.
    """
    with explained(folder, "be written to"):
        write_whole(folder / RUN_FILE, json_bytes({**info, "schema_version": SCHEMA_VERSION}, 2))
