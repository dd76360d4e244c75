"""What one probe found and the events that it raised: plain data, in memory and on disk."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from crystalmon.metrics.catalogue import BRIEF, PHASES
from crystalmon.runs.notebook import number, table_html

SCHEMA_VERSION = 1

EVENT_KINDS = (
    "nucleation_onset",
    "nucleation_complete",
    "seed_locked",
    "seedless_collapse",
    "support_leak",
    "recrystallization",
    "melting",
    "format_drift",
    "early_warning",
)

SUITE_EVENT_KINDS = ("nucleation_onset", "nucleation_complete", "melting")
"""The kinds that the suite raises too; tasks alone raise the others."""

Interval = tuple[float, float]


def _check_phase(phase: object) -> None:
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}.")


class Stored:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, ready for JSON; see `json_value` for non-finite numbers."""
        return json_value(self)


@dataclass(frozen=True)
class TaskRecord(Stored):
    """What one probe found on one task.

    Args:
        q: [P, C] choice distributions, each row renormalised by its coverage, to 8 significant
            digits: what is stored is what the detector saw, so a replay repeats it.
        metrics: the task-level metrics, by key.
        ci: 95% bootstrap intervals over prompts, by metric key.
        phase: one of `PHASES`.
        seed: index of the base prompt that the detector holds for the seed, or None.
        view: how the prompts were rendered, `raw` or `chat`.
    """

    q: np.ndarray
    metrics: Mapping[str, float]
    ci: Mapping[str, Interval]
    phase: str
    seed: int | None
    view: str

    def __post_init__(self) -> None:
        """Refuse what is no phase."""
        _check_phase(self.phase)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskRecord:
        """Inverse of `to_json`."""
        return cls(
            # numpy reads the names of non-finite numbers itself, and much faster
            q=np.array(data["q"], dtype=np.float64),
            metrics=number_value(data["metrics"]),
            ci=_intervals(data["ci"]),
            phase=data["phase"],
            seed=data["seed"],
            view=data["view"],
        )


@dataclass(frozen=True)
class ProbeRecord(Stored):
    """One probe: the whole suite, scored once at one training step.

    Args:
        step: optimizer steps done.
        epoch: the trainer's epoch, or None outside a trainer.
        time: Unix time at the probe's end, in seconds.
        seconds: wall time that this probe took.
        share: fraction of the wall time since training began (or was resumed) that went into
            probing, scoring the base included.
        phase: the suite's phase.
        metrics: suite-level metrics, means over tasks.
        ci: 95% bootstrap intervals, by metric key.
        tasks: one `TaskRecord` per task, by name.
    """

    step: int
    epoch: float | None
    time: float
    seconds: float
    share: float
    phase: str
    metrics: Mapping[str, float]
    ci: Mapping[str, Interval]
    tasks: Mapping[str, TaskRecord] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no step or no phase."""
        if not 0 <= operator.index(self.step) < 2**63:
            raise ValueError(f"step must be a whole number from 0, got {self.step!r}.")
        _check_phase(self.phase)

    def _repr_html_(self) -> str:
        """What a notebook shows: the tasks' phases and main metrics."""
        shown = [metric for metric in BRIEF if metric.key in self.metrics]
        rows = [
            [name, task.phase, *(number(task.metrics.get(metric.key)) for metric in shown)]
            for name, task in self.tasks.items()
        ]
        rows.append(["suite", self.phase, *(number(self.metrics[each.key]) for each in shown)])
        head = ["task", "phase", *(metric.label for metric in shown)]
        return table_html(f"step {self.step}: {self.phase}", head, rows)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProbeRecord:
        """Inverse of `to_json`."""
        return cls(
            step=data["step"],
            epoch=number_value(data["epoch"]),
            time=number_value(data["time"]),
            seconds=number_value(data["seconds"]),
            share=number_value(data["share"]),
            phase=data["phase"],
            metrics=number_value(data["metrics"]),
            ci=_intervals(data["ci"]),
            tasks={name: TaskRecord.from_json(task) for name, task in data["tasks"].items()},
        )


def _intervals(ci: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(number_value(ends)) for key, ends in ci.items()}


@dataclass(frozen=True)
class Event(Stored):
    """A phase signal.

    Args:
        kind: one of `EVENT_KINDS`.
        step: the probe at which it was raised.
        task: the task's name, or None for the whole suite.
        evidence: the numbers behind it.
        message: one sentence.
    """

    kind: str
    step: int
    task: str | None
    evidence: Mapping[str, Any]
    message: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Event:
        """Inverse of `to_json`."""
        evidence = number_value(data["evidence"])
        return cls(data["kind"], data["step"], data["task"], evidence, data["message"])


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_value(value: Any) -> Any:
    """Make a nested value strict JSON: non-finite floats become their protobuf-JSON strings.

    JSON has no NaN, and null would hide which of the three it was.
    """
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def number_value(value: Any) -> Any:
    """Inverse of `json_value` on nested values, as JSON is read."""
    # a long run has millions of them, nearly all of them floats
    if isinstance(value, dict):
        return {k: v if type(v) is float else number_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [item if type(item) is float else number_value(item) for item in value]
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    return value
