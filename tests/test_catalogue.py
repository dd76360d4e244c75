"""The one list of metrics: everything recorded is in it, and the docs have its every row."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import make_record, make_task

import crystalmon
from crystalmon.metrics.catalogue import BRIEF, BY_KEY, METRICS, PHASES, panels, tasks_in
from crystalmon.monitor.probe import Monitor
from crystalmon.trackers.base import MAIN, tracker_metrics

PACKAGE = Path(crystalmon.__file__).parent


@pytest.fixture(scope="module")
def record(_tiny):
    monitor = Monitor(*_tiny, suite="liquid-tiny")
    return [monitor.probe(step) for step in range(8)][-1]


def test_every_recorded_metric_is_in_the_catalogue_at_its_level(record):
    of_tasks = {metric.key for metric in METRICS if metric.level != "suite"}
    of_suites = {metric.key for metric in METRICS if metric.level != "task"}
    outside = {"phase", "probe_seconds", "probe_share"}  # fields of the record itself
    for task in record.tasks.values():
        assert set(task.metrics) == of_tasks - outside
        assert set(task.ci) == set(task.metrics) - {"seed", "seed_set_size"}
    later = {"seed_mass", "seed_set_size"}  # no task is past its onset
    assert set(record.metrics) == of_suites - outside - later
    logged = {key.rpartition("/")[2] for key in tracker_metrics(record, logged="tasks")}
    assert logged == set(BY_KEY) - later - {"seed"}


def test_trackers_get_no_metric_that_a_task_has_nothing_for():
    metrics = {"order": 0.9, "seed_mass": 0.8, "seed_set_size": 1.0, "seed": 2.0, "liquidity": 0.1}
    nothing = dict.fromkeys(("order", "seed_mass", "seed_set_size"), math.nan)
    tasks = {
        "held": replace(make_task(phase="crystallized", locked=2), metrics=metrics),
        "unanswered": replace(make_task(), metrics=metrics | nothing),
    }
    logged = tracker_metrics(make_record(1, tasks=tasks), logged="tasks")
    own = {key for key in logged if key.startswith("crystalmon_tasks/")}
    assert own == {
        *(f"crystalmon_tasks/held/{key}" for key in (*metrics, "phase")),
        *(f"crystalmon_tasks/unanswered/{key}" for key in ("liquidity", "phase")),
    }


def test_keys_are_unique_and_every_row_is_whole():
    assert len(BY_KEY) == len(METRICS)
    assert {tasks_in(phase) for phase in PHASES} <= set(BY_KEY)
    for metric in METRICS:
        assert all((metric.label, metric.summary, metric.formula)), metric.key
        assert not {"|", "\n"} & set(metric.summary + metric.formula), metric.key


def test_brief_metrics_have_a_panel():
    shown = {
        metric.key for group in panels().values() for each in group.values() for metric in each
    }
    assert {metric.key for metric in BRIEF} <= shown


def test_the_docs_count_what_trackers_get():
    assert len(MAIN) == 12
    for page in (PACKAGE.parent / "README.md", PACKAGE / "monitor" / "README.md"):
        assert "twelve metrics" in page.read_text(encoding="utf-8").lower(), page


def test_the_definitions_have_every_row():
    level = {"task": "task", "suite": "suite", "both": "task, suite"}
    table = "| key | of | unit | definition | reads as |\n| --- | --- | --- | --- | --- |\n"
    table += "".join(
        f"| `{m.key}` | {level[m.level]} | {m.unit} | {m.formula} | {m.summary} |\n"
        for m in METRICS
    )
    assert table in (PACKAGE / "metrics" / "README.md").read_text(encoding="utf-8")
