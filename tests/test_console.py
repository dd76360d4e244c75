"""What the terminal says at the beginning and the end of a monitored run."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_runs import make_event, make_record, make_task

from crystalmon.monitor.actions import check_actions
from crystalmon.monitor.console import Console, costly
from crystalmon.phases.in_words import main_numbers
from crystalmon.report.caveats import unmeasurable
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.wordings import TaskTexts


def test_tasks_that_are_hardly_ever_answered_are_named():
    assert unmeasurable([]) == ""
    said = unmeasurable(["coin", "die"])
    assert "the model or its base hardly answers coin, die (the listed answers hold under" in said
    assert "reference=" not in said


def test_where_the_base_hardly_answers_the_way_out_is_another_base():
    said = unmeasurable(["coin", "die"], of_base=["coin", "name"])
    base, now = said.split("; ")
    assert "the base hardly answers coin (the listed answers hold under 10% of" in base
    assert "reference=" in base
    assert "first SFT on the format" in base
    assert "the model or its base hardly answers die (" in now
    assert "--base" in unmeasurable(["coin"], ["coin"], option="--base")


def test_all_tasks_are_not_named_one_by_one():
    both = ["coin", "die"]
    assert "hardly answers any of the 2 tasks (" in unmeasurable(both, both, 2)
    assert "hardly answers all 2 tasks (" in unmeasurable(both, total=2)


def test_probing_that_takes_much_of_the_time_is_said():
    said = costly(0.833, 12.94, 2.6)
    assert said.startswith("by this schedule monitoring takes 83% of the run's time (13 s a probe")
    assert "max_overhead=" in said
    assert "(123 s a probe, 100 s a step)" in costly(0.5, 123.4, 99.6)
    assert "(0.042 s a probe, 99 s a step)" in costly(0.5, 0.0421, 98.7)


def make_end(phase: str = "crystallized", **metrics: float) -> ProbeRecord:
    return make_record(9, phase=phase, metrics=metrics, tasks={})


def test_the_end_says_where_the_run_is_and_how_to_see_it(tmp_path, capsys):
    console = Console()
    tasks = {
        "coin": make_task(phase="crystallized", locked=1),
        "die": make_task(phase="crystallized"),
        "name": make_task(),
    }
    record = replace(make_end(order=0.94, free_energy=1.186), tasks=tasks)
    texts = dict.fromkeys(tasks, TaskTexts((), ("a", "b", "c")))
    advice = {"melting": "Check that the new data ask for it."}
    console.conclude(Snapshot(record, texts), tmp_path / "a run" / "crystalmon", advice)
    console.spent(6, 0.0123, 0.02)
    first, by_task, leading, to_do, detect, report, cost = capsys.readouterr().out.splitlines()
    assert first.endswith(
        "step 9, the last probe: crystallized, order 0.94 [-0.01, 0.19], free energy 1.186 nats"
    )
    assert by_task.endswith(
        "tasks: liquid: name; crystallized: coin, die (1 on a wording of the base)"
    )
    pooled = make_task().q.mean(axis=0)
    assert "likeliest answers: coin " in leading
    assert leading.endswith(f" {pooled.max():.0%}; {'abc'[pooled.argmax()]} leads in all 3 tasks")
    assert to_do.endswith("melting: Check that the new data ask for it.")
    place = f"'{tmp_path}/a run/crystalmon'"
    assert detect.endswith(f"crystalmon detect {place}")
    assert report.endswith(f"crystalmon report {place} -o {place}/report.html")
    assert cost.endswith("6 probes; monitoring took 1.23% of the time")


@pytest.mark.parametrize(
    ("metrics", "ci", "words"),
    [
        ({"order": 0.225}, {"order": (-0.56, 1.0)}, "order 0.23 [-0.56, 1.00]"),
        ({"order": math.nan}, {}, ""),
        ({"order": 0.5, "entropy": 0.897}, {}, "order 0.50, entropy 0.90 nats"),
        (
            {"order": 0.0, "free_energy": 1.3, "free_energy_format": 1.235},
            {"order": (math.nan, math.nan)},
            "order 0.00, free energy 1.300 nats (95% of it format)",
        ),
        ({"free_energy": -1e-9, "free_energy_format": 1e-9}, {}, "free energy 0.000 nats"),
        ({"free_energy": 1.3}, {}, "free energy 1.300 nats"),
    ],
)
def test_the_main_numbers_are_told_with_what_is_known_of_them(metrics, ci, words):
    assert main_numbers(replace(make_record(3), metrics=metrics, ci=ci)) == words


def test_an_onset_is_told_before_the_completion(capsys):
    kinds = [("nucleation_complete", "right"), ("nucleation_onset", "wrong")]
    kinds += [("nucleation_complete", "wrong")]
    events = [make_event(11, kind, task) for kind, task in kinds]
    record = make_end()
    Console().announce(record, events, record)
    onset, complete = capsys.readouterr().out.splitlines()
    assert onset.endswith("step 9: nucleation_onset in wrong")
    assert complete.endswith("step 9: nucleation_complete in right, wrong")


def test_where_the_answers_may_end_is_told_of_each_task(tmp_path, capsys):
    sets = {"right": (3,), "wrong": (2, 0, None), "other": (None,), "liquid": ()}
    tasks = {name: replace(make_task(), seed_set=own) for name, own in sets.items()}
    Console().conclude(Snapshot(replace(make_end(), tasks=tasks), {}), tmp_path, {})
    told = "may win, at 95%: right: 1 wording; wrong: 2 wordings or none; other: none of the base"
    assert told in capsys.readouterr().out.splitlines()[2]


def test_the_probe_of_all_wordings_is_told_with_the_model_that_was_saved(tmp_path, capsys):
    partial = replace(make_task(), asked=(0, 1, 2, 3))
    end = Snapshot(replace(make_end(), tasks={"coin": partial}), {})
    for model in ("<its folder>", tmp_path / "checkpoint-9"):
        Console().conclude(end, tmp_path / "crystalmon", {})
        command = f"crystalmon probe {model} --base {tmp_path}/crystalmon"
        assert command in capsys.readouterr().out
        (tmp_path / "checkpoint-9").mkdir(exist_ok=True)


def test_a_single_task_is_not_told_twice(tmp_path, capsys):
    one = replace(make_end(order=0.94), tasks={"coin": make_task(phase="crystallized")})
    Console().conclude(Snapshot(one, {}), tmp_path, {})
    Console().spent(1, 0.01, None)
    out = capsys.readouterr().out
    assert out.count("crystallized") == 1
    assert "1 probe; monitoring" in out
    seeded = replace(one, tasks={"coin": make_task(phase="crystallized", locked=1)})
    Console().conclude(Snapshot(seeded, {}), tmp_path, {})
    assert "tasks: crystallized: coin (1 on a wording" in capsys.readouterr().out


def test_the_end_of_a_broken_run_in_an_odd_folder(capsys):
    console = Console()
    console.conclude(Snapshot(make_end(order=-1e-9, free_energy=math.nan), {}), Path("-odd"), {})
    console.unobserved(28, 40, 0.01)
    console.unobserved(39, 40, 0.01)
    first, _, report, many, one = capsys.readouterr().out.splitlines()
    assert first.endswith("crystallized, order 0.00 [-0.01, 0.19]")
    assert report.endswith("crystalmon report ./-odd -o ./-odd/report.html")
    assert "steps 29 to 40 were not observed: one more probe" in many
    assert "would have taken over 1.00%" in many
    assert "step 40 was not observed" in one


def test_alerts_to_nobody_and_large_uploads_are_told_at_the_start(tmp_path, capsys):
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "reference.safetensors").write_bytes(b"x" * 3000)
    args = SimpleNamespace(report_to=["tensorboard"], push_to_hub=True)
    actions = check_actions({"melting": ["save", "alert"]}, [])
    Console().warn_of(actions, args, tmp_path)
    alert, upload = capsys.readouterr().out.splitlines()
    assert "the action alert will reach nobody: report_to has no wandb or trackio" in alert
    assert "3.0 kB" in upload
    assert f"{tmp_path.name}/reference* to {tmp_path.parent}/.gitignore" in upload
    args = SimpleNamespace(report_to=["trackio"], push_to_hub=False)
    Console().warn_of(actions, args, tmp_path)
    assert capsys.readouterr().out == ""


def test_a_logger_above_info_is_quiet_and_so_is_what_is_not_verbose(capsys):
    library = logging.getLogger("crystalmon")
    Console().say("heard")
    Console("other", verbose=False).say("not heard")
    library.setLevel("WARNING")
    try:
        Console().say("not heard")
    finally:
        library.setLevel(logging.NOTSET)
    assert capsys.readouterr().out == "crystalmon | heard\n"
