"""What an experiment has found: headline figures with intervals, and all that is behind them.

Plain data: reading a result needs neither torch nor the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.records import json_value, number_value

RESULT_SCHEMA = 1


@dataclass(frozen=True)
class Estimate:
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

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: what is not finite as `json_value` writes it."""
        return json_value({"value": self.value, "low": self.low, "high": self.high})


@dataclass(frozen=True)
class Result:
    """What one experiment has found on one model.

    Args:
        experiment: its name, such as `landscape`.
        settings: all that determines the result beside the model: a repetition with the same
            settings on the same model gives the same result.
        models: what was measured, by role: `model`, and `base` where one takes part.
        estimates: the headline figures, which trackers log, by key.
        detail: all that the table and the figure show; JSON values, and numbers that are not
            finite.
        step: the training step, if it was measured inside training.
        seconds: what it took.
    """

    experiment: str
    settings: Mapping[str, Any]
    models: Mapping[str, str | None]
    estimates: Mapping[str, Estimate]
    detail: Mapping[str, Any] = field(repr=False)
    step: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values only."""
        return {
            "schema": RESULT_SCHEMA,
            "experiment": self.experiment,
            "settings": json_value(dict(self.settings)),
            "models": dict(self.models),
            "step": self.step,
            "seconds": self.seconds,
            "estimates": {key: value.to_json() for key, value in self.estimates.items()},
            "detail": json_value(dict(self.detail)),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`.

        Raises:
            ValueError: if it is of a newer schema, or no result.
        """
        if not isinstance(value, Mapping) or "experiment" not in value:
            raise ValueError(
                f"a result must be a JSON object with 'experiment', got {value!r:.60}."
            )
        if value.get("schema", 0) > RESULT_SCHEMA:
            raise ValueError(
                f"a result's schema must be at most {RESULT_SCHEMA}, got {value['schema']}. "
                "Install the crystalmon that wrote it, or a newer one."
            )
        _check_kinds(value)
        return cls(
            experiment=value["experiment"],
            settings=value["settings"],
            models=value["models"],
            estimates={key: _estimate(each) for key, each in value["estimates"].items()},
            detail=number_value(value["detail"]),
            step=value.get("step"),
            seconds=value.get("seconds"),
        )


def _check_kinds(value: Mapping[str, Any]) -> None:
    for key in ("settings", "models", "estimates", "detail"):
        if not isinstance(value.get(key), Mapping):
            raise ValueError(f"a result's {key} must be an object, got {value.get(key)!r:.60}.")
    for key, each in value["estimates"].items():
        if not isinstance(each, Mapping):
            raise ValueError(f"a result's estimate {key!r} must be an object, got {each!r:.60}.")
    if not isinstance(value["experiment"], str):
        raise ValueError(f"a result's experiment must be a name, got {value['experiment']!r:.60}.")
    if not isinstance(value.get("step"), int | None):
        raise ValueError(f"a result's step must be a whole number, got {value['step']!r:.60}.")


def _estimate(value: Mapping[str, Any]) -> Estimate:
    ends = [value.get(key) for key in ("value", "low", "high")]
    return Estimate(*(math.nan if end is None else float(end) for end in ends))


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

    Other JSON files may lie there: a result says by its key `experiment` that it is one, and is
    named `<experiment>` or `<experiment>-<step>`.

    Raises:
        ValueError: for a JSON file that cannot be read, and see `read_result`.
    """
    found = [read_result(file) for file in sorted(folder.glob("*.json")) if _is_result(file)]
    return sorted(found, key=lambda result: (result.experiment, result.step or 0))


def _is_result(file: Path) -> bool:
    """Whether a file says that it is the result that its name stands for, or is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    if not isinstance(content, dict) or not isinstance(content.get("experiment"), str):
        return False
    step = content.get("step")
    return file.stem == (
        content["experiment"] if step is None else f"{content['experiment']}-{step}"
    )
