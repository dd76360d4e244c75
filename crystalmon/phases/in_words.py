"""What one probe says, in words: its phase, its tasks, its main numbers, the answer that leads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from crystalmon.metrics.catalogue import NOT_MEASURABLE, PHASES
from crystalmon.phases.order import COMPLETE, LIQUID, MELT, ONSET
from crystalmon.phases.suite import majority
from crystalmon.runs.records import ProbeRecord, TaskRecord

_WITHOUT_ORDER = ("ordered", NOT_MEASURABLE)
_RISING = ("melting", "liquid", "nucleating", "crystallized", "settling")


def phase_words(record: ProbeRecord, task: str | None = None) -> str:
    """The phase after a probe, in words: the one told, or `looks <phase>, unconfirmed`.

    A phase changes when two probes agree. Where probes are few, as in a scan of two stages, the
    last one may show another phase than has been told so far, and whoever reads a table should
    hear of it. A suite's phase is that of half of its tasks, and with two tasks one is already
    half. So a single probe may move the suite's phase only as far as the suite's own `order` does.
    A probe of some of the wordings never changes the phase told.

    Args:
        record: of the probe.
        task: its name; None for the suite.
    """
    told, shown = _told_and_shown(record, task)
    return told if shown == told else f"looks {shown}, unconfirmed"


def phase_shown(record: ProbeRecord, task: str | None = None) -> str:
    """The phase that this probe shows, whether or not another one has confirmed it."""
    return _told_and_shown(record, task)[1]


def _told_and_shown(record: ProbeRecord, task: str | None = None) -> tuple[str, str]:
    """The phase told, and the one that this probe shows."""
    if record.wordings:
        told = record.phase if task is None else record.tasks[task].phase
        return told, told
    if task is not None:
        told, shown = record.tasks[task].phase, _shown_by(record.tasks[task])
    else:
        told = shown = record.phase
        known = [task for task in record.tasks.values() if np.isfinite(_order(task))]
        part = [_shown_by(task) for task in known if task.phase not in _WITHOUT_ORDER]
        if part and told not in _WITHOUT_ORDER:
            # the middle one: no further from what was told than tasks and suite both are
            _, shown, _ = sorted((told, majority(part), _shown_by(record)), key=_RISING.index)
    return told, shown


def _order(found: TaskRecord | ProbeRecord) -> float:
    return found.metrics.get("order", np.nan)


def _shown_by(found: TaskRecord | ProbeRecord) -> str:
    """The phase that a task, or a suite by its own order, would be in if one probe were enough."""
    order, told = _order(found), found.phase
    if told in ("crystallized", "settling") and order < MELT:
        return "melting"
    if told in ("liquid", "nucleating", "melting") and order >= COMPLETE:
        return "crystallized"
    if told == "liquid" and order >= ONSET:
        return "nucleating"
    return "liquid" if told in ("nucleating", "melting") and order < LIQUID else told


def tasks_by_phase(record: ProbeRecord) -> str:
    """Which tasks are in each phase: `liquid: letter, name; looks melting (unconfirmed): die`."""
    groups: dict[str, list[str]] = {}
    for name in sorted(record.tasks, key=lambda name: PHASES.index(record.tasks[name].phase)):
        told, shown = _told_and_shown(record, name)
        words = told if shown == told else f"looks {shown} (unconfirmed)"
        groups.setdefault(words, []).append(name)
    parts = []
    for words, names in groups.items():
        whole = 1 < len(names) == len(record.tasks)
        part = f"{words}: {f'all {len(names)}' if whole else ', '.join(names)}"
        seeds = sum(record.tasks[name].seed is not None for name in names)
        parts.append(part + (f" ({seeds} on a wording of the base)" if seeds else ""))
    return "; ".join(parts)


def unconfirmed_tasks(record: ProbeRecord) -> str:
    """The tasks that only this probe shows in another phase: `looks melting: die`, or nothing."""
    groups: dict[str, list[str]] = {}
    for name in record.tasks:
        told, shown = _told_and_shown(record, name)
        if shown != told:
            groups.setdefault(f"looks {shown}", []).append(name)
    return "; ".join(f"{words}: {', '.join(names)}" for words, names in groups.items())


def main_numbers(record: ProbeRecord) -> str:
    """The suite's order with its 95% interval, its entropy, and its free energy with its format."""
    order, entropy, energy = (
        record.metrics.get(key, math.nan) for key in ("order", "entropy", "free_energy")
    )
    said = []
    if math.isfinite(order) and record.phase != NOT_MEASURABLE:
        low, high = record.ci.get("order", (math.nan, math.nan))
        within = f" [{_fixed(low)}, {_fixed(high)}]" if math.isfinite(low + high) else ""
        said.append(f"order {_fixed(order)}{within}")
    if math.isfinite(entropy):
        said.append(f"entropy {_fixed(entropy)} nats")
    if math.isfinite(energy):
        share = record.metrics.get("free_energy_format", math.nan) / max(energy, 1e-9)
        of_format = f" ({share:.0%} of it format)" if energy > 0.01 and share <= 1 else ""
        said.append(f"free energy {_fixed(energy, 3)} nats{of_format}")
    return ", ".join(said)


def _fixed(value: float, digits: int = 2) -> str:
    """Without the sign of a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def shared_leader(record: ProbeRecord, choices: Mapping[str, Sequence[str]]) -> str:
    """That one answer is the likeliest in all tasks: `search leads in both tasks`, or nothing.

    Args:
        record: of the probe.
        choices: by task, its answers [C].
    """
    leaders = {task.leader(choices[name]) for name, task in record.tasks.items()}
    if len(record.tasks) < 2 or len(leaders) > 1 or "" in leaders:
        return ""
    number = "both" if len(record.tasks) == 2 else f"all {len(record.tasks)}"
    return f"{leaders.pop()} leads in {number} tasks"
