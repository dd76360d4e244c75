"""What to do after an event, with the run's own checkpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import make_event, make_record, make_task, planted_chain

from crystalmon.phases.what_to_do import ADVICE, PASSED
from crystalmon.phases.what_to_do import advise as advise_at
from crystalmon.report.lanes import make_lanes
from crystalmon.report.payload import build_payload
from crystalmon.runs.files import saved_checkpoints
from crystalmon.runs.records import EVENT_KINDS, LIMIT_EVENT


def advise(events, saved, training=(), phase="nucleating"):
    """What to do while task and suite are in a phase."""
    last = make_record(30, phase=phase, tasks={"coin": make_task(phase=phase)})
    return advise_at(events, last, saved, dict.fromkeys(training, 0.1))


README = Path(__file__).parent.parent / "crystalmon/phases/README.md"


@pytest.fixture
def run(tmp_path):
    return planted_chain(tmp_path, [("sft", [0.0, 0.5], 20)], tasks=1)[0]


def test_every_kind_but_the_warning_has_its_advice(run):
    assert set(EVENT_KINDS) - {"early_warning"} == set(ADVICE)
    for kind in EVENT_KINDS:
        for text in advise([make_event(20, kind)], []).values():
            assert text[0].isupper()
            assert text.endswith((".", "?"))
            assert "{" not in text


def test_the_readme_names_every_kind_and_what_to_do_about_each(run):
    """Its table says what happened; only where it says so there is nothing to do."""
    table = README.read_text().partition("| event | what happened |")[2].partition("\n\n")[0]
    rows = {row.split("|")[1]: row for row in table.strip().splitlines()[1:]}
    told = {kind: row for kinds, row in rows.items() for kind in re.findall(r"`(\S+)`", kinds)}
    assert set(told) == {*EVENT_KINDS, f"<metric>{LIMIT_EVENT}"}
    idle = [kind for kind, row in told.items() if "nothing to do" in row]
    assert [kind for kind in told if not advise([make_event(20, kind)], [])] == idle


def test_the_checkpoint_before_the_event_is_named(run):
    leap = make_event(20, "free_energy_jump", None)
    assert "no checkpoint was saved before this" in advise([leap], [])[leap.kind]
    output = run.folder.parent
    for name in ("checkpoint-15", "checkpoint-5", "checkpoint-20", "checkpoint-25", "checkpoint-x"):
        (output / name).mkdir()
    saved = saved_checkpoints(output)
    assert saved == [5, 15, 20, 25]
    assert "go back to checkpoint-15," in advise([leap], saved)[leap.kind], "20 has leapt"
    since = replace(leap, evidence={"since": 10})
    assert "go back to checkpoint-5," in advise([since], saved)[leap.kind]
    onset = replace(make_event(20), evidence={"onset_interval": [10, 20]})
    assert "go back to checkpoint-5," in advise([onset], saved)[onset.kind]
    limit = make_event(20, "entropy_limit", None)
    assert advise([limit], saved)[limit.kind].startswith("You set this limit: go back")


def test_the_first_event_of_a_kind_says_where_to_go_back_to():
    events = [make_event(step, "free_energy_jump", None) for step in (20, 30)]
    assert list(advise(events, [15, 25]).values()) == list(advise(events[:1], [15, 25]).values())


def test_no_checkpoint_past_a_limit_is_named_and_the_start_is_that_of_the_stage():
    onset = replace(make_event(8), evidence={"onset_interval": [6, 8]})
    limit = replace(make_event(6, "entropy_limit", None), evidence={"since": 0})
    assert "checkpoint-6," in advise([onset], [6, 8])[onset.kind]
    last = make_record(30, phase="nucleating", tasks={"coin": make_task(phase="nucleating")})
    for kind, words in advise_at([onset, limit], last, [6, 8], {}, "runs/1-sft").items():
        assert "start over from runs/1-sft (no checkpoint" in words, kind


@pytest.mark.parametrize(
    ("training", "named"),
    [((), None), (("learning_rate",), None), (("beta",), "beta"), (("kl_coef",), "kl_coef")],
)
def test_only_what_the_trainer_has_is_advised(training, named):
    said = " ".join(
        advise([make_event(20), make_event(20, "entropy_collapse")], [], training).values()
    )
    for word in ("beta", "kl_coef"):
        assert (f"with a larger {word}" in said) is (word == named)
    assert "temperature" not in said
    (sampled,) = advise([make_event(20, "entropy_collapse")], [], ("temperature",)).values()
    assert "higher temperature" in sampled


@pytest.mark.parametrize("kind", ["nucleation_complete", "entropy_collapse"])
def test_becoming_sure_of_the_one_right_answer_is_no_fault(kind):
    (words,) = advise([make_event(20, kind)], [], phase="crystallized").values()
    assert "That is right if the question has one right answer" in words


@pytest.mark.parametrize("kind", list(PASSED))
def test_what_has_passed_is_said_to_have(kind):
    for phase in PASSED[kind][1]:
        for task in ("coin", None):
            (words,) = advise([make_event(20, kind, task)], [], phase=phase).values()
            assert words.startswith("It has passed: ")


def test_what_stands_in_one_task_is_advised_though_it_has_passed_in_another():
    tasks = {"coin": make_task(phase="liquid"), "die": make_task(phase="nucleating")}
    last = make_record(30, tasks=tasks)
    events = [make_event(20, task=None), make_event(20), make_event(25, task="die")]
    assert "checkpoint-22," in advise_at(events, last, [15, 22], {})["nucleation_onset"]


def test_the_page_has_it_once_a_kind_and_not_of_a_scan(run):
    """A scan has no training to go back to."""
    told = replace(run, events=tuple(make_event(20, task=task) for task in ("coin", "die", None)))
    (entry,) = build_payload(make_lanes([told]))["lanes"][0]["runs"]
    assert [kind for kind, _ in entry["advice"]] == ["nucleation_onset"]
    scan = replace(told, info={**run.info, "stages": [{"step": 20, "name": "sft"}]})
    (entry,) = build_payload(make_lanes([scan]))["lanes"][0]["runs"]
    assert entry["advice"] == []
