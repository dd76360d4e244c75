"""Reading a run folder back, also while it grows."""

from __future__ import annotations

import gc
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from crystalmon.metrics.catalogue import BRIEF
from crystalmon.runs.files import EVENTS_FILE, LOG_FILE, RECORDS_FILE, RUN_FILE
from crystalmon.runs.line_file import LineFile, parse_json
from crystalmon.runs.names import DEFAULT_NAME, OVERHEAD_KEY
from crystalmon.runs.notebook import curve_svg, number, table_html
from crystalmon.runs.places import counted, place, told
from crystalmon.runs.records import (
    SCHEMA_VERSION,
    Event,
    ProbeRecord,
    TaskRecord,
    number_value,
)
from crystalmon.runs.trainer_log import LogRow
from crystalmon.suites.checks import harmless


@dataclass(frozen=True)
class Run:
    """A run folder as read back.

    Args:
        folder: the run folder itself.
        info: the content of `run.json`.
        records: one per probe, by step.
        events: of those probes, by step, in the order in which they were raised.
        superseded: the number of probes on file that a later resume, or a later probe of the
            same step, has replaced.
        doubtful: steps whose probes may be wrong, since a later proof of how the model was run has
            failed.
        read_log: reads the trainer's log; see `trainer_log`.
    """

    folder: Path
    info: Mapping[str, Any]
    records: Sequence[ProbeRecord] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    superseded: int = 0
    doubtful: tuple[int, ...] = ()
    read_log: Callable[[], tuple[LogRow, ...]] = field(default=tuple, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The output folder's name, with the view or suite of a second run: `sft (template)`.

        A scan, whose folder is its own, is `runs/olmo`.
        """
        folder = self.folder.resolve()
        name, parent = folder.name, folder.parent.name
        if name == DEFAULT_NAME:
            return harmless(parent)
        if name.startswith(f"{DEFAULT_NAME}-") and "stages" not in self.info:
            return harmless(f"{parent} ({name.removeprefix(f'{DEFAULT_NAME}-')})")
        return harmless(f"{parent}/{name}")

    @cached_property
    def trainer_log(self) -> tuple[LogRow, ...]:
        """What the trainer itself has logged, by step; read when it is first asked for.

        Empty for a scan, and for a run of a version that did not keep it.
        """
        return self.read_log()

    @property
    def share(self) -> float | None:
        """Of the run's time, what monitoring took, up to the last probe while it trains.

        None without a probe.
        """
        at_end = self.info.get(OVERHEAD_KEY)
        if isinstance(at_end, float):
            return at_end
        return self.records[-1].share if self.records else None

    @property
    def unobserved(self) -> tuple[int, int] | None:
        """The first and the last step after the last probe; None if that was at the end."""
        end, last = self.info.get("max_steps"), self.records[-1].step if self.records else -1
        return (last + 1, end) if isinstance(end, int) and last < end else None

    @property
    def doubt(self) -> str:
        """A sentence that names the probes that may be wrong; empty if there are none."""
        if not self.doubtful:
            return ""
        first, last = self.doubtful[0], self.doubtful[-1]
        steps = f"steps {first} to {last}"
        if first == last or self.stages:
            steps = " to ".join(dict.fromkeys((self.place(first), self.place(last))))
        return (
            f"What {self.name} found at {steps} may be wrong: the way in which it was scored was "
            "found later not to give the model's own answers."
        )

    @property
    def stages(self) -> dict[int, str]:
        """Of a scan, by step, the names of its stages; empty for a training."""
        return {stage["step"]: stage["name"] for stage in self.info.get("stages", ())}

    def place(self, step: int) -> str:
        """What a step is called: `step 3`, or in a scan the stage's name."""
        return place(step, self.stages)

    def series(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One metric over the run, of the suite or of a task.

        Returns:
            steps [S], int; values [S], float, NaN where a probe does not have the metric.
        """
        steps = np.array([record.step for record in self.records], dtype=np.int64)
        return steps, self._values("metrics", task, key, np.nan)

    def log_series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """One number of the trainer's log, such as `loss`, where it was logged.

        Returns:
            steps [S], int; values [S], float.
        """
        found = [(row.step, row.values[key]) for row in self.trainer_log if key in row.values]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def intervals(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The 95% interval of one metric over the run: low [S] and high [S], NaN where missing."""
        ends = self._values("ci", task, key, (np.nan, np.nan)).reshape(-1, 2)
        return ends[:, 0], ends[:, 1]

    def _values(self, attribute: str, task: str | None, key: str, missing: Any) -> np.ndarray:
        """One entry of each probe's `metrics` or `ci`, the suite's or a task's."""
        holders = [each if task is None else each.tasks.get(task) for each in self.records]
        found = [getattr(each, attribute, {}).get(key, missing) for each in holders]
        return np.array(found, dtype=np.float64)

    def _repr_html_(self) -> str:
        """What a notebook shows: where the run stands, each main metric as a curve, its events."""
        if not self.records:
            return table_html(f"{self.name}: no probe yet", [], [])
        last = self.records[-1]
        rows = [
            [
                metric.label,
                curve_svg(self.series(metric.key)[1].tolist()),
                number(self.records[0].metrics.get(metric.key)),
                number(last.metrics[metric.key]),
            ]
            for metric in BRIEF
            if metric.key in last.metrics
        ]
        probes = counted(len(self.records), "probe")
        title = f"{self.name}: {last.phase} at {self.place(last.step)}, {probes}"
        curves = table_html(title, ["metric", "", "first", "last"], rows)
        suite = [event for event in self.events if event.task is None]
        if not suite:
            return curves
        rows = [
            [self.place(e.step), e.kind.replace("_", " "), told(e.message, self.stages)]
            for e in suite
        ]
        return curves + table_html("what happened", ["when", "event", ""], rows)


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
        FileNotFoundError: if there is no run; the message says what is missing.
        ValueError: if `run.json` is damaged, or a newer crystalmon wrote it.
    """
    return RunReader(path, stream=stream).read()


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
        raise FileNotFoundError(f"no crystalmon run in {path}: there is no such folder.")
    found = path / DEFAULT_NAME if (path / DEFAULT_NAME).is_dir() else path
    missing = f"{found / RUN_FILE} is missing" if found.is_dir() else "it is not a folder"
    raise FileNotFoundError(
        f"no crystalmon run in {path}: {missing}. "
        "Name the output_dir of a training run that had the CrystalCallback."
    )


_WORDS = ("config", "model", "stages", "suite", "suite_texts")
"""In `run.json`: names that users chose. There `NaN` is a word, not a number."""


def _read_info(file: Path) -> dict[str, Any]:
    try:
        text = harmless(parse_json(file.read_bytes()))
        info = number_value(text) | {key: text[key] for key in _WORDS if key in text}
        version = int(info["schema_version"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{file} must be JSON with a schema_version, and cannot be read "
            f"({type(error).__name__}: {error})."
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
    **dict.fromkeys(("config", "training", "versions"), ("a mapping", _is_mapping)),
    "max_steps": ("a whole number", lambda value: type(value) is int),
    "stages": ("a list of stages, each with a step and a name", _is_stages),
    "suite_texts": ("prompts and choices by task", _is_texts),
}
"""By key of `run.json`: what it must be, in words, and whether a value is."""
