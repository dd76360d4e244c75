"""Probes that ask a few prompts of each task: chosen, scored, stored, detected on and shown."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from fake_runs import make_task, planted_chain
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmon.metrics.answers import liquidity, order
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import entropy, js_divergence
from crystalmon.metrics.measurement import measure_task
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.phases import PhaseDetector, SuiteDetector
from crystalmon.phases.order import ONSET
from crystalmon.phases.partial import order_bounds
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord


def distributions(seed, prompts=24, choices=6):
    return (
        np.random.default_rng(seed).dirichlet(np.full(choices, 0.4), prompts) * 0.99
        + 0.01 / choices
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_subsets_are_nested_and_of_their_size(seed, prompts):
    b = distributions(seed, prompts)
    found = nested_subsets(b, (2, 4, 8))
    for size, chosen in found.items():
        assert len(chosen) == min(size, prompts)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(found[2]) <= set(found[4]) <= set(found[8]) <= set(range(prompts))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_subset_has_the_answers_of_all_better_than_a_random_one(size):
    rng, better = np.random.default_rng(0), 0

    def gap(b, rows):
        return float(js_divergence(b[rows].mean(axis=0), b.mean(axis=0)))

    for seed in range(20):
        b = distributions(seed)
        chosen = nested_subsets(b, (size,))[size]
        random = [gap(b, rng.choice(len(b), size, replace=False)) for _ in range(20)]
        better += gap(b, chosen) < np.median(random)
    assert better >= 18


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_subset_is_not_one_of_extremes(size):
    """Where the model forgets its wordings' answers for others as different, none is lost."""
    lost, gained = [], []
    for seed in range(60):
        b, q = distributions(seed), distributions(seed + 1000)
        rows = nested_subsets(b, (size,))[size]
        before, now = (liquidity(x[rows], uniform_weights(size)) for x in (b, q))
        whole = [liquidity(x, uniform_weights(24)) for x in (b, q)]
        lost.append((before - now) / before.mean())
        gained.append((whole[0] - whole[1]) / whole[0])
    assert np.mean(lost) == pytest.approx(np.mean(gained), abs=0.12)


def test_liquidity_of_a_few_prompts_is_that_of_all_as_far_as_they_tell():
    """So that a curve of whole and partial probes has no steps where nothing moves."""
    b, weights = distributions(1), uniform_weights(2)[None]
    rows = nested_subsets(b, (2,))[2]
    whole = measure_task(b, b, {}, uniform_weights(24)[None]).metrics
    still = measure_task(b[rows], b, {}, weights, asked=rows).metrics
    assert still["liquidity"] == pytest.approx(whole["liquidity"])
    half = measure_task(collapsed(b, 0.5)[rows], b, {}, weights, asked=rows).metrics
    assert half["liquidity"] == pytest.approx((1 - half["order"]) * whole["liquidity"])
    mixture = half["entropy"] + half["liquidity"]
    assert half["entropy_mixture"] == pytest.approx(min(mixture, math.log(6)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]), st.integers(2, 9))
def test_what_is_scaled_to_all_prompts_stays_in_its_range(seed, size, choices):
    b, q = distributions(seed, 24, choices), distributions(seed + 1, 24, choices) ** 6
    q /= q.sum(axis=1, keepdims=True)
    rows = nested_subsets(b, (2, 4, 8))[size]
    found = measure_task(q[rows], b, {}, uniform_weights(size)[None], asked=rows).metrics
    assert found["entropy_mixture"] <= math.log(choices) + 1e-9
    assert found["gamma_diversity"] <= choices + 1e-9
    whole, part = (float(liquidity(x, uniform_weights(len(x)))) for x in (b, b[rows]))
    assert whole / part < 8, "a set with hardly any liquidity tells nothing of the others"


def test_a_task_of_two_prompts_has_no_interval_and_four_a_wide_one(model, tokenizer):
    from crystalmon import Monitor

    monitor = Monitor(model, tokenizer, "liquid-tiny")
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    two, four, all_ = (monitor.probe(n, prompts=p) for n, p in ((1, 2), (2, 4), (3, None)))
    assert all(np.isnan(task.ci["order"]).all() for task in two.tasks.values())
    widths = [float(np.diff(record.ci["order"])[0]) for record in (two, four, all_)]
    assert widths[0] > widths[1] > widths[2] > 0
    for record in (two, four):
        low, high = record.ci["order"]
        assert low <= all_.metrics["order"] <= high


def collapsed(b, share):
    """All prompts part of the way to the answers of the first, along straight paths."""
    return (1 - share) * b + share * b[0]


def test_order_is_that_of_the_prompts_asked_against_the_same_of_the_base():
    b, rows = distributions(1), [1, 5, 7, 20]
    q = collapsed(b, 0.4)
    detector = PhaseDetector(b)
    detector.update(0, b)
    detector.update(1, q[rows], asked=rows)
    expected = order(q[rows], b[rows], uniform_weights(4))
    assert detector.state.orders[-1] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([3, 1], "ascending"), ([1, 1], "ascending"), ([0, 24], "24 prompts"), ([0], "shape")],
)
def test_prompts_that_are_not_the_bases_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        PhaseDetector(distributions(1)).update(0, distributions(1)[:2], asked=rows)


BASES = {f"task {n}": distributions(n) for n in range(6)}
ASKED = {name: tuple(nested_subsets(b, (4,))[4].tolist()) for name, b in BASES.items()}


def watch(shares, asked=ASKED):
    """The kinds of events by task, of tasks that are so far on their way at each partial probe."""
    detector, events = SuiteDetector(BASES), []
    whole = detector.update(0, BASES, {}, {})
    for step, share in enumerate(shares, 1):
        q = {n: collapsed(b, share.get(n, 0.0)) for n, b in BASES.items()}
        q = {n: table[list(asked[n])] if asked else table for n, table in q.items()}
        events += detector.update(step, q, {}, asked or {})
    return [(event.task, event.kind) for event in [*whole, *events]]


def test_tasks_that_move_together_have_their_onsets_by_partial_probes():
    path = [dict.fromkeys(BASES, share) for share in (0.1, 0.3, 0.5, 0.5)]
    onsets = {task for task, kind in watch(path) if kind == "nucleation_onset"}
    assert onsets == {None, *BASES}


def test_a_task_that_seems_to_collapse_alone_waits_for_all_its_prompts():
    alone = [{"task 0": 0.12}] * 4
    q = collapsed(BASES["task 0"], 0.12)
    rows = list(ASKED["task 0"])
    for some in (rows, range(24)):
        assert order(q[some], BASES["task 0"][some], uniform_weights(len(some))) > ONSET
    assert watch(alone) == []
    assert ("task 0", "nucleation_onset") in watch(alone, asked=None)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(("first", "rest"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_task_unlike_all_others_is_not_judged_by_them(size, first, rest):
    """A liquid one where all collapse; one that was crystallized alone, and stays."""
    rows = {name: tuple(nested_subsets(b, (size,))[size].tolist()) for name, b in BASES.items()}
    shares = {name: 0.97 * (first if name == "task 0" else rest) for name in BASES}
    q = {name: collapsed(b, shares[name]) for name, b in BASES.items()}
    detector = SuiteDetector(BASES)
    detector.update(0, q, {})
    phases = {name: task.phase for name, task in detector.tasks.items()}
    events = []
    for step in range(1, 5):
        events += detector.update(step, {n: q[n][list(rows[n])] for n in q}, {}, rows)
    assert [event for event in events if event.kind in ("nucleation_onset", "melting")] == []
    assert {name: task.phase for name, task in detector.tasks.items()} == phases


def uneven(spread, mean, size=2, tasks=12):
    """Bases, answers and two prompts of tasks whose panels' orders are `mean`, give or take."""
    rng, bases, found, asked = np.random.default_rng(0), {}, {}, {}
    for n, offset in enumerate(rng.permutation(np.linspace(-1.7, 1.7, tasks)) * spread):
        name, b = f"task {n}", distributions(n)
        rows = nested_subsets(b, (size,))[size]
        ahead = np.log(b[rows]) - np.log(b[rows]).mean(axis=0)
        scales = np.linspace(0, 4, 400)  # of the prompts' differences

        def scaled(by, b=b[rows], ahead=ahead):
            q = np.exp(np.log(b).mean(axis=0) + by * ahead)
            return q / q.sum(axis=1, keepdims=True)

        orders = [order(scaled(by), b[rows], uniform_weights(size)) for by in scales]
        best = scales[np.argmin(np.abs(np.array(orders) - (mean + offset)))]
        bases[name], found[name], asked[name] = b, scaled(best), tuple(rows.tolist())
    return bases, found, asked


@pytest.mark.parametrize(
    ("spread", "mean", "told"), [(0.5, 0.27, 0), (0.05, 0.27, 12), (0.2, 0.6, 12)]
)
def test_an_onset_waits_where_two_prompts_cannot_tell_it(spread, mean, told):
    """Where tasks' orders differ widely, the mean of a few is nothing to go by."""
    bases, q, asked = uneven(spread, mean)
    detector, events = SuiteDetector(bases), []
    detector.update(0, bases, {}, {})
    for step in range(1, 5):
        events += detector.update(step, q, {}, asked)
    onsets = [event for event in events if event.kind == "nucleation_onset"]
    assert len([event for event in onsets if event.task]) in range(told - 2, told + 1)
    assert (None in {event.task for event in onsets}) == (told > 0)


def test_tasks_of_which_all_prompts_are_asked_bound_no_others():
    of_two = 11 / 24
    found = order_bounds([0.0] * 5 + [0.3] * 4, 0.13, [0.0] * 5 + [of_two] * 4)
    assert found[:5] == [(0.0, 0.0)] * 5
    assert all(low < 0.2 and high > 0.19 for low, high in found[5:])


@pytest.mark.parametrize("tasks", [1, 3])
def test_few_tasks_tell_nothing_together(tasks):
    """As where the others are not measurable yet."""
    for low, high in order_bounds([0.5] * tasks, 0.5, [11 / 24] * tasks):
        assert low < 0.0
        assert high > 1.0


def test_a_task_whose_two_prompts_have_nothing_to_lose_hides_no_other():
    """Its order is 0 / 0, and no number of the suite's."""
    twins = distributions(99)
    twins[1] = twins[0]
    bases, asked = {**BASES, "twins": twins}, {**ASKED, "twins": (0, 1)}
    detector, events = SuiteDetector(bases), []
    detector.update(0, bases, {}, {})
    for step in range(1, 5):
        q = {name: collapsed(b, 0.5)[list(asked[name])] for name, b in bases.items()}
        events += detector.update(step, q, {}, asked)
    assert np.isnan(detector.tasks["twins"].state.orders[-1])
    assert {e.task for e in events if e.kind == "nucleation_onset"} == {None, *BASES}


def test_an_event_tells_the_order_that_the_record_has():
    bases, q, asked = uneven(0.1, 0.5)
    detector, events = SuiteDetector(bases), []
    detector.update(0, bases, {}, {})
    for step in range(1, 5):
        events += detector.update(step, q, {}, asked)
    for event in (each for each in events if each.task):
        rows = list(asked[event.task])
        shown = order(q[event.task], bases[event.task][rows], uniform_weights(2))
        assert event.evidence["order"] == pytest.approx(float(shown))
    assert [event for event in events if event.task]


def test_a_task_with_a_rigid_base_does_not_hold_back_the_others():
    """Its order falls to −100; in a plain mean of the tasks it would hide every onset."""
    rigid = np.full((24, 6), 1 / 6) + np.linspace(-0.15, 0.15, 24)[:, None] * np.eye(6)[0]
    rigid /= rigid.sum(axis=1, keepdims=True)
    bases = {**BASES, "rigid": rigid}
    asked = {**ASKED, "rigid": (0, 8, 16, 23)}
    detector, events = SuiteDetector(bases), []
    detector.update(0, bases, {}, {})
    for step in range(1, 5):
        q = {name: collapsed(b, 0.5)[list(asked[name])] for name, b in BASES.items()}
        q["rigid"] = np.eye(6)[:4] * 0.94 + 0.01
        events += detector.update(step, q, {}, asked)
    assert detector.tasks["rigid"].state.orders[-1] < -10
    assert {e.task for e in events if e.kind == "nucleation_onset"} == {None, *BASES}


def test_a_seed_is_sought_among_all_prompts_of_the_base():
    b = distributions(3, prompts=24, choices=8)
    rows = [r for r in nested_subsets(b, (5,))[5].tolist() if r != 0][:4]
    detector = PhaseDetector(b)
    detector.update(0, b)
    for step in range(1, 14):
        detector.update(step, collapsed(b, min(0.99, step / 6))[rows], asked=rows)
    assert detector.seed == 0


def test_a_partial_probe_scores_what_a_whole_one_does(model, tokenizer):
    from crystalmon import Monitor

    monitor = Monitor(model, tokenizer, "liquid-tiny")
    assert sorted(monitor.subsets) == [2, 4, 8, 24]
    tokens = monitor.tokens()
    assert tokens[24] == monitor.plan.num_unique_tokens
    assert tokens[2] < tokens[4] < tokens[8] < tokens[24] / 2
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    whole, part = monitor.probe(1), monitor.probe(2, prompts=4)
    for name, task in part.tasks.items():
        rows = monitor.subsets[4][name]
        assert task.asked == tuple(rows.tolist())
        np.testing.assert_allclose(task.q, whole.tasks[name].q[rows], atol=2e-6)
        expected = order(task.q, monitor.base_q[name][rows], uniform_weights(4))
        assert task.metrics["order"] == pytest.approx(float(expected))
        low, high = task.ci["liquidity"]
        assert low < high
    assert part.metrics["coverage"] == pytest.approx(whole.metrics["coverage"], abs=0.1)
    assert part.metrics["dissimilarity_1"] == pytest.approx(0.0, abs=1e-9)
    after = monitor.probe(3)
    assert after.tasks["coin"].asked is None
    assert after.metrics["dissimilarity_1"] == pytest.approx(0.0, abs=1e-9)
    assert {"order", "free_energy", "seed_mse"} <= part.metrics.keys()
    assert ProbeRecord.from_json(json.loads(json.dumps(part.to_json()))).tasks["coin"].fits(24, 2)


@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_a_model_like_its_base_has_the_values_of_all_prompts(model, tokenizer, prompts):
    from crystalmon import Monitor

    monitor = Monitor(model, tokenizer, "liquid-tiny")
    whole, part = monitor.probe(0), monitor.probe(1, prompts=prompts)
    of_the_nearest = {key for key in whole.metrics if key.startswith(("seed_", "crystal_"))}
    of_those_asked = {"susceptibility", "coverage"}
    for key in whole.metrics.keys() - of_the_nearest - of_those_asked:
        assert part.metrics[key] == pytest.approx(whole.metrics[key], abs=1e-4), key


def test_entropy_of_all_prompts_is_told_by_a_few():
    """Along collapses, the base's difference tells it better than the few prompts alone."""
    told, alone = [], []
    for seeded in range(8):
        b = distributions(seeded, prompts=24, choices=8)
        rows, none = nested_subsets(b, (2,))[2], np.zeros((0, 2))
        for share in np.linspace(0.0, 1.0, 11):
            q = collapsed(b, share)
            true = measure_task(q, b, {}, np.zeros((0, 24))).metrics["entropy"]
            told.append(measure_task(q[rows], b, {}, none, asked=rows).metrics["entropy"] - true)
            alone.append(entropy(q[rows]).mean() - true)
    assert told[::11] == pytest.approx(np.zeros(8), abs=1e-9)
    assert told[10::11] == pytest.approx(alone[10::11], abs=1e-3)
    assert np.square(told).mean() < np.square(alone).mean() / 2


def test_a_task_that_the_base_hardly_answers_is_not_measured_by_the_few_prompts_it_does(
    model, tokenizer
):
    from crystalmon import Monitor

    monitor = Monitor(model, tokenizer, "randomness")  # liquid-tiny has learnt other wordings
    unanswered = set(monitor.unanswered)
    assert len(unanswered) > 7
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    record = monitor.probe(1, prompts=2)
    assert {record.tasks[name].phase for name in unanswered} == {"not measurable"}
    assert record.phase == "not measurable"
    assert "order" not in record.metrics
    assert "entropy" in record.metrics


def test_a_whole_probe_tells_of_a_task_that_collapses_alone(model, tokenizer):
    """Live as in a replay."""
    from crystalmon import Monitor

    monitor = Monitor(model, tokenizer, "liquid-tiny")
    detector = SuiteDetector(monitor.base_q)
    told = []
    for step in range(4):
        q = dict(monitor.base_q)
        q["coin"] = collapsed(q["coin"], 0.6 * (step > 0))
        every = {name: np.arange(len(table)) for name, table in q.items()}
        coverage = {"coverage": np.ones(sum(map(len, q.values())))}
        monitor.course.measure(step, q, every, coverage)
        events = detector.update(step, q, {}, {})
        told += [event.kind for event in events]
        assert [e.kind for e in monitor.events] == [e.kind for e in events]
    assert "nucleation_onset" in told


def test_a_suite_of_few_tasks_is_asked_whole(model, tokenizer, suite):
    from crystalmon import Monitor

    assert [*Monitor(model, tokenizer, suite).subsets] == [24]


@pytest.mark.limited
def test_a_run_at_the_default_is_read_replayed_and_shown(tmp_path, model, tokenizer):
    from test_callback import train

    from crystalmon import CrystalCallback, load_suite
    from crystalmon.analysis.replay import detect_run
    from crystalmon.analysis.verdicts import judge_run
    from crystalmon.report.page import write_report

    suite = load_suite("liquid-tiny")
    callback = CrystalCallback(suite, strict=True)
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=24, learning_rate=3e-3)
    run = read_run(tmp_path)
    sizes = [len(record.tasks["coin"].q) for record in run.records]
    assert sizes[0] == 24
    assert len(sizes) >= 5
    assert 2 in sizes
    assert run.info["config"]["max_overhead"] == 0.02
    assert detect_run(run).repeats_live
    assert len(judge_run(run)) == 3
    write_report([tmp_path], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("asked", [[1, 0], [0.5, 2], [], "all", [0, 2**70], [0, 99]])
def test_a_line_that_names_other_prompts_is_left_out(tmp_path, asked):
    folder = planted_chain(tmp_path, [("a", (0.0, 0.1, 0.2), 1)])[0].folder
    lines = (folder / "records.jsonl").read_text().splitlines()
    line = json.loads(lines[-1])
    task = line["tasks"][next(iter(line["tasks"]))]
    task["q"], task["asked"] = task["q"][: max(1, len(asked))], asked
    (folder / "records.jsonl").write_text("\n".join([*lines[:-1], json.dumps(line), ""]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = read_run(folder)
    assert len(run.records) == len(lines) - 1
    assert any(f"line {len(lines)} cannot be read" in str(each.message) for each in told)


def test_a_record_names_a_prompt_for_each_row():
    with pytest.raises(ValueError, match="a prompt for each row"):
        dataclasses.replace(make_task(), asked=(0, 1))
