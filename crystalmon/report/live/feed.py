"""Runs that are still written, or may not exist yet: asked again and again, read bit by bit."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from crystalmon.report.lanes import Layout, make_lanes
from crystalmon.report.payload import build_payload
from crystalmon.runs.files import EVENTS_FILE, LOG_FILE, RECORDS_FILE, RUN_FILE
from crystalmon.runs.reader import RunReader, run_folders
from crystalmon.runs.run import Run
from crystalmon.suites.tasks import TaskSuite

LOG_SECONDS, LOG_ROWS = 3.0, 2000
"""A probe is news at once. The trainer may log at every step: that alone is news so often, and a
second later for each so many rows, since the page is made anew."""


@dataclass(frozen=True)
class News:
    """What there is to show.

    Args:
        mark: changes whenever the runs' files do.
        message: a sentence on what is missing or wrong; empty if nothing is.
        runs: the runs that can be read.
        notes: a sentence for each line on file that cannot be read.
        layout: see `make_lanes`.
        suite: for the words of prompts and choices.
    """

    mark: str
    message: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    layout: Layout
    suite: TaskSuite | None

    @cached_property
    def payload(self) -> dict[str, Any] | None:
        """What the page draws; None while there is no run."""
        if not self.runs:
            return None
        return build_payload(make_lanes(self.runs, self.layout), suite=self.suite, notes=self.notes)


class RunFeed:
    """Follows runs; safe to ask from several threads.

    Args:
        paths: output folders, which need not exist yet.
        layout, suite: see `News`.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        layout: Layout = "auto",
        suite: TaskSuite | None = None,
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._layout: Layout = layout
        self._suite = suite
        self._readers: dict[Path, RunReader] = {}
        self._notes: dict[str, None] = {}
        self._news: News | None = None
        self._log_due = 0.0
        self._lock = threading.Lock()

    def news(self) -> News:
        """The runs as they are now; what has not changed is not read again."""
        with self._lock:
            probes, log = self._mark(RUN_FILE, RECORDS_FILE, EVENTS_FILE), self._mark(LOG_FILE)
            mark, news, now = f"{probes}_{log}", self._news, time.monotonic()
            if news is not None and (
                news.mark == mark or (news.mark.startswith(f"{probes}_") and now < self._log_due)
            ):
                return news
            self._news = news = self._look(mark)
            rows = sum(len(run.trainer_log) for run in news.runs)
            self._log_due = now + LOG_SECONDS + rows / LOG_ROWS
            return news

    def _mark(self, *names: str) -> str:
        """Sizes and times of these files in all folders, as one text."""
        marks: list[str] = []
        for folder in (each for path in self._paths for each in (path, *run_folders(path))):
            for name in names:
                try:
                    status = (folder / name).stat()
                except OSError:
                    continue
                marks.append(f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}")
        return ".".join(marks) or "nothing"

    def _look(self, mark: str) -> News:
        runs: list[Run] = []
        wanting: list[str] = []
        readers, self._readers = self._readers, {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for path in (each for place in self._paths for each in run_folders(place)):
                reader = readers.get(path)
                try:
                    reader = reader or RunReader(path)
                    runs.append(reader.read(growing=True))
                    _ = runs[-1].trainer_log  # so that damage in it is told here
                    self._readers[path] = reader
                except FileNotFoundError:
                    wanting.append(f"Waiting for a run in {path}: nothing has been written yet.")
                except (OSError, ValueError) as error:
                    wanting.append(str(error))
        self._notes |= {str(warning.message): None for warning in caught}
        told = " ".join(wanting)
        return News(mark, told, tuple(runs), tuple(self._notes), self._layout, self._suite)
