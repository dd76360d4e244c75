"""What a dashboard shows: curves by panel, from the catalogue, and the answers of a probe."""

from __future__ import annotations

from typing import Any

from crystalmon.metrics.catalogue import BRIEF, COST, METRICS, panels
from crystalmon.report.snapshot import COLUMNS, Snapshot
from crystalmon.runs.names import DEFAULT_NAME, STEP_KEY
from crystalmon.trackers.base import Logged

TASKS = "Tasks"
ANSWERS, DISTRIBUTIONS = "_media/answers", "_media/distributions"
"""The names of the picture and the table, after the run's own prefix."""

SUMMARIES = {
    metric.key: "last,max" if metric.better == "lower" else "last,min"
    for metric in METRICS
    if metric.better is not None and metric.level != "task"
}
"""What a run's summary keeps of a suite-level metric: its last value and its worst."""


def dashboard(
    prefix: str = DEFAULT_NAME, logged: Logged = "suite"
) -> dict[str, dict[str, list[str]]]:
    """By section, by panel: the full names of its curves, in the order in which they are looked at.

    If tasks are logged, a panel of the section `TASKS` has one curve a task: its one entry is a
    regular expression.
    """
    sections = {
        section: {title: [f"{prefix}/{metric.key}" for metric in group[title]] for title in group}
        for section, group in panels().items()
    }
    if logged == "tasks":
        sections[TASKS] = {
            f"{metric.label.capitalize()} of each task": [f"{prefix}_tasks/.*/{metric.key}"]
            for metric in BRIEF
        }
    sections[COST] = sections.pop(COST)  # the cost comes last
    return sections


def media(library: Any, snapshot: Snapshot, prefix: str) -> dict[str, Any]:
    """What wandb and trackio, whose interfaces are alike, log of one probe's answers."""
    step = snapshot.record.step
    return {
        prefix + ANSWERS: library.Image(snapshot.image, caption=f"step {step}"),
        prefix + DISTRIBUTIONS: library.Table(columns=COLUMNS, data=snapshot.rows),
        STEP_KEY: step,
    }
