"""What one probe shows before a second one has confirmed it.

A phase changes when two probes agree. Where probes are few, as in a scan of two stages, the last
one may show another phase than has been told so far, and whoever reads a table should hear of it.
"""

from __future__ import annotations

import numpy as np

from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.phases.order import COMPLETE, LIQUID, MELT, ONSET
from crystalmon.phases.suite import majority
from crystalmon.runs.records import ProbeRecord, TaskRecord

_WITHOUT_ORDER = ("ordered", NOT_MEASURABLE)


def phase_words(record: ProbeRecord, task: str | None = None) -> str:
    """The phase after a probe, in words: the one told, or `looks <phase>, unconfirmed`.

    Args:
        record: of the probe.
        task: its name; None for the suite.

    A probe of some of the wordings shows too little, and changes nothing.
    """
    if record.wordings:
        return record.phase if task is None else record.tasks[task].phase
    if task is not None:
        told, shown = record.tasks[task].phase, _shown(record.tasks[task])
    else:
        told = shown = record.phase
        known = [task for task in record.tasks.values() if np.isfinite(_order(task))]
        part = [_shown(task) for task in known if task.phase not in _WITHOUT_ORDER]
        if part and told not in _WITHOUT_ORDER:
            shown = majority(part)
    return told if shown == told else f"looks {shown}, unconfirmed"


def _order(task: TaskRecord) -> float:
    return task.metrics.get("order", np.nan)


def _shown(task: TaskRecord) -> str:
    """The phase that a task would be in if one probe were enough."""
    order, told = _order(task), task.phase
    if told in ("crystallized", "settling") and order < MELT:
        return "melting"
    if told in ("liquid", "nucleating", "melting") and order >= COMPLETE:
        return "crystallized"
    if told == "liquid" and order >= ONSET:
        return "nucleating"
    return "liquid" if told in ("nucleating", "melting") and order < LIQUID else told
