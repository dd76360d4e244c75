"""What the terminal says at the beginning and the end of a monitored run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from crystalmon.monitor.console import conclude, costly, say
from crystalmon.report.caveats import unmeasurable
from crystalmon.runs.records import ProbeRecord


def test_tasks_that_are_hardly_ever_answered_are_named():
    assert unmeasurable([]) == ""
    said = unmeasurable(["coin", "die"])
    assert "under 10% of the probability after most wordings of coin, die, so no phase" in said


def test_probing_that_takes_much_of_the_time_is_said():
    said = costly(0.833, 12.94, 2.6)
    assert said.startswith("by this schedule monitoring takes 83% of the run's time (13 s a probe")
    assert "max_overhead=" in said
    assert "(123 s a probe, 100 s a step)" in costly(0.5, 123.4, 99.6)
    assert "(0.042 s a probe, 99 s a step)" in costly(0.5, 0.0421, 98.7)


def test_the_end_says_where_the_run_is_and_how_to_see_it(tmp_path, capsys):
    record = ProbeRecord(
        step=9, epoch=None, time=0.0, seconds=1.0, share=0.031, phase="crystallized",
        metrics={"order": 0.94, "free_energy": 1.186}, ci={}, tasks={},
    )  # fmt: skip
    conclude(record, tmp_path / "a run" / "crystalmon", 0.0123, None)
    first, second, third = capsys.readouterr().out.splitlines()
    assert "step 9, the last probe: crystallized, order 0.94, free energy 1.186 nats" in first
    assert first.endswith("nats")
    place = f"'{tmp_path}/a run/crystalmon'"
    assert second.endswith(f"crystalmon report {place} -o {place}/report.html")
    assert third.endswith("monitoring took 1.23% of the time")
    broken = {"order": -1e-9, "free_energy": float("nan")}
    conclude(replace(record, metrics=broken), Path("-odd"), 0.01, 0.01)
    first, second, third, _ = capsys.readouterr().out.splitlines()
    assert "one more probe would have taken over 1.00%" in third
    assert first.endswith("crystallized, order 0.00")
    assert second.endswith("crystalmon report ./-odd -o ./-odd/report.html")


def test_a_logger_above_info_is_quiet(capsys):
    library = logging.getLogger("crystalmon")
    say("heard")
    library.setLevel("WARNING")
    try:
        say("not heard")
    finally:
        library.setLevel(logging.NOTSET)
    assert capsys.readouterr().out == "crystalmon | heard\n"
