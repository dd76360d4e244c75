"""Where the listed answers are too rarely given, nothing is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_phases import PROMPTS, geometric, make_base, ramp

from crystalmon.metrics.answers import order
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.metrics.measurement import mean_over_tasks, measure_task
from crystalmon.phases import PhaseDetector, SuiteDetector


def collapse(base, shares):
    return [geometric(base, np.tile(base[3], (PROMPTS, 1)), share) for share in shares]


@pytest.fixture
def base():
    return make_base(np.random.default_rng(0))


def test_a_collapse_that_cannot_be_measured_raises_nothing(base):
    detector = PhaseDetector(base)
    events = [
        event
        for step, q in enumerate(collapse(base, ramp(20)))
        for event in detector.update(step, q, measurable=0.4)
    ]
    assert events == []
    assert detector.phase == NOT_MEASURABLE
    assert detector.seed is None


def test_a_task_that_is_first_measured_beyond_its_onset_has_it_told(base):
    """So that what is to be done at the onset is done; where it lay is not made up."""
    detector, events = PhaseDetector(base), []
    for step, q in enumerate(collapse(base, ramp(20))):
        events += detector.update(step, q, measurable=0.0 if step < 18 else 1.0)
    assert detector.phase in ("crystallized", "settling")
    onset = next(event for event in events if event.kind == "nucleation_onset")
    assert onset.evidence["onset_interval"][0] == 0
    assert "past 0.2 already when it was first measured, at step 18" in onset.message
    assert "onset_step" not in onset.evidence
    assert "nucleation_complete" in [event.kind for event in events]


def test_a_stage_begins_in_the_phase_that_the_one_before_left(base):
    detector, events = PhaseDetector(base), []
    end = list(collapse(base, ramp(20)))[-1]
    for step in range(3):
        events += detector.update(step, end, measurable=1.0)
    assert detector.phase in ("crystallized", "settling")
    assert "nucleation_onset" not in [event.kind for event in events]


def test_probes_that_cannot_be_measured_are_passed_over(base):
    whole, gaps = PhaseDetector(base), PhaseDetector(base)
    events = {whole: [], gaps: []}
    for step, q in enumerate(collapse(base, ramp(30))):
        if step % 3 == 0:
            events[gaps] += gaps.update(step, q[::-1].copy(), measurable=0.1)
            continue
        for detector in events:
            events[detector] += detector.update(step, q, measurable=1.0)
    assert events[whole] == events[gaps] != []


def test_a_lost_format_is_told_even_so(base):
    detector, events = PhaseDetector(base), []
    for step in range(4):
        rare = step > 0
        events += detector.update(
            step, base, coverage=0.02 if rare else 0.9, measurable=0.0 if rare else 1.0
        )
    assert [event.kind for event in events] == ["format_drift"]
    assert detector.phase == NOT_MEASURABLE


@pytest.mark.parametrize(("rare", "phase"), [(2, "crystallized"), (3, NOT_MEASURABLE)])
def test_a_suite_needs_half_of_its_tasks(base, rare, phase):
    names = ["a", "b", "c", "d"]
    detector, events = SuiteDetector(dict.fromkeys(names, base)), []
    for step, q in enumerate(collapse(base, ramp(20))):
        shares = {name: float(place >= rare) for place, name in enumerate(names)}
        events += detector.update(step, dict.fromkeys(names, q), {}, None, shares)
    assert detector.phase.replace("settling", "crystallized") == phase
    assert {event.task for event in events} - {None} == set(names[rare:])
    assert (None in {event.task for event in events}) == (phase != NOT_MEASURABLE)


def test_a_task_that_cannot_be_measured_now_and_then_moves_no_suite(base):
    """Where it was counts, or each gap would be a change of the suite."""
    names, events = list("abcdefg"), []
    detector = SuiteDetector(dict.fromkeys(names, base))
    together = collapse(base, ramp(60))
    for step in range(60):
        q = {name: together[step] if name in "abc" else base for name in names}
        gap = step > 25 and step % 10 < 3
        shares = {name: 0.0 if gap and name in "de" else 1.0 for name in names}
        events += detector.update(step, q, {}, None, shares)
    assert {event.task for event in events if event.kind == "nucleation_complete"} == set("abc")
    assert not [event for event in events if event.task is None]
    assert detector.phase == "liquid"


def test_the_format_to_lose_is_that_of_the_first_measured_probe(base):
    detector, events = PhaseDetector(base), []
    for step, coverage in enumerate([1e-3, 4e-4, 4e-4, 0.3, 0.9, 0.9, 0.02, 0.02]):
        events += detector.update(step, base, coverage=coverage, measurable=float(coverage > 0.1))
    assert [(event.kind, event.step) for event in events] == [("format_drift", 7)]
    assert events[0].evidence["first_coverage"] == 0.3


def test_alike_by_chance_is_not_ordered(base):
    """Of a base that does not answer, nothing is known, also not that it answers alike."""
    detector = PhaseDetector(np.full_like(base, 1 / base.shape[1]))
    detector.update(0, base, measurable=0.0)
    assert detector.phase == NOT_MEASURABLE
    detector.update(1, base, measurable=1.0)
    assert detector.phase == "ordered"


def test_half_of_the_wordings_is_enough_whatever_the_rounding(base):
    detector = PhaseDetector(base)
    detector.update(0, base, measurable=0.5 - 1e-16)
    assert detector.phase == "liquid"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_between_the_base_to_plain_prompts_and_in_the_view_nothing_is_lost(base, share):
    """The base answers more alike in this view than to the plain prompts; so does the model."""
    in_view = geometric(base, np.tile(base[3], (PROMPTS, 1)), 0.4)
    assert order(in_view, base, uniform_weights(PROMPTS)) > 0.4
    q = geometric(base, np.tile(base[3], (PROMPTS, 1)), share)
    naive, fair, events = PhaseDetector(base), PhaseDetector(base, in_view=in_view), []
    for step in range(5):
        for detector in (naive, fair):
            found = detector.update(step, q, measurable=float(step > 0))
        events += found
    assert (fair.phase, fair.state.orders[-1], events) == ("liquid", 0.0, [])
    assert naive.phase == ("liquid" if share == 0.0 else "nucleating")


@pytest.mark.parametrize("swapped", [False, True])
def test_outside_it_the_order_counts_from_the_nearer_end(base, swapped):
    """A collapse is one against both; so is a gain."""
    near = geometric(base, np.tile(base[3], (PROMPTS, 1)), 0.4)
    plain, in_view = (near, base) if swapped else (base, near)
    weights = uniform_weights(PROMPTS)
    collapsed = geometric(base, np.tile(base[3], (PROMPTS, 1)), 0.9)
    found = order(collapsed, plain, weights, in_view)
    assert float(found) == pytest.approx(float(order(collapsed, near, weights)))
    wild = np.eye(base.shape[1])[np.arange(PROMPTS) % base.shape[1]] * 0.9 + 0.1 / base.shape[1]
    gained = order(wild, plain, weights, in_view)
    assert float(gained) == pytest.approx(float(order(wild, base, weights)))
    assert gained < 0 < found


def test_a_collapse_against_both_is_told_with_the_order_of_its_record(base):
    in_view = geometric(base, np.tile(base[3], (PROMPTS, 1)), 0.4)
    detector, events = PhaseDetector(base, in_view=in_view), []
    weights = uniform_weights(PROMPTS)
    for step, q in enumerate(collapse(base, [0.4, *np.linspace(0.4, 0.99, 20), 0.99, 0.99])):
        found = detector.update(step, q, measurable=1.0)
        measured = measure_task(q, base, {}, weights[None], in_view=in_view).metrics["order"]
        for event in (each for each in found if "order" in each.evidence):
            assert event.evidence["order"] == pytest.approx(measured)
        events += found
    assert "nucleation_onset" in [event.kind for event in events]
    assert detector.phase in ("crystallized", "settling")


def test_answers_that_are_alike_are_alike_whatever_the_view_has_done(base):
    """A base that hardly answers in the view may answer alike there."""
    alike, weights = np.tile(base[3], (PROMPTS, 1)), uniform_weights(PROMPTS)
    assert order(alike, base, weights, alike) == 1.0
    assert order(base, base, weights, alike) == 0.0
    nearly = geometric(base, alike, 0.5)
    assert 0.5 < order(nearly, base, weights) < 0.8
    assert order(nearly, base, weights, alike) == 0.0
    detector = PhaseDetector(base, in_view=alike)
    for step, q in enumerate(collapse(base, ramp(20))):
        detector.update(step, q, measurable=float(step > 5))
    assert detector.phase in ("crystallized", "settling")


def test_the_order_of_a_suite_is_its_tasks_by_what_each_has_to_lose(base):
    in_view = geometric(base, np.tile(base[3], (PROMPTS, 1)), 0.4)
    q, weights = collapse(base, [0.8])[0], uniform_weights(PROMPTS)
    one = measure_task(q, base, {}, weights[None])
    other = measure_task(q, base, {}, weights[None], in_view=in_view)
    had = sum(task.ratios["order"][1][0] for task in (one, other))
    expected = 1 - 2 * one.metrics["liquidity"] / had
    assert mean_over_tasks([one, other], "order")[0] == pytest.approx(expected)
    assert other.metrics["order"] < mean_over_tasks([one, other], "order")[0] < one.metrics["order"]


def test_a_base_that_learns_to_answer_in_a_format(tmp_path, request):
    pytest.importorskip("torch")
    from datasets import Dataset
    from test_callback import train

    from crystalmon import CrystalCallback, Monitor, read_run
    from crystalmon.analysis.replay import detect_run

    model, tokenizer, suite = map(request.getfixturevalue, ("model", "tokenizer", "suite"))
    view = "### Instruction:\n{prompt}\n\n### Response:\n"
    plain = Monitor(model, tokenizer, suite, view="raw").base_q
    rows = [
        {"prompt": view.replace("{prompt}", prompt), "completion": task.choices[0].text}
        for task in suite
        for prompt in task.prompts
    ]
    callback = CrystalCallback(suite, every=1)
    data = Dataset.from_list(rows).shuffle(seed=0)
    train(
        tmp_path, model, tokenizer, suite, [callback],
        data=data, max_steps=12, learning_rate=5e-3,
    )  # fmt: skip
    run = read_run(tmp_path)
    first, last = run.records[0], run.records[-1]
    assert set(callback.monitor.reference.plain) == {"coin", "number", "color"}
    for name, task in first.tasks.items():
        assert task.phase == NOT_MEASURABLE
        assert task.metrics["measurable"] < 0.5
        assert math.isnan(task.metrics["order"])
        np.testing.assert_array_equal(callback.monitor.base_q[name], plain[name])
    assert "order" not in first.metrics
    assert first.phase == NOT_MEASURABLE
    assert last.phase != NOT_MEASURABLE
    assert 0 < last.metrics["order"] <= 1
    known = {
        (r.step, n) for r in run.records for n, t in r.tasks.items() if t.phase != NOT_MEASURABLE
    }
    assert all((e.step, e.task) in known for e in run.events if e.task is not None)
    assert detect_run(run).repeats_live
