"""What a notebook shows of a record and of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from fake_runs import make_event, make_record, make_task

from crystalmon.runs.notebook import curve_svg, number, table_html
from crystalmon.runs.run import Run

EVIL = "<img src=x onerror=alert(1)>"


def test_a_record_shows_its_tasks_and_the_suite() -> None:
    record = make_record(7, tasks={"coin": make_task(), EVIL: make_task(phase="crystallized")})
    page = record._repr_html_()
    assert "<img" not in page
    assert "&lt;img src=x" in page
    for part in ("step 7: liquid", "0.900", "crystallized", "suite", "order", "free energy"):
        assert part in page


def test_a_run_shows_its_curves_and_the_suites_events() -> None:
    events = (make_event(1), replace(make_event(2, "melting", None), message=EVIL))
    run = Run(Path(EVIL) / "crystalmon", {}, tuple(map(make_record, range(3))), events)
    page = run._repr_html_()
    assert "<img" not in page
    assert page.count("<svg") == 1, "free energy is not finite here, order is"
    assert "melting" in page
    assert "nucleation" not in page
    assert len(page) < 5000


def test_a_run_of_none_or_one_probe_shows_itself() -> None:
    assert "no probe yet" in Run(Path("x/crystalmon"), {}, (), ())._repr_html_()
    one = Run(Path("x/crystalmon"), {}, (make_record(0),), ())._repr_html_()
    assert "1 probe<" in one
    assert "<svg" not in one


def test_a_curve_leaves_gaps_out() -> None:
    svg = curve_svg([0.0, math.nan, 1.0])
    assert 'points="2.0,16.0 118.0,2.0"' in svg
    assert curve_svg([1.0, math.inf]) == ""
    assert "16.0 118.0,16.0" in curve_svg([1.0, 1.0])
    assert number(math.nan) == number(None) == "–"
    assert "<b>t&lt;</b>" in table_html("t<", ["a"], [["b"]])
