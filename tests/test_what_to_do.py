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


def test_every_kind_but_the_warning_has_its_advice(run):
    assert set(EVENT_KINDS) - {"early_warning"} == set(ADVICE)
    for kind in EVENT_KINDS:
        for text in advise([make_event(20, kind)], run.folder.parent).values():
            assert text[0].isupper()
            assert text.endswith((".", "?"))
            assert "{" not in text


def test_the_checkpoint_before_the_event_is_named(run):
    output, leap = run.folder.parent, make_event(20, "free_energy_jump", None)
    assert "no checkpoint from before is there" in advise([leap], output)[leap.kind]
    for step in (5, 15, 20, 25):
        (output / f"checkpoint-{step}").mkdir()
    assert "go back to checkpoint-15," in advise([leap], output)[leap.kind], "20 has leapt"
    since = replace(leap, evidence={"since": 10})
    assert "go back to checkpoint-5," in advise([since], output)[leap.kind]
    onset = replace(make_event(20), evidence={"onset_interval": [10, 20]})
    assert "go back to checkpoint-5," in advise([onset], output)[onset.kind]
    limit = make_event(20, "entropy_limit", None)
    assert advise([limit], output)[limit.kind].startswith("You set this limit: go back")


def test_the_page_has_it_once_a_kind_and_not_of_a_scan(run):
    """A scan has no training to go back to."""
    told = replace(run, events=tuple(make_event(20, task=task) for task in ("coin", "die", None)))
    (entry,) = build_payload(make_lanes([told]))["lanes"][0]["runs"]
    assert [kind for kind, _ in entry["advice"]] == ["nucleation_onset"]
    scan = replace(told, info={**run.info, "stages": [{"step": 20, "name": "sft"}]})
    (entry,) = build_payload(make_lanes([scan]))["lanes"][0]["runs"]
    assert entry["advice"] == []
