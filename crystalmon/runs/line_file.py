"""A file of JSON lines, read while it grows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from crystalmon.runs.files import DOUBT_KEY, RESUME_KEY
from crystalmon.runs.json_values import parse_json
from crystalmon.suites.checks import harmless


class _AtStep(Protocol):
    @property
    def step(self) -> int: ...


Line = TypeVar("Line", bound=_AtStep)


class LineFile(Generic[Line]):
    """A file of JSON lines that grows.

    Args:
        file: it need not be there yet.
        parse: makes a line's content of its JSON.
        key: of two lines with the same one, the later counts.

    Attributes:
        count: of all lines read, also those that no longer count.
        doubtful: the keys of lines that a later marker puts in doubt.
        fault: what was told of the first line that cannot be read; empty if all can.
    """

    def __init__(
        self, file: Path, parse: Callable[[Mapping[str, Any]], Line], key: Callable[[Line], Any]
    ) -> None:
        self._file, self._parse, self._key = file, parse, key
        self._inode = 0
        self._start_over()

    def _start_over(self) -> None:
        self._position = self._line = self.count = 0
        self._kept: dict[Any, Line] = {}
        self._places: dict[Any, tuple[int, int]] = {}  # the line's number, and its first byte
        self.doubtful: set[Any] = set()
        self.fault = ""

    def read(self, growing: bool) -> dict[Any, Line]:
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
                start, self._position = self._position, self._position + len(line)
                self._line += 1
                if not line.strip():
                    continue
                try:
                    self._take(parse_json(line), start)
                except (ValueError, RecursionError) as error:
                    self._warn(self._line, str(error))
        return self._kept

    def reread(self, keys: Iterable[Any], parse: Callable[[Any], Line]) -> Iterator[Line]:
        """Read the lines with these keys once more.

        Raises:
            ValueError: if they are no longer there.
        """
        with self._file.open("rb") as handle:
            for key in keys:
                handle.seek(self._places[key][1])
                try:
                    line = parse(parse_json(handle.readline()))
                except (ValueError, RecursionError):
                    line = None
                if line is None or self._key(line) != key:
                    raise ValueError(f"{self._file} was replaced while it was read. Read it again.")
                yield line

    def leave_out(self, key: Any, why: str) -> None:
        """Warn that the line with this key does not count."""
        self._warn(self._places[key][0], why)

    def _warn(self, line: int, why: str) -> None:
        told = harmless(f"{self._file}, line {line} cannot be read and is left out: {why}")
        told = told.rstrip().rstrip(".") + "."
        self.fault = self.fault or told
        warnings.warn(told, stacklevel=5)

    def _take(self, data: Any, start: int) -> None:
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
            self._kept[key], self._places[key] = line, (self._line, start)
            self.doubtful.discard(key)
            self.count += 1


def _marked(data: Mapping[str, Any], key: str) -> int:
    """The step of a marker; see `files.RESUME_KEY` and `files.DOUBT_KEY`."""
    if type(step := data[key]) is not int:
        raise ValueError(f"{key} must be a step, got {step!r:.60}.")
    return step
