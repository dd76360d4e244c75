"""What one probe found and the events that it raised: plain data, in memory and on disk."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, ItemsView, Mapping, Sequence
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
    "entropy_collapse",
    "free_energy_jump",
)

LIMIT_EVENT = "_limit"
"""What the kind of an event ends with that a metric's limit raises, after the metric's key."""

PHASE_EVENT_KINDS = ("nucleation_onset", "nucleation_complete", "melting")
"""The kinds by which the suite enters a phase."""
SUITE_EVENT_KINDS = (*PHASE_EVENT_KINDS, "free_energy_jump")
"""The kinds that the suite raises too; tasks alone raise the others but those of limits, which
are the suite's."""

Interval = tuple[float, float]

LARGE = 2**63
"""No whole number on file reaches this."""

ON_SIMPLEX = 2e-5
"""How far the sum of a distribution may lie from 1."""


def _check_phase(phase: object) -> None:
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r:.60}.")


class Stored:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, ready for JSON; see `json_value` for non-finite numbers."""
        return json_value(self)


@dataclass(frozen=True)
class TaskRecord(Stored):
    """What one probe found on one task.

    Args:
        q: [p, C] choice distributions, each row renormalised by its coverage, to 8 significant
            digits: what is stored is what the detector saw, so a replay repeats it.
        metrics: the task-level metrics, by key.
        ci: 95% bootstrap intervals over prompts, by metric key.
        phase: one of `PHASES`.
        seed: index of the base prompt that the detector holds for the seed, or None.
        seed_set: the base prompts that the answers may end on, the likeliest first, and None in it
            for none of them; see `phases.seed_set`. Empty before the onset.
        view: how the prompts were rendered: `raw`, `chat`, or a template.
        asked: the p prompts that q's rows answer, ascending; None if all P were asked.
    """

    q: np.ndarray
    metrics: Mapping[str, float]
    ci: Mapping[str, Interval]
    phase: str
    seed: int | None
    view: str
    asked: tuple[int, ...] | None = None
    seed_set: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no phase, and prompts that are not those of `q`'s rows."""
        _check_phase(self.phase)
        if self.asked is not None and len(self.asked) != len(self.q):
            raise ValueError(
                f"asked must name a prompt for each row of q, got {len(self.asked)} for "
                f"{len(self.q)} rows."
            )

    @property
    def rows(self) -> np.ndarray:
        """[p] the prompts that q's rows answer."""
        return np.arange(len(self.q)) if self.asked is None else np.array(self.asked)

    def leading(self, choices: Sequence[str]) -> str:
        """The likeliest answer over the wordings asked, with its probability: `heads 87%`."""
        leader = self.leader(choices)
        return f"{leader} {self.q.mean(axis=0).max():.0%}" if leader else "–"

    def leader(self, choices: Sequence[str]) -> str:
        """The likeliest answer over the wordings asked; empty if their answers are unknown."""
        means = self.q.mean(axis=0)
        return choices[int(np.argmax(means))] if np.isfinite(means).all() else ""

    def fits(self, prompts: float, choices: int) -> bool:
        """Whether this may be a probe of a task with P prompts and C choices."""
        rows = len(self.q) if self.asked is None else prompts
        return (rows, self.q.shape[1]) == (prompts, choices) and self.rows[-1] < prompts

    def whole(self, prompts: int) -> np.ndarray:
        """[P, C] with NaN for prompts that were not asked."""
        table = np.full((prompts, self.q.shape[1]), np.nan)
        table[self.rows] = self.q
        return table

    @classmethod
    def from_json(cls, data: Any) -> TaskRecord:
        """Inverse of `to_json`.

        Raises:
            ValueError: if a part is missing or is not what it must be.
        """
        get = _parts("a task", data)
        q, seed, asked = _read_table("q", get("q")), get("seed"), _read_asked(data.get("asked"))
        prompts = len(q) if asked is None else LARGE
        if seed is not None and not (type(seed) is int and 0 <= seed < prompts):
            raise ValueError(f"seed must be one of {len(q)} prompts or null, got {seed!r:.60}.")
        members = data.get("seed_set", [])  # earlier versions did not write it
        if not isinstance(members, list) or not all(
            each is None or (type(each) is int and 0 <= each < prompts) for each in members
        ):
            raise ValueError(
                f"seed_set must list some of {len(q)} prompts or null, got {members!r:.60}."
            )
        return cls(
            q=q,
            metrics=_read_numbers("metrics", get("metrics")),
            ci=_read_intervals("ci", get("ci")),
            phase=get("phase"),
            seed=seed,
            view=_read_text("view", get("view")),
            asked=asked,
            seed_set=tuple(members),
        )


@dataclass(frozen=True)
class ProbeRecord(Stored):
    """One probe: the whole suite, scored once at one training step.

    Args:
        step: optimizer steps done.
        epoch: the trainer's epoch, or None outside a trainer.
        time: Unix time at the probe's end, in seconds.
        seconds: wall time that this probe took.
        share: fraction of the wall time since training began (or was resumed) that monitoring
            has taken, scoring the base included; the metric `probe_share`.
        phase: the suite's phase.
        metrics: suite-level metrics; see `answers.mean_over_tasks`.
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
        if not 0 <= operator.index(self.step) < LARGE:
            raise ValueError(f"step must be a whole number from 0, got {self.step!r}.")
        _check_phase(self.phase)

    @property
    def wordings(self) -> int | None:
        """How many wordings of a task were asked, where these are not all; None for all."""
        partial = [len(task.asked) for task in self.tasks.values() if task.asked is not None]
        return max(partial, default=None)

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
    def from_json(cls, data: Any) -> ProbeRecord:
        """Inverse of `to_json`.

        Raises:
            ValueError: if a part is missing or is not what it must be.
        """
        get = _parts("a record", data)
        epoch = get("epoch")
        return cls(
            step=_read_step("step", get("step")),
            epoch=None if epoch is None else _read_number("epoch", epoch),
            time=_read_number("time", get("time")),
            seconds=_read_number("seconds", get("seconds")),
            share=_read_number("share", get("share")),
            phase=get("phase"),
            metrics=_read_numbers("metrics", get("metrics")),
            ci=_read_intervals("ci", get("ci")),
            tasks={name: _read_task(name, each) for name, each in _items("tasks", get("tasks"))},
        )


def _read_task(name: str, data: Any) -> TaskRecord:
    try:
        return TaskRecord.from_json(data)
    except ValueError as error:
        raise ValueError(f"task {name!r}: {error}") from error


@dataclass(frozen=True)
class Event(Stored):
    """A phase signal.

    Args:
        kind: one of `EVENT_KINDS`, or a metric's key with `LIMIT_EVENT`.
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
    def from_json(cls, data: Any) -> Event:
        """Inverse of `to_json`.

        Raises:
            ValueError: if a part is missing or is not what it must be.
        """
        get = _parts("an event", data)
        task = get("task")
        return cls(
            kind=_read_text("kind", get("kind")),
            step=_read_step("step", get("step")),
            task=None if task is None else _read_text("task", task),
            evidence=number_value(dict(_items("evidence", get("evidence")))),
            message=_read_text("message", get("message")),
        )


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_value(value: Any) -> Any:
    """Make a nested value strict JSON: non-finite floats become their protobuf-JSON strings.

    JSON has no NaN, and null would hide which of the three it was.
    """
    # a record has thousands of them, nearly all of them finite floats
    if type(value) is float and math.isfinite(value):
        return value
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist() if _is_plain(value) else json_value(value.tolist())
    if isinstance(value, np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _is_plain(table: np.ndarray) -> bool:
    """Whether JSON can hold all of it as numbers."""
    return table.dtype.kind in "fiu" and bool(np.isfinite(table).all())


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


# --- what a line of JSON must hold; a message says what is wrong, and where ----------------------


def _items(what: str, data: Any) -> ItemsView[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a mapping, got {data!r:.60}.")
    return data.items()


def _parts(what: str, data: Any) -> Callable[[str], Any]:
    """Gives each part of a mapping by its key."""
    _items(what, data)

    def get(key: str) -> Any:
        if key not in data:
            raise ValueError(f"{what} must have a {key}, got none.")
        return data[key]

    return get


def _read_text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, got {value!r:.60}.")
    return value


def _read_step(what: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} must be a whole number from 0, got {value!r:.60}.")
    return value


def _read_asked(value: Any) -> tuple[int, ...] | None:
    """Ascending indices of prompts; None, as in records of earlier versions, for all."""
    if value is None:
        return None
    whole = type(value) is list and all(type(each) is int for each in value)
    if not whole or value != sorted({each for each in value if 0 <= each < LARGE}) or not value:
        raise ValueError(f"asked must be ascending indices of prompts, got {value!r:.60}.")
    return tuple(value)


def _read_number(what: str, value: Any) -> float:
    if type(value) is str:
        value = _NON_FINITE.get(value, value)
    if type(value) in (float, int):
        return value
    raise ValueError(f"{what} must be a number, got {value!r:.60}.")


def _read_numbers(what: str, data: Any) -> dict[str, float]:
    return {
        key: value if type(value) is float else _read_number(f"{what} {key!r}", value)
        for key, value in _items(what, data)
    }


def _read_intervals(what: str, data: Any) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for key, ends in _items(what, data):
        if type(ends) is not list or len(ends) != 2:
            raise ValueError(f"{what} {key!r} must be two numbers, got {ends!r:.60}.")
        low, high = ends
        if not type(low) is type(high) is float:
            low, high = (_read_number(f"{what} {key!r}", end) for end in ends)
        found[key] = low, high
    return found


def _read_table(what: str, rows: Any) -> np.ndarray:
    """[P, C] distributions, or rows that are not finite."""
    try:
        table = np.array(rows)
        if table.dtype != np.float64:  # whole numbers, names of what is not finite, or no numbers
            numbers = [[_read_number(what, value) for value in row] for row in rows]
            table = np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{what} must be a table of numbers, got {rows!r:.60}.") from error
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{what} must be of shape [P, C], got shape {table.shape}.")
    with np.errstate(all="ignore"):  # a row of NaN fits: a broken model's answers
        outside = table.min() < 0 or (np.abs(table.sum(axis=1) - 1.0) > ON_SIMPLEX).any()
    if outside:
        raise ValueError(f"{what} must have rows on the simplex, got {rows!r:.60}.")
    return table
