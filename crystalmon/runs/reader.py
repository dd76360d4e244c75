"""Reading a run folder back, also while it grows."""

from __future__ import annotations

import gc
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from crystalmon.runs.files import EVENTS_FILE, LOG_FILE, RECORDS_FILE, RUN_FILE
from crystalmon.runs.json_values import number_value, parse_json
from crystalmon.runs.line_file import LineFile
from crystalmon.runs.lock import LOCK_FILE
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import SCHEMA_VERSION, Event, ProbeRecord, TaskRecord
from crystalmon.runs.run import NoRunError, Run
from crystalmon.runs.trainer_log import LogRow
from crystalmon.suites.checks import harmless


def read_run(path: str | Path, *, stream: bool = False) -> Run:
    """Read a run folder back.

    A line that cannot be read, such as the last one of a run that was killed, or that does not
    fit the others, is left out with a warning that names it; so is what `run.json` must not hold.
    Of the same step twice, the later line counts. Control characters come back spelled out.

    Args:
        path: an output folder, or the `crystalmon` folder in it.
        stream: leave the records on disk, and read each one again whenever it is asked for. It
            takes little memory, and longer.

    Raises:
        NoRunError: if there is no run; the message says what is missing.
        ValueError: if `run.json` is damaged, or a newer crystalmon wrote it.
    """
    return RunReader(path, stream=stream).read()


def read_runs(
    paths: Iterable[str | Path], *, stream: bool = False
) -> tuple[list[Run], list[NoRunError]]:
    """The runs that have a probe, and why each of the others is left out.

    Args:
        paths: see `read_run`, as is `stream`.

    Raises:
        ValueError: if a run is damaged.
    """
    runs: list[Run] = []
    missing: list[NoRunError] = []
    for path in paths:
        try:
            run = read_run(path, stream=stream)
            run.check_probed()
        except NoRunError as error:
            missing.append(error)
        else:
            runs.append(run)
    return runs, missing


class RunReader:
    """Reads a run as `read_run` does while it grows: `read` parses what is new since the last."""

    def __init__(self, path: str | Path, *, stream: bool = False) -> None:
        self.folder, self._stream = _find_folder(Path(path)), stream
        parse = _Outlines().read if stream else _record
        self._records = LineFile(self.folder / RECORDS_FILE, parse, lambda record: record.step)
        self._events = LineFile(
            self.folder / EVENTS_FILE,
            _event,
            lambda event: (event.step, event.kind, event.task),
        )
        # a step may have several lines: of the training, of an evaluation, of the end
        self._log = LineFile(
            self.folder / LOG_FILE,
            LogRow.from_json,
            lambda row: (row.step, frozenset(row.values)),
        )

    def read(self, *, growing: bool = False) -> Run:
        """The run as it is now.

        Args:
            growing: leave a last line without its end for the next call: it is being written.
        """
        info = _read_info(self.folder / RUN_FILE)
        with _no_collector():
            records, events = self._records.read(growing), self._events.read(growing)
        odd = _of_other_shape(records)
        for step, why in odd.items():
            self._records.leave_out(step, why)
        records = {step: record for step, record in records.items() if step not in odd}
        by_step = sorted(events.values(), key=lambda event: event.step)
        steps = sorted(records)
        return Run(
            self.folder,
            info,
            records=_OnDisk(self._records, steps)
            if self._stream
            else tuple(records[step] for step in steps),
            events=tuple(event for event in by_step if event.step in records),
            superseded=self._records.count - len(records) - len(odd),
            doubtful=tuple(sorted(self._records.doubtful & records.keys())),
            fault=self._records.fault,
            read_log=partial(self._read_log, growing),
        )

    def _read_log(self, growing: bool) -> tuple[LogRow, ...]:
        rows = self._log.read(growing).values()
        return tuple(sorted(rows, key=lambda row: row.step))


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's search for cycles: records have none, and it would go over all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _record(data: Any) -> ProbeRecord:
    record = ProbeRecord.from_json(data)
    if all(map(str.isprintable, record.tasks)):
        return record
    return replace(record, tasks={harmless(name): task for name, task in record.tasks.items()})


class _Outlines:
    """Reads records without their numbers; those with answers of one shape share their tasks."""

    def __init__(self) -> None:
        self._tasks: dict[Any, Mapping[str, TaskRecord]] = {}

    def read(self, data: Any) -> ProbeRecord:
        """The record with NaN for its answers, and without metrics."""
        record = _record(data)
        shape = tuple((name, task.q.shape, task.asked) for name, task in record.tasks.items())
        if shape not in self._tasks:
            self._tasks[shape] = {
                name: replace(task, q=np.broadcast_to(np.nan, task.q.shape), metrics={}, ci={})
                for name, task in record.tasks.items()
            }
        return replace(record, metrics={}, ci={}, tasks=self._tasks[shape])


class _OnDisk(Sequence[ProbeRecord]):
    """The records of these steps, each read again whenever it is asked for."""

    def __init__(self, file: LineFile[ProbeRecord], steps: Sequence[int]) -> None:
        self._file, self._steps = file, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[ProbeRecord]:
        return self._file.reread(self._steps, _record)

    @overload
    def __getitem__(self, index: int) -> ProbeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ProbeRecord]: ...
    def __getitem__(self, index: int | slice) -> ProbeRecord | Sequence[ProbeRecord]:
        if isinstance(index, slice):
            return _OnDisk(self._file, self._steps[index])
        return next(self._file.reread([self._steps[index]], _record))


def _event(data: Any) -> Event:
    return Event.from_json(harmless(data))


def _of_other_shape(records: Mapping[int, ProbeRecord]) -> dict[int, str]:
    """By step, the records that have other tasks than most, or other shapes: what differs."""
    tables = {step: record.tasks for step, record in records.items()}
    counted = Counter(
        frozenset((n, task.q.shape[1]) for n, task in each.items()) for each in tables.values()
    )
    usual = dict(counted.most_common(1)[0][0]) if counted else {}
    prompts: dict[str, float] = {}
    for name in usual:
        found = [each[name] for each in tables.values() if name in each]
        rows = Counter(len(task.q) for task in found if task.asked is None)
        prompts[name] = rows.most_common(1)[0][0] if rows else math.inf
    odd: dict[int, str] = {}
    for step, each in tables.items():
        wrong = sorted(usual.keys() ^ each.keys()) or [
            name for name, task in each.items() if not task.fits(prompts[name], usual[name])
        ]
        if wrong:
            odd[step] = f"task {wrong[0]!r} must have as many answers as in the other records"
    return odd


def run_folders(path: str | Path) -> list[Path]:
    """The runs of an output folder, one for each view or callback, that of the first one first.

    Any other path stands for itself.
    """
    found = sorted(file.parent for file in Path(path).glob(f"{DEFAULT_NAME}*/{RUN_FILE}"))
    return found or [Path(path)]


def _find_folder(path: Path) -> Path:
    for folder in (path, path / DEFAULT_NAME):
        if (folder / RUN_FILE).is_file():
            return folder
    if not path.exists():
        raise NoRunError(f"no crystalmon run in {path}: there is no such folder.")
    found = path / DEFAULT_NAME if (path / DEFAULT_NAME).is_dir() else path
    if (found / LOCK_FILE).is_file():
        owner = (found / LOCK_FILE).read_text(encoding="utf-8", errors="replace").strip()
        raise NoRunError(
            f"the run in {found} has no probe yet: its training ({owner or 'process unknown'}) "
            "scores the base first. Wait for it; if that process is gone, start the training again."
        )
    missing = f"{found / RUN_FILE} is missing" if found.is_dir() else "it is not a folder"
    raise NoRunError(
        f"no crystalmon run in {path}: {missing}. "
        "Name the output_dir of a training run that had the CrystalCallback."
    )


_WORDS = ("config", "model", "stages", "suite", "suite_forms", "suite_texts")
"""In `run.json`: names that users chose. There `NaN` is a word, not a number."""


def _read_info(file: Path) -> dict[str, Any]:
    try:
        text = harmless(parse_json(file.read_bytes()))
        info = number_value(text) | {key: text[key] for key in _WORDS if key in text}
        version = int(info["schema_version"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{file} must be JSON with a schema_version, and cannot be read "
            f"({type(error).__name__}: {error}). Copy it anew, or delete it: the records stay."
        ) from error
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{file} has schema version {version}, and this crystalmon reads up to "
            f"{SCHEMA_VERSION}. Upgrade crystalmon."
        )
    for key, (words, fits) in _INFO.items():
        if key in info and not fits(info[key]):
            wrong = info.pop(key)
            warnings.warn(
                f"{file}: {key} must be {words}, got {wrong!r:.60}; it is left out.", stacklevel=4
            )
    return info


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_stages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and type(each.get("step")) is int and type(each.get("name")) is str
        for each in value
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, dict)
        and all(
            isinstance(part, list) and all(isinstance(text, str) for text in part)
            for part in each.values()
        )
        for each in value.values()
    )


_INFO: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("suite", "suite_hash", "reference", "reference_model", "model", "trainer", "method"),
        ("a text", _is_text),
    ),
    **dict.fromkeys(("config", "suite_forms", "training", "versions"), ("a mapping", _is_mapping)),
    "max_steps": ("a whole number", lambda value: type(value) is int),
    "stages": ("a list of stages, each with a step and a name", _is_stages),
    "suite_texts": ("prompts and choices by task", _is_texts),
}
"""By key of `run.json`: what it must be, in words, and whether a value is."""
