"""Everything that is said of one run stands together: table, page, terminal, replay and scan.

A model is driven from its own answers towards uniform ones, and back, by the scale of its output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_runs import make_record, make_task
from rich.console import Console as Terminal

from crystalmon.analysis.replay import detect_run
from crystalmon.cli.main import main
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.monitor.console import Console
from crystalmon.monitor.probe import Monitor
from crystalmon.phases.in_words import phase_words
from crystalmon.report.lanes import make_lanes
from crystalmon.report.live.feed import RunFeed
from crystalmon.report.live.terminal import screen
from crystalmon.report.payload import build_payload
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.scoring.models import load_model

UNIFORM = 0.02
"""The scale at which all answers are alike."""


@pytest.fixture(autouse=True)
def rare_answers_count(monkeypatch):
    monkeypatch.setattr("crystalmon.monitor.probe.MEASURABLE", 0.0)


@pytest.fixture
def make_run(tmp_path, suite):
    """Makes a run whose first scale is the base's."""

    def make(scales: list[float]) -> Run:
        model, tokenizer = load_model("liquid-tiny")
        head = model.get_output_embeddings().weight
        before = head.detach().clone()
        head.data = before * scales[0]
        monitor = Monitor(model, tokenizer, suite, reference="initial")
        folder = tmp_path / "run" / "crystalmon"
        info = {"suite": suite.name, "max_steps": len(scales) - 1, "overhead": 0.25}
        store = RunStore.open(folder, info, resume_step=None)
        monitor.reference.save(folder / "reference")
        for step, scale in enumerate(scales):
            head.data = before * scale
            store.append(monitor.probe(step), monitor.events)
        store.close()
        return read_run(folder)

    return make


def said_of(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each screen says of a run, by its name."""
    place = str(run.folder)
    terminal = Terminal(width=200, color_system=None)
    capsys.readouterr()
    found = {}
    for command in ("summary", "detect"):
        assert main([command, place]) == 0
        found[command] = capsys.readouterr().out
    with terminal.capture() as captured:
        terminal.print(screen(RunFeed([place]).news()))
    found["watch"] = captured.get()
    Console().conclude(Snapshot(run.records[-1], {}), run.folder, {})
    Console().spent(len(run.records), 0.25, run.limit)
    found["end"] = capsys.readouterr().out
    payload = build_payload(make_lanes([run]))
    lane = payload["lanes"][0]
    found["page"] = "\n".join(
        [lane["looks"], lane["unconfirmed"] and f"unconfirmed, {lane['unconfirmed']}"]
    )
    return found


def test_a_collapse_that_one_probe_shows_is_unconfirmed_on_every_screen(make_run, capsys):
    run = make_run([1.0, 1.0, UNIFORM])
    said = said_of(run, capsys)
    assert run.records[-1].phase == "liquid"
    for name, text in said.items():
        assert "looks crystallized, unconfirmed" in text, name
    assert said["detect"].count("looks crystallized, unconfirmed") >= 1 + len(run.records[0].tasks)
    assert main(["summary", str(run.folder), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[-1]
    assert (row["phase"], row["looks"]) == ("liquid", "looks crystallized, unconfirmed")
    assert said["page"].endswith(f"looks crystallized: {', '.join(run.records[0].tasks)}")


def test_once_a_second_probe_agrees_it_is_confirmed_on_every_screen(make_run, capsys):
    run = make_run([1.0, 1.0, UNIFORM, UNIFORM])
    for name, text in said_of(run, capsys).items():
        assert "crystallized" in text, name
        assert "unconfirmed" not in text, name


def test_without_an_onset_there_are_no_kinetics(make_run, capsys):
    run = make_run([1.0, 0.9, 1.0, 1.1, 1.0, 0.9, 1.0, 1.0, 0.95])
    said = said_of(run, capsys)
    assert "10–90%" not in said["detect"]
    assert build_payload(make_lanes([run]))["kinetics"] == []


def test_a_base_that_answered_alike_melts_and_no_number_is_absurd(make_run, capsys):
    run = make_run([UNIFORM, UNIFORM, 1.0, 1.0, 1.0])
    assert {event.kind for event in run.events} == {"melting"}
    for name, text in said_of(run, capsys).items():
        assert "melting" in text, name
    assert "liquidity has risen from" in detect_run(run).events[0].message
    assert all(math.isnan(task.metrics["order"]) for task in run.records[-1].tasks.values())
    (lane,) = build_payload(make_lanes([run]))["lanes"]
    assert lane["series"]["order"] is None
    shown = [v for each in lane["series"].values() if each for v in each["v"] if v is not None]
    assert max(map(abs, shown)) < 20


def test_the_mass_on_a_seed_is_shown_where_one_is_held(make_run, capsys):
    before, held = make_run([1.0, 1.0]), make_run([1.0, 1.0, *[0.05] * 9])
    assert "seed_mass" not in before.records[-1].metrics
    task = held.records[-1].tasks["coin"]
    assert math.isfinite(task.metrics["seed_mass"]) == (task.seed is not None)


def test_what_was_not_observed_is_told(make_run, capsys):
    run = make_run([1.0, 1.0])
    info = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(info | {"max_steps": 40}))
    for ended in (True, False):
        told = info | {"max_steps": 40}
        if not ended:
            del told["overhead"]
        (run.folder / "run.json").write_text(json.dumps(told))
        why = "it was stopped early, or max_overhead" if ended else "it still runs, or was killed"
        words = f"run was not observed from step 2 to 40: {why}"
        caveats = build_payload(make_lanes([read_run(run.folder)]))["caveats"]
        assert any(words in caveat for caveat in caveats)
        assert main(["detect", str(run.folder)]) == 0
        assert words in capsys.readouterr().out


def test_one_cost_is_told(make_run, capsys):
    run = make_run([1.0, 1.0])
    assert run.share == 0.25
    said = said_of(run, capsys)
    assert "25.0%" in said["summary"]
    assert "25.00%" in said["end"]


def test_a_share_over_its_limit_has_one_reason_everywhere(make_run, capsys):
    run = make_run([1.0, 1.0])
    info = json.loads((run.folder / "run.json").read_text())
    over = "over the limit of 0.5%: the base and 4 probes are always made"
    for limit, told in ((0.005, True), (0.5, False)):
        settings = {"config": {"max_overhead": limit}}
        (run.folder / "run.json").write_text(json.dumps(info | settings))
        run = read_run(run.folder)
        assert (over in said_of(run, capsys)["end"]) is told
        caveats = " ".join(build_payload(make_lanes([run]))["caveats"])
        assert (f"Monitoring took 25% of run, {over}" in caveats) is told
        assert "max_overhead=" not in caveats, "it was set"


def test_an_onset_that_has_passed_is_not_advised_against(make_run, capsys):
    run = make_run([1.0, 0.65, 0.65, 1.0, 1.0])
    onsets = [event for event in run.events if event.kind == "nucleation_onset"]
    assert onsets
    assert run.records[-1].phase == "liquid"
    advice = detect_run(run).advice["nucleation_onset"]
    assert advice == "It has passed: the wordings differ again."
    (entry,) = build_payload(make_lanes([run]))["lanes"][0]["runs"]
    assert dict(entry["advice"])["nucleation_onset"] == advice


def test_what_cannot_be_measured_is_explained_alike(make_run, capsys, monkeypatch):
    monkeypatch.setattr("crystalmon.monitor.probe.MEASURABLE", 1.0)
    run = make_run([1.0, 1.0])
    assert run.records[-1].phase == "not measurable"
    assert "The model or its base hardly answers all" in said_of(run, capsys)["detect"]
    phases = build_payload(make_lanes([run]))["phases"]
    (words,) = [phase["words"] for phase in phases if phase["name"] == "not measurable"]
    assert "or in the base" in words


@pytest.mark.parametrize("stages", [2, 3])
def test_a_scan_of_few_stages_says_what_it_can(tmp_path, capsys, stages):
    model, tokenizer = load_model("liquid-tiny")
    folders = []
    for index, scale in enumerate([1.0, UNIFORM, UNIFORM][:stages]):
        model.get_output_embeddings().weight.data *= scale if index == 1 else 1.0
        folders.append(tmp_path / f"stage{index}")
        model.save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    named = [f"{name}={path}" for name, path in zip(("base", "sft", "dpo"), folders, strict=False)]
    out = tmp_path / "scan"
    options = ["-o", str(out), "--suite", "liquid-tiny", "--no-figures"]
    assert main(["scan", *named, *options]) == 0
    told = capsys.readouterr().out
    words = "crystallized" if stages == 3 else "looks crystallized, unconfirmed"
    last = "dpo" if stages == 3 else "sft"
    live, row = [line for line in told.splitlines() if line.strip().startswith(last)]
    for line in (live, row):
        assert words in line
        assert ("unconfirmed" in line) == (stages == 2)
    assert words in said_of(read_run(out), capsys)["page"]


def test_a_model_is_named_by_its_place_or_as_an_option(capsys):
    same = []
    for words in (["liquid-tiny"], ["--model", "liquid-tiny"]):
        assert main(["cost", *words, "--suite", "liquid-tiny", "--json"]) == 0
        same.append(capsys.readouterr().out)
    assert same[0] == same[1]
    for words in ([], ["liquid-tiny", "--model", "liquid-tiny"]):
        with pytest.raises(SystemExit):
            main(["cost", *words])
        assert "cost takes one model: crystalmon cost MODEL" in capsys.readouterr().err


def test_probes_are_told_as_a_share_of_the_run_on_the_command_line(capsys):
    run = ["--steps", "1000", "--every", "0.25", "--json"]
    assert main(["cost", "liquid-tiny", "--suite", "liquid-tiny", *run]) == 0
    assert json.loads(capsys.readouterr().out)["probes"] == 5


LIQUID = ("liquid", "liquid", "liquid")
MIXED = ("liquid", "nucleating", "nucleating")


def two_tasks(step: int, orders: Sequence[float], phases: Sequence[str] = LIQUID) -> ProbeRecord:
    """A probe with these orders and phases: of two tasks, and last of the suite."""
    tasks = {
        name: replace(make_task(step, phase), metrics={"order": order})
        for name, order, phase in zip(("right", "wrong"), orders, phases, strict=False)
    }
    return make_record(step, phase=phases[2], metrics={"order": orders[2]}, tasks=tasks)


@pytest.mark.parametrize(
    ("orders", "phases", "words"),
    [
        # one of two tasks is half of them, but over the suite the wordings differ as before
        ((0.27, -0.28, -0.05), LIQUID, "liquid"),
        ((0.27, 0.3, 0.28), LIQUID, "looks nucleating, unconfirmed"),
        ((0.9, 0.5, 0.7), LIQUID, "looks nucleating, unconfirmed"),
        ((0.9, 0.9, 0.9), LIQUID, "looks crystallized, unconfirmed"),
        ((-0.3, 0.53, 0.19), MIXED, "nucleating"),
        ((-0.07, -0.13, -0.1), MIXED, "looks liquid, unconfirmed"),
        ((0.9, 0.95, 0.92), ("melting",) * 3, "looks crystallized, unconfirmed"),
        ((0.2, 0.3, 0.25), ("settling",) * 3, "looks melting, unconfirmed"),
    ],
)
def test_a_suite_looks_no_further_than_its_own_order(orders, phases, words):
    assert phase_words(two_tasks(1, orders, phases)) == words


def test_the_last_lines_of_the_terminal_do_not_contradict_each_other(tmp_path, capsys):
    before = two_tasks(5, (-0.3, 0.53, 0.19), MIXED)
    last = two_tasks(60, (0.27, -0.28, -0.05))
    Console().announce(before, [], two_tasks(4, (0.0, 0.0, 0.0)))
    Console().announce(last, [], before)
    Console().conclude(Snapshot(last, {}), tmp_path, {})
    begun, over, end, tasks, *_ = capsys.readouterr().out.splitlines()
    assert begun.endswith("step 5: the suite is nucleating (1 liquid, 1 nucleating; order 0.19)")
    assert over.endswith("step 60: the suite is liquid (order -0.05)")
    assert "step 60, the last probe: liquid, order -0.05" in end
    assert tasks.endswith("tasks: looks nucleating (unconfirmed): right; liquid: wrong")


def test_a_base_that_hardly_answers_is_told_as_what_is_lacking(make_run, monkeypatch):
    """The model may answer by now: that it is the base which does not is what helps."""
    run = make_run([1.0, 1.0])
    tasks = {
        name: replace(task, phase=NOT_MEASURABLE) for name, task in run.records[-1].tasks.items()
    }
    last = replace(run.records[-1], phase=NOT_MEASURABLE, tasks=tasks)
    lost = replace(run, records=(run.records[0], last))
    (now,) = (c for c in build_payload(make_lanes([lost]))["caveats"] if "gets no phase" in c)
    assert "the model or its base hardly answers" in now.lower()
    monkeypatch.setattr("crystalmon.metrics.answers.MEASURABLE", 2.0)  # nothing is answered
    (base,) = (c for c in build_payload(make_lanes([lost]))["caveats"] if "gets no phase" in c)
    assert "the base hardly answers any of the" in base
    assert "gets no phase, whatever the model learns" in base
    assert "reference=" in base
