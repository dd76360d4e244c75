"""Reading a run folder back, also while it grows."""

from __future__ import annotations

import gc
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from crystalmon.metrics.catalogue import BRIEF
from crystalmon.runs.files import DOUBT_KEY, EVENTS_FILE, RECORDS_FILE, RESUME_KEY, RUN_FILE
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.notebook import curve_svg, number, table_html
from crystalmon.runs.records import LARGE, SCHEMA_VERSION, Event, ProbeRecord, number_value
from crystalmon.suites.checks import harmless

_Line = TypeVar("_Line", ProbeRecord, Event)


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
    """

    folder: Path
    info: Mapping[str, Any]
    records: tuple[ProbeRecord, ...] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    superseded: int = 0
    doubtful: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The output folder's name; with the run folder's own, if that is a second callback's."""
        folder = self.folder.resolve()
        parent = folder.parent.name
        return harmless(parent if folder.name == DEFAULT_NAME else f"{parent}/{folder.name}")

    @property
    def doubt(self) -> str:
        """A sentence that names the probes that may be wrong; empty if there are none."""
        if not self.doubtful:
            return ""
        first, last = self.doubtful[0], self.doubtful[-1]
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        return (
            f"What {self.name} found at {steps} may be wrong: the way in which it was scored was "
            "found later not to give the model's own answers."
        )

    def series(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One metric over the run, of the suite or of a task.

        Returns:
            steps [S], int; values [S], float, NaN where a probe does not have the metric.
        """
        steps = np.array([record.step for record in self.records], dtype=np.int64)
        return steps, self._values("metrics", task, key, np.nan)

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
        title = f"{self.name}: {last.phase} at step {last.step}, {len(self.records)} probes"
        curves = table_html(title, ["metric", "", "first", "last"], rows)
        suite = [event for event in self.events if event.task is None]
        if not suite:
            return curves
        told = [[str(e.step), e.kind.replace("_", " "), e.message] for e in suite]
        return curves + table_html("what happened", ["step", "event", ""], told)


def read_run(path: str | Path, *, metrics: Set[str] | None = None) -> Run:
    """Read a run folder back.

    A line that cannot be read, such as the last one of a run that was killed, or that does not
    fit the others, is left out with a warning that names it; so is what `run.json` must not hold.
    Of the same step twice, the later line counts. Control characters come back spelled out.

    Args:
        path: an output folder, or the `crystalmon` folder in it.
        metrics: the keys to keep, without their intervals; all, with them, if None. Of a long run
            the metrics take most of the memory.

    Raises:
        FileNotFoundError: if there is no run; the message says what is missing.
        ValueError: if `run.json` is damaged, or a newer crystalmon wrote it.
    """
    return RunReader(path, metrics=metrics).read()


class RunReader:
    """Reads a run as `read_run` does while it grows: `read` parses what is new since the last."""

    def __init__(self, path: str | Path, *, metrics: Set[str] | None = None) -> None:
        self.folder = _find_folder(Path(path))
        parse = _record if metrics is None else lambda data: _reduced(_record(data), metrics)
        self._records = _LineFile(self.folder / RECORDS_FILE, parse, lambda record: record.step)
        self._events = _LineFile(
            self.folder / EVENTS_FILE,
            _event,
            lambda event: (event.step, event.kind, event.task),
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
        return Run(
            self.folder,
            info,
            records=tuple(records[step] for step in sorted(records)),
            events=tuple(event for event in by_step if event.step in records),
            superseded=self._records.count - len(records) - len(odd),
            doubtful=tuple(sorted(self._records.doubtful & records.keys())),
        )


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


def _parse_json(text: bytes) -> Any:
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    """Python's own have no bound, and most of what takes numbers has."""
    if abs(number := int(digits)) >= LARGE:
        raise ValueError(f"a whole number must be below {LARGE}, got {digits:.60}.")
    return number


def _record(data: Any) -> ProbeRecord:
    record = ProbeRecord.from_json(data)
    if all(map(str.isprintable, record.tasks)):
        return record
    return replace(record, tasks={harmless(name): task for name, task in record.tasks.items()})


def _reduced(record: ProbeRecord, keys: Set[str]) -> ProbeRecord:
    """With these metrics alone, and no intervals."""

    def kept(metrics: Mapping[str, float]) -> dict[str, float]:
        return {key: value for key, value in metrics.items() if key in keys}

    tasks = {n: replace(t, metrics=kept(t.metrics), ci={}) for n, t in record.tasks.items()}
    return replace(record, metrics=kept(record.metrics), ci={}, tasks=tasks)


def _event(data: Any) -> Event:
    return Event.from_json(harmless(data))


def _of_other_shape(records: Mapping[int, ProbeRecord]) -> dict[int, str]:
    """By step, the records that have other tasks than most, or other shapes: what differs."""
    tables = {step: dict(record.tasks) for step, record in records.items()}
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


class _LineFile(Generic[_Line]):
    """A file of JSON lines that grows.

    Args:
        file: it need not be there yet.
        parse: makes a line's content of its JSON.
        key: of two lines with the same one, the later counts.

    Attributes:
        count: of all lines read, also those that no longer count.
        doubtful: the keys of lines that a later marker puts in doubt.
    """

    def __init__(
        self, file: Path, parse: Callable[[Mapping[str, Any]], _Line], key: Callable[[_Line], Any]
    ) -> None:
        self._file, self._parse, self._key = file, parse, key
        self._inode = 0
        self._start_over()

    def _start_over(self) -> None:
        self._position = self._line = self.count = 0
        self._kept: dict[Any, _Line] = {}
        self._lines: dict[Any, int] = {}
        self.doubtful: set[Any] = set()

    def read(self, growing: bool) -> dict[Any, _Line]:
        """Take up the new lines (see `RunReader.read`); return all that count, by key."""
        if not self._file.exists():
            self._start_over()
            return self._kept
        with self._file.open("rb") as handle:
            status = os.fstat(handle.fileno())
            if status.st_size < self._position or status.st_ino != self._inode:
                self._start_over()  # another file lies here now
            self._inode = status.st_ino
            handle.seek(self._position)
            # bytes: a message may hold characters that text mode takes for line ends
            for line in handle:
                if growing and not line.endswith(b"\n"):
                    break
                self._position += len(line)
                self._line += 1
                if not line.strip():
                    continue
                try:
                    self._take(_parse_json(line))
                except (ValueError, RecursionError) as error:
                    self._warn(self._line, str(error))
        return self._kept

    def leave_out(self, key: Any, why: str) -> None:
        """Warn that the line with this key does not count."""
        self._warn(self._lines[key], why)

    def _warn(self, line: int, why: str) -> None:
        told = harmless(f"{self._file}, line {line} cannot be read and is left out: {why}")
        warnings.warn(told.rstrip(".") + ".", stacklevel=5)

    def _take(self, data: Any) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"it must be a mapping, got {data!r:.60}.")
        if RESUME_KEY in data:
            step = _marked(data, RESUME_KEY)
            self._kept = {key: line for key, line in self._kept.items() if line.step <= step}
            self.doubtful &= self._kept.keys()
        elif DOUBT_KEY in data:
            step = _marked(data, DOUBT_KEY)
            self.doubtful |= {key for key, line in self._kept.items() if line.step > step}
        else:
            line = self._parse(data)
            key = self._key(line)
            self._kept[key], self._lines[key] = line, self._line
            self.doubtful.discard(key)
            self.count += 1


def _marked(data: Mapping[str, Any], key: str) -> int:
    """The step of a marker; see `files.RESUME_KEY` and `files.DOUBT_KEY`."""
    if type(step := data[key]) is not int:
        raise ValueError(f"{key} must be a step, got {step!r:.60}.")
    return step


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
        text = harmless(_parse_json(file.read_bytes()))
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
