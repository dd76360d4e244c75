"""The finished parts of an experiment, kept in a file so that an interrupted one goes on.

`<experiment>-<mark>.parts.jsonl` grows by a line with each finished part. The mark stands for the
settings and the models, so that a command with others has a file of its own and leaves this one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.json_values import json_value, number_value

MARK = 8
"""Hexadecimal digits of a mark."""


def parts_file(folder: Path, name: str, of: Mapping[str, Any]) -> Path:
    """Where an experiment with these settings and models keeps its finished parts."""
    return folder / f"{name}-{_hash_of(of)[:MARK]}.parts.jsonl"


class Parts:
    """The finished parts of one experiment, by key.

    Args:
        file: where they are kept, a line each; None keeps them in memory.
        of: what they belong to, JSON-ready: the settings, the models and their marks. A file of
            anything else is begun anew, and a torn line is left out.
        progress: show a bar.
    """

    def __init__(
        self, file: Path | None = None, of: Mapping[str, Any] | None = None, progress: bool = False
    ) -> None:
        self._file, self._progress = file, progress
        self._hash = _hash_of(of or {})
        self._values: dict[str, Any] = {}
        if file is not None:
            self._read(file)

    def _read(self, file: Path) -> None:
        header = json.dumps({"of": self._hash}).encode()
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
        if lines[:1] != [header]:
            with explained(file.parent, f"take {file.name}"):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, header + b"\n")
            return
        for line in lines[1:]:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                self._values.update(number_value(found))

    @property
    def mark(self) -> str:
        """Short, for names of files: the same for the same settings and models alone."""
        return self._hash[:MARK]

    def __contains__(self, key: object) -> bool:
        """Whether this part is finished."""
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        """A finished part."""
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a part: JSON values, and numbers that are not finite. On disk when this returns."""
        value = json_value(value)
        self._values[key] = number_value(value)
        if self._file is None:
            return
        line = json.dumps({key: value}, allow_nan=False, ensure_ascii=False)
        with (
            explained(self._file.parent, f"take {self._file.name}"),
            self._file.open("ab", buffering=0) as handle,
        ):
            # on a line of its own, also behind one that was torn
            handle.write(b"\n" + line.encode() + b"\n")
            os.fsync(handle.fileno())

    def missing(self, keys: Iterable[str], what: str) -> Iterator[str]:
        """The keys whose parts are not finished, with a bar over all of them."""
        hidden = not self._progress
        for key in tqdm(list(keys), f"crystalmon {what}", leave=False, delay=1.0, disable=hidden):
            if key not in self:
                yield key

    def remove(self) -> None:
        """Remove the file: the result is written."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _hash_of(of: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json_value(dict(of)), sort_keys=True).encode()).hexdigest()
