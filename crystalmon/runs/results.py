"""What an experiment found, on disk as `<experiment>.json`, or `<experiment>-<step>.json`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from crystalmon.runs.files import explained, json_bytes, write_whole
from crystalmon.runs.json_values import Stored, number_value
from crystalmon.suites.checks import harmless

RESULT_SCHEMA = 1


@dataclass(frozen=True)
class Estimate(Stored):
    """One figure.

    Args:
        value: the estimate.
        low, high: its 95% interval; NaN where there is none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """As a table shows it: the figure, and its interval if it has one."""
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Result(Stored):
    """What one experiment has found on one model.

    Args:
        experiment: its name, such as `landscape`.
        settings: all that determines the result beside the model.
        models: what was measured, by role: `model`, and `base` where one takes part.
        estimates: the headline figures, which trackers log, by key.
        detail: all that the table and the figure show: JSON values, and non-finite numbers.
        step: the training step, if it was measured inside training.
        seconds: wall time that it took.
    """

    experiment: str
    settings: Mapping[str, Any]
    models: Mapping[str, str | None]
    estimates: Mapping[str, Estimate]
    detail: Mapping[str, Any] = field(repr=False)
    step: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Its schema and fields, ready for JSON."""
        return {"schema": RESULT_SCHEMA, **super().to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`.

        Raises:
            ValueError: if it is of a newer schema, or no result.
        """
        if not isinstance(value, Mapping) or "experiment" not in value:
            raise ValueError(f"it must be a JSON object with 'experiment', got {value!r:.60}.")
        if value.get("schema", 0) > RESULT_SCHEMA:
            raise ValueError(
                f"a result's schema must be at most {RESULT_SCHEMA}, got {value['schema']}. "
                "Install the crystalmon that wrote it, or a newer one."
            )
        _check_kinds(value)
        own: dict[str, Any] = {each.name: value.get(each.name) for each in fields(cls)}
        own["detail"] = number_value(value["detail"])
        own["estimates"] = {
            key: Estimate(**{end: float(number) for end, number in each.items()})
            for key, each in value["estimates"].items()
        }
        return cls(**own)


def _check_kinds(value: Mapping[str, Any]) -> None:
    wanted = dict.fromkeys(("settings", "models", "estimates", "detail"), (Mapping, "an object"))
    wanted |= {"experiment": (str, "a name"), "step": (int | None, "a whole number")}
    for key, (kind, name) in wanted.items():
        if not isinstance(value.get(key), kind):
            raise ValueError(f"a result's {key} must be {name}, got {value.get(key)!r:.60}.")
    for key, each in value["estimates"].items():
        if not isinstance(each, Mapping):
            raise ValueError(f"a result's estimate {key!r} must be an object, got {each!r:.60}.")


def write_result(folder: Path, result: Result) -> Path:
    """Write a result under its own name.

    Raises:
        RunFolderError: if the folder cannot take it.
    """
    file = folder / f"{_stem(result.experiment, result.step)}.json"
    with explained(folder, f"take {file.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json_bytes(result.to_json(), indent=2))
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
        return Result.from_json(harmless(json.loads(file.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} must be a result of an experiment: {error}") from error


def read_results(folder: Path) -> list[Result]:
    """All results in a folder, by experiment and step; empty if there is none.

    Raises:
        ValueError: see `read_result`.
    """
    found = [read_result(file) for file in result_files(folder)]
    return sorted(found, key=lambda result: (result.experiment, result.step or 0))


def result_files(folder: Path) -> list[Path]:
    """The files in a folder that hold a result, or are damaged and may have held one, by name.

    Other JSON may lie there too. A result has the key `experiment` and is called by it; a renamed
    copy does not count. A file that is no JSON may have been a result if it has such a name.
    """
    return [file for file in sorted(folder.glob("*.json")) if _may_be_result(file)]


def _may_be_result(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return re.fullmatch(r"[a-z]+(-\d+)?", file.stem) is not None
    if not isinstance(content, dict) or "experiment" not in content:
        return False
    name = content["experiment"]
    return not isinstance(name, str) or file.stem == _stem(name, content.get("step"))


def _stem(experiment: str, step: int | None) -> str:
    return experiment if step is None else f"{experiment}-{step}"
