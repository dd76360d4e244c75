"""What to do after an event, with the run's own checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_runs import make_event, planted_chain

from crystalmon.phases.what_to_do import ADVICE, advise
from crystalmon.report.lanes import make_lanes
from crystalmon.report.payload import build_payload
from crystalmon.runs.records import EVENT_KINDS


@pytest.fixture
def run(tmp_path):
    return planted_chain(tmp_path, [("sft", [0.0, 0.5], 20)], tasks=1)[0]


def with_events(run, *events):
    return replace(run, events=events)


def test_every_kind_but_the_warning_has_its_advice(run):
    assert set(EVENT_KINDS) - {"early_warning"} == set(ADVICE)
    for kind in EVENT_KINDS:
        for text in advise(with_events(run, make_event(20, kind))).values():
            assert text[0].isupper()
            assert text.endswith((".", "?"))
            assert "{" not in text


def test_the_checkpoint_before_the_event_is_named(run):
    told = with_events(run, make_event(20, "free_energy_jump", None))
    assert "no checkpoint lies before it (save_steps" in advise(told)["free_energy_jump"]
    for step in (5, 15, 20, 25):
        (run.folder.parent / f"checkpoint-{step}").mkdir()
    assert "go back to checkpoint-20," in advise(told)["free_energy_jump"]
    onset = replace(make_event(20), evidence={"onset_interval": [10, 20]})
    assert "go back to checkpoint-5," in advise(with_events(run, onset))["nucleation_onset"]
    limit = make_event(20, "entropy_limit", None)
    assert advise(with_events(run, limit))["entropy_limit"].startswith(
        "You set this limit: go back"
    )


def test_a_scan_has_stages_to_look_at_and_no_training_to_go_back_to(run):
    scan = replace(run, events=(make_event(1),), info={"stages": [{"step": 1, "name": "sft"}]})
    assert advise(scan) == {}


def test_the_page_has_it_once_a_kind(run):
    told = with_events(run, make_event(20), make_event(20, task="die"), make_event(20, task=None))
    (entry,) = build_payload(make_lanes([told]))["lanes"][0]["runs"]
    assert [kind for kind, _ in entry["advice"]] == ["nucleation_onset"]
