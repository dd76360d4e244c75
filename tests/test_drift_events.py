"""Answers that become sure, KL that leaps, limits of the user's own: told, and not for less."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmon.analysis.replay import detect_run
from crystalmon.monitor.actions import check_actions
from crystalmon.phases import PhaseDetector, SuiteDetector
from crystalmon.phases.leaps import leap
from crystalmon.phases.limits import Limits, check_limits
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord


def kinds(events):
    return [event.kind for event in events]


def sharpened(base, power):
    rows = base**power
    return rows / rows.sum(axis=1, keepdims=True)


@pytest.fixture
def base():
    rows = np.random.default_rng(0).dirichlet(np.full(8, 3.0), size=12)
    return rows / rows.sum(axis=1, keepdims=True)


# --- entropy ---------------------------------------------------------------------------------


def test_answers_that_become_sure_each_of_its_own_are_told_once(base):
    """No wording agrees with another: by `order` nothing has happened."""
    detector, events = PhaseDetector(base), []
    for step, power in enumerate([1, 2, 4, 40, 40, 40, 40]):
        events += detector.update(step, sharpened(base, power))
    assert kinds(events) == ["entropy_collapse"]
    assert detector.phase == "liquid"
    evidence = events[0].evidence
    assert evidence["entropy"] < 0.25 * evidence["base_entropy"]


def test_a_passing_certainty_is_not_told_and_a_second_one_is_told_again(base):
    detector, events = PhaseDetector(base), []
    for step, power in enumerate([1, 40, 1, 40, 40, 1, 1, 40, 40]):
        events += detector.update(step, sharpened(base, power))
    assert kinds(events) == ["entropy_collapse"] * 2
    assert [event.step for event in events] == [4, 8]


def test_a_base_that_was_sure_has_nothing_to_lose(base):
    sure, detector = sharpened(base, 40), PhaseDetector(sharpened(base, 40))
    events = [e for step in range(5) for e in detector.update(step, sharpened(sure, 40))]
    assert "entropy_collapse" not in kinds(events)


def test_the_next_stage_does_not_tell_it_again(base):
    first = PhaseDetector(base)
    for step in range(3):
        first.update(step, sharpened(base, 40))
    second = PhaseDetector(base, state=first.state.handed_on())
    events = [e for step in range(4) for e in second.update(step, sharpened(base, 40))]
    assert "entropy_collapse" not in kinds(events)


# --- KL --------------------------------------------------------------------------------------


def watch(base, values, asked=None, training=True):
    detector, events = SuiteDetector({"a": base, "b": base}), []
    detector.training = training
    for step, value in enumerate(values):
        rows = None if asked is None else asked[step]
        q = dict.fromkeys("ab", base if rows is None else base[list(rows)])
        shown = dict.fromkeys("ab", rows)
        events += detector.update(step, q, {}, shown, None, {"a": value, "b": value})
    return events


LEAPT = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.9, 0.95, 0.95)


def test_between_the_stages_of_a_scan_nothing_leaps(base):
    assert watch(base, LEAPT, training=False) == []


def test_a_leap_of_kl_is_told_with_its_numbers(base):
    (event,) = watch(base, LEAPT)
    assert (event.kind, event.step, event.task) == ("free_energy_jump", 7, None)
    assert event.evidence["rise"] == pytest.approx(0.84)
    assert event.message == "the KL to the base leapt from 0.06 to 0.90 nats since step 6"


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 3, 40),  # steady
        3 * (1 - np.exp(-np.arange(40) / 8)),  # fast at first, then slow
        3 / (1 + np.exp(-(np.arange(40) - 20) / 3)),  # slow, fast, slow
        0.001 * 1.25 ** np.arange(40),  # faster and faster
        np.tile([1.0, 1.2], 20),  # to and fro
        np.linspace(0, 0.05, 40) ** 4,  # too little
        [0, 0, 0, 0.5, 1.0],  # too early to know a pace
        [0, 0.1, 0.2, math.nan, 0.4, 2.0],  # known too seldom
    ],
)
def test_what_keeps_its_pace_is_no_leap(base, values):
    assert watch(base, values) == []


def test_probes_of_other_wordings_are_not_held_against_each_other(base):
    """A few wordings may lie at another KL than all."""
    values = [0.01 * n for n in range(8)] + [0.5 + 0.01 * n for n in range(8)]
    asked = [None] * 8 + [(0, 1)] * 8
    assert watch(base, values, asked) == []
    assert kinds(watch(base, values)) == ["free_energy_jump"]


def test_a_leap_is_seen_by_probes_of_few_wordings_and_of_all_in_turn(base):
    values = [0.01 * n for n in range(14)] + [5.0, 5.0]
    found = watch(base, values, [None, (0, 1)] * 8)
    assert [(event.step, event.evidence["since"]) for event in found] == [(14, 12), (15, 13)]


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_a_leap_is_seen_past_a_probe_whose_kl_is_not_known(base, unknown):
    values = [0.01 * n for n in range(8)]
    values[4] = unknown
    assert kinds(watch(base, [*values, 2.0])) == ["free_energy_jump"]


@given(st.lists(st.floats(0, 10), max_size=30), st.floats(0.1, 100))
def test_a_leap_does_not_depend_on_how_steps_are_counted(values, scale):
    steps = np.arange(len(values))
    one, other = leap(steps.tolist(), values), leap((steps * scale).tolist(), values)
    assert (one is None) == (other is None)
    leapt = [*values, *[1.0] * 9, 3.0]
    assert leap((np.arange(len(leapt)) * scale).tolist(), leapt) is not None


# --- limits ----------------------------------------------------------------------------------


def record(step, **metrics):
    return ProbeRecord(step, None, 0.0, 0.0, 0.0, "liquid", metrics, {}, {})


def test_a_limit_is_told_when_it_is_passed_and_again_once_it_was_back():
    limits = Limits(check_limits({"free_energy": 2, "entropy": 0.5}))
    found = []
    for step, (kl, h) in enumerate([(0, 1), (2.5, 0.4), (3, 0.3), (math.nan, 1), (1, 1), (2.1, 1)]):
        found += limits.check(record(step, free_energy=kl, entropy=h))
    assert [(e.step, e.kind) for e in found] == [
        (1, "free_energy_limit"),
        (1, "entropy_limit"),
        (5, "free_energy_limit"),
    ]
    assert found[0].message == "free energy is above 2 nats: 2.5"
    assert found[1].message == "entropy is below 0.5 nats: 0.4"
    assert found[0].evidence == {"free_energy": 2.5, "limit": 2.0, "since": 0}
    assert found[2].evidence["since"] == 4


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"free_enrgy": 2}, ValueError, "got 'free_enrgy'. Did you mean free_energy"),
        ({"seed": 2}, ValueError, "metric of the suite"),
        ({"free_energy": "2"}, TypeError, "must be a number, got str"),
        ({"free_energy": True}, TypeError, "must be a number, got bool"),
        ({"free_energy": math.inf}, ValueError, "must be finite"),
        ({"free_energy": 10**400}, ValueError, "must be finite"),
        ({"probe_share": 0.1}, ValueError, "metric of the suite"),
        ({"temperature_": 1}, ValueError, "Most limit free_energy"),
        (["free_energy"], TypeError, "must be a mapping, got list"),
    ],
)
def test_limits_that_cannot_be(limits, error, message):
    with pytest.raises(error, match=message):
        check_limits(limits)


def test_a_limit_that_is_set_anew_is_told_anew():
    limits = Limits({"free_energy": 1.0})
    assert kinds(limits.check(record(1, free_energy=3.0))) == ["free_energy_limit"]
    limits.forget(["free_energy"])
    assert kinds(limits.check(record(2, free_energy=3.0))) == ["free_energy_limit"]


def test_an_action_on_a_limit_needs_the_limit():
    assert check_actions({"free_energy_limit": "stop"}, [], ["free_energy"])
    with pytest.raises(ValueError, match=r"got 'nope_limit'\.$"):
        check_actions({"nope_limit": "stop"}, [])
    with pytest.raises(ValueError, match=r"Set a limit, as in limits=\{'entropy': 2.0\}"):
        check_actions({"entropy_limit": "stop"}, [], ["free_energy"])


def test_a_training_stops_at_its_limit_and_a_replay_knows_it(tmp_path, model, tokenizer, suite):
    from test_callback import make_trainer

    from crystalmon import CrystalCallback

    callback = CrystalCallback(
        suite, every=1, limits={"free_energy": 0.05}, actions={"free_energy_limit": "stop"}
    )
    options = {"max_steps": 40, "learning_rate": 5e-3}
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [callback], **options)
    trainer.train()
    run = read_run(tmp_path)
    (event,) = (e for e in run.events if e.kind == "free_energy_limit")
    assert run.records[-1].metrics["free_energy"] > 0.05 >= run.records[-2].metrics["free_energy"]
    assert trainer.state.global_step == event.step < 40
    assert run.info["config"]["limits"] == {"free_energy": 0.05}
    assert detect_run(run).repeats_live
    damaged = replace(run, info={**run.info, "config": {"limits": ["free_energy"]}})
    with pytest.raises(ValueError, match=r"limits in run\.json are damaged"):
        detect_run(damaged)
