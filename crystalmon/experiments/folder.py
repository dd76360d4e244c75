"""Results on disk, and the finished parts of an experiment that has been interrupted.

`<folder>/<experiment>.json` is written whole or not at all; `<experiment>-<mark>.parts.jsonl` grows
by a line with each finished part, and is removed when the result is there. The mark stands for the
settings and the models, so that a command with others finds its own parts and keeps these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from crystalmon.experiments import ON_MODELS
from crystalmon.experiments.result import Result
from crystalmon.records import json_value, number_value
from crystalmon.store import explained, write_whole

KNOWN = frozenset({*ON_MODELS, "sharpness"})
"""The experiments whose results are read again."""

MARK = 8
"""Hexadecimal digits of a mark."""


def write_result(folder: Path, result: Result) -> Path:
    """Write `<folder>/<experiment>.json`; `<experiment>-<step>.json` if it has a step.

    Raises:
        RunFolderError: if the folder cannot take it.
    """
    name = result.experiment if result.step is None else f"{result.experiment}-{result.step}"
    file = folder / f"{name}.json"
    text = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    with explained(folder, f"take {file.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode() + b"\n")
    return file


def read_result(file: Path) -> Result:
    """A result from its file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, no result, or of a newer schema; the message names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a result of an experiment, found nothing there.")
    try:
        return Result.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} must be a result of an experiment: {error}") from error


def read_results(folder: Path) -> list[Result]:
    """All results in a folder, by experiment and step; empty if there is none.

    Other JSON files may lie there: a result's name is `<experiment>` or `<experiment>-<step>`.
    A file with the name of a known experiment that is no result is damaged.

    Raises:
        ValueError: see `read_result`.
    """
    files = [file for file in sorted(folder.glob("*.json")) if _is_result(file)]
    found = [read_result(file) for file in files]
    return sorted(found, key=lambda result: (result.experiment, result.step or 0))


def _is_result(file: Path) -> bool:
    """Whether a file that says what experiment it is of says what its name does."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _known_name(file) or re.fullmatch(r".+-\d+", file.stem) is not None
    if not isinstance(content, dict) or not isinstance(content.get("experiment"), str):
        return _known_name(file)
    step = content.get("step")
    return file.stem == (
        content["experiment"] if step is None else f"{content['experiment']}-{step}"
    )


def _known_name(file: Path) -> bool:
    return re.sub(r"-\d+$", "", file.stem) in KNOWN


def parts_file(folder: Path, name: str, of: Mapping[str, Any]) -> Path:
    """Where an experiment with these settings and models keeps its finished parts."""
    return folder / f"{name}-{_hash_of(of)[:MARK]}.parts.jsonl"


def _hash_of(of: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json_value(dict(of)), sort_keys=True).encode()).hexdigest()


class Parts:
    """The finished parts of one experiment, by key, so that an interrupted one goes on.

    Args:
        file: where they are kept, a line each; None keeps them in memory.
        of: what they belong to, JSON-ready: the settings, the models and their marks. A file with
            parts of something else is begun anew, and a torn line is left out.
        progress: show a bar.
    """

    def __init__(
        self, file: Path | None = None, of: Mapping[str, Any] | None = None, progress: bool = False
    ) -> None:
        self._file, self._progress = file, progress
        self._header = _hash_of(of or {})
        self._values: dict[str, Any] = {}
        if file is not None:
            self._take_up(file)

    def _take_up(self, file: Path) -> None:
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
        if not lines or lines[0] != json.dumps({"of": self._header}).encode():
            with explained(file.parent, f"take {file.name}"):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps({"of": self._header}).encode() + b"\n")
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
        return self._header[:MARK]

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
        keys = list(keys)
        with tqdm(
            total=len(keys),
            desc=f"crystalmon {what}",
            leave=False,
            delay=1.0,
            disable=not self._progress,
        ) as bar:
            for key in keys:
                if key not in self._values:
                    yield key
                bar.update()

    def remove(self) -> None:
        """Remove the file: the result is written."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
