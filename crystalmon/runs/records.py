"""What one probe found and the events that it raised: plain data, in memory and on disk."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.metrics.bootstrap import Interval
from crystalmon.metrics.catalogue import BRIEF, PHASES
from crystalmon.runs.json_values import (
    LARGE,
    Stored,
    as_intervals,
    as_number,
    as_numbers,
    as_step,
    as_table,
    as_text,
    items_of,
    number_value,
    parts_of,
)
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


def _check_phase(phase: object) -> None:
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r:.60}.")


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
        get = parts_of("a task", data)
        q, seed, asked = as_table("q", get("q")), get("seed"), _read_asked(data.get("asked"))
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
            metrics=as_numbers("metrics", get("metrics")),
            ci=as_intervals("ci", get("ci")),
            phase=get("phase"),
            seed=seed,
            view=as_text("view", get("view")),
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
        get = parts_of("a record", data)
        epoch = get("epoch")
        return cls(
            step=as_step("step", get("step")),
            epoch=None if epoch is None else as_number("epoch", epoch),
            time=as_number("time", get("time")),
            seconds=as_number("seconds", get("seconds")),
            share=as_number("share", get("share")),
            phase=get("phase"),
            metrics=as_numbers("metrics", get("metrics")),
            ci=as_intervals("ci", get("ci")),
            tasks={name: _read_task(name, each) for name, each in items_of("tasks", get("tasks"))},
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
        get = parts_of("an event", data)
        task = get("task")
        return cls(
            kind=as_text("kind", get("kind")),
            step=as_step("step", get("step")),
            task=None if task is None else as_text("task", task),
            evidence=number_value(dict(items_of("evidence", get("evidence")))),
            message=as_text("message", get("message")),
        )


def _read_asked(value: Any) -> tuple[int, ...] | None:
    """Ascending indices of prompts; None, as in records of earlier versions, for all."""
    if value is None:
        return None
    whole = type(value) is list and all(type(each) is int for each in value)
    if not whole or value != sorted({each for each in value if 0 <= each < LARGE}) or not value:
        raise ValueError(f"asked must be ascending indices of prompts, got {value!r:.60}.")
    return tuple(value)
