"""The run folder: `<output_dir>/crystalmon`, written line by line and read back whole.

    run.json        what was measured, with what
    records.jsonl   one line a probe
    events.jsonl    one line an event
    reference/      the frozen base's answers

The two line files only ever grow. A run that is resumed from step s first writes the marker
`{"resume": s}` to both: lines before it with a step past s are superseded, not deleted. A probe's
events are written before its record: those of a step without one, as after a kill between the two,
do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystalmon.runs.files import (
    EVENTS_FILE,
    FRESH_START,
    RECORDS_FILE,
    RESUME_KEY,
    RUN_FILE,
    _append,
    _as_line,
    _dumps,
    explained,
    write_whole,
)
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.records import SCHEMA_VERSION, Event, ProbeRecord


class RunStore:
    """Writes one run to its folder; make one with `RunStore.open`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[Path, list[bytes]] = {}

    @property
    def folder(self) -> Path:
        """The run folder itself, `<output_dir>/crystalmon`."""
        return self._folder

    @property
    def reference_folder(self) -> Path:
        """Where the frozen base's answers are kept."""
        return self._folder / REFERENCE_FOLDER

    @staticmethod
    def check_writable(folder: Path) -> None:
        """Create the folder and prove that a file can be written in it, leaving none behind.

        Raises:
            RunFolderError: if the folder cannot be created, or nothing can be written there.
        """
        with explained(folder, "be written to"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (RECORDS_FILE, EVENTS_FILE):
                if (folder / name).exists():
                    (folder / name).open("ab").close()
            write_whole(folder / RUN_FILE, b"{}", keep=False)

    @classmethod
    def open(cls, folder: Path, info: Mapping[str, Any], *, resume_step: int | None) -> RunStore:
        """Start a run, or take up an earlier one, in a folder that is proved writable at once.

        Args:
            folder: the run folder, `<output_dir>/crystalmon`; created if it is not there.
            info: what `run.json` says of the run; the schema version is added.
            resume_step: the step that training resumes from, or None if it begins anew. Lines
                of an earlier run past that step, or all of them, count as superseded.

        Raises:
            RunFolderError: if the folder cannot be created or written to.
        """
        folder = Path(folder)
        cls.check_writable(folder)
        files = (folder / RECORDS_FILE, folder / EVENTS_FILE)
        write_info(folder, info)
        with explained(folder, "be written to"):
            if any(file.exists() and file.stat().st_size > 0 for file in files):
                step = FRESH_START if resume_step is None else resume_step
                for file in files:
                    _append(file, _as_line({RESUME_KEY: step}))
        return cls(folder)

    def append(self, record: ProbeRecord, events: Sequence[Event]) -> None:
        """Write one probe and its events as whole lines, on disk before this returns.

        What cannot be written, as when the disk is full, waits for the next call.

        Raises:
            RunFolderError: if something cannot be written. The lines before are untouched, and a
                later line starts on its own.
        """
        lines = [(EVENTS_FILE, event.to_json()) for event in events]
        lines += [(RECORDS_FILE, record.to_json())]
        for name, block in [(name, _as_line(line)) for name, line in lines]:
            self._waiting.setdefault(self._folder / name, []).append(block)
        with explained(self._folder, f"take the probe at step {record.step}"):
            self._write()

    def close(self) -> None:
        """Try once more to write what still waits.

        Raises:
            RunFolderError: if it cannot be written now either: those probes are lost.
        """
        with explained(self._folder, "take the last probes"):
            self._write()

    def _write(self) -> None:
        for file in (self._folder / EVENTS_FILE, self._folder / RECORDS_FILE):
            if file in self._waiting:
                _append(file, b"".join(self._waiting[file]))
                del self._waiting[file]


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write a run folder's `run.json`, whole or not at all; the schema version is added.

    Raises:
        RunFolderError: if it cannot be written.
    """
    text = _dumps({**info, "schema_version": SCHEMA_VERSION}, indent=2)
    with explained(folder, "be written to"):
        write_whole(folder / RUN_FILE, text.encode() + b"\n")
