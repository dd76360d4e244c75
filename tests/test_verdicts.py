"""Verdicts and measurements of a chain of stages whose truth is planted."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from crystalmon.analysis.stage_measures import find_proxy_stage, measure_stages
from crystalmon.analysis.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    TaskSeed,
    format_verdicts,
    judge_liquid,
    judge_run,
    judge_support,
)
from crystalmon.metrics.bootstrap import bootstrap_interval, bootstrap_weights
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.measurement import mean_over_tasks, measure_task
from crystalmon.metrics.seeds import noise_floor, support
from crystalmon.phases import SuiteDetector
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord, TaskRecord
from crystalmon.runs.reference import CHOICE_PREFIX, TENSOR_FILE
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore

TASKS, PROMPTS, CHOICES = 6, 24, 8


def liquid_base() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {f"task-{t}": rng.dirichlet(np.full(CHOICES, 0.5), size=PROMPTS) for t in range(TASKS)}


def towards(b: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """[P, C] answers that have gone a share of the way, in log-probability, to an end [C]."""
    log_q = (1 - share) * np.log(b + 1e-9) + share * np.log(end + 1e-9)
    q = np.exp(log_q - log_q.max(axis=1, keepdims=True))
    return q / q.sum(axis=1, keepdims=True)


def write_stages(folder: Path, base: dict, stages: list[dict], *, first: dict | None = None) -> Run:
    """A scan's folder: the base, then each stage's answers by task, as a monitor measures them."""
    (folder / REFERENCE_FOLDER).mkdir(parents=True)
    tables = {f"{CHOICE_PREFIX}{name}": np.log(b) for name, b in base.items()}
    save_file(tables, folder / REFERENCE_FOLDER / TENSOR_FILE)
    names = ["base", "sft", "dpo", "rl", *(f"rl-{more}" for more in range(2, len(stages)))]
    names = names[: len(stages) + 1]
    info = {"stages": [{"name": name, "step": step} for step, name in enumerate(names)]}
    store = RunStore.open(folder, info, resume_step=None)
    detector = SuiteDetector(base)
    for step, q in enumerate([base if first is None else first, *stages]):
        store.append(*probe(step, q, base, detector))
    return read_run(folder)


def probe(step, q, base, detector):
    weights = bootstrap_weights(PROMPTS, 200, np.random.default_rng(0))
    averaged = {"coverage": np.ones(PROMPTS), "free_energy": np.zeros(PROMPTS)}
    measured = {name: measure_task(q[name], b, averaged, weights) for name, b in base.items()}
    events = detector.update(step, q, dict.fromkeys(base, 1.0))
    tasks = {
        name: TaskRecord(
            q[name],
            task.metrics,
            {k: bootstrap_interval(task.metrics[k], v) for k, v in task.replicates.items()},
            detector.tasks[name].phase,
            detector.tasks[name].seed,
            "raw",
        )
        for name, task in measured.items()
    }
    keys = next(iter(measured.values())).replicates
    suite = {key: mean_over_tasks([*measured.values()], key) for key in keys}
    metrics = {key: value for key, (value, _) in suite.items()}
    metrics["tasks_not_measurable"] = 0.0
    ci = {key: bootstrap_interval(*found) for key, found in suite.items()}
    return ProbeRecord(step, None, 0.0, 0.1, 0.1, detector.phase, metrics, ci, tasks), events


def at_seed(base, share=0.98):
    return {name: towards(b, b[t], share) for t, (name, b) in enumerate(base.items())}


def settled(base):
    """Sharper than the seed, on its support."""
    ends = {}
    for t, (name, b) in enumerate(base.items()):
        end = np.where(support(b[t]), b[t] ** 2, 1e-4)
        ends[name] = towards(b, end / end.sum(), 0.98)
    return ends


def leaked(base, tasks=TASKS):
    """Half of the probability on the choice that the seed likes least, in the first tasks."""
    ends = at_seed(base)
    for t, (name, b) in enumerate([*base.items()][:tasks]):
        ends[name] = 0.5 * ends[name] + 0.5 * np.eye(CHOICES)[np.argmin(b[t])]
    return ends


def verdicts_of(run: Run) -> list[str]:
    return [verdict.verdict for verdict in judge_run(run)]


def test_the_papers_picture_holds_where_it_was_planted(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), at_seed(base), settled(base)])
    liquid, nucleated, inside = judge_run(run)
    assert [v.verdict for v in (liquid, nucleated, inside)] == [HOLDS] * 3
    low, high = liquid.evidence["interval"]
    assert low < liquid.evidence["liquidity"] < high
    found = nucleated.evidence["tasks"]
    assert [found[f"task-{t}"]["seed"] for t in range(TASKS)] == list(range(TASKS))
    assert all(0 < task["p_value"] <= 1 and task["step"] == 1 for task in found.values())
    assert len(inside.evidence["moved"]) > TASKS / 2
    assert inside.evidence["leaking"] == []
    text = format_verdicts((liquid, nucleated, inside))
    assert text.count("holds: ") == 3


def test_a_seed_needs_no_three_stages_to_be_seen(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), settled(base)])
    _, nucleated, inside = judge_run(run)
    assert (nucleated.verdict, inside.verdict) == (HOLDS, HOLDS)
    assert not any(task["locked"] for task in nucleated.evidence["tasks"].values())


def seedless(base):
    """All prompts alike, and like no prompt of the base: on the two choices that suit none."""
    pairs = np.full((CHOICES * (CHOICES - 1) // 2, CHOICES), 0.01)
    for row, pair in zip(pairs, combinations(range(CHOICES), 2), strict=True):
        row[list(pair)] = (1 - 0.01 * (CHOICES - 2)) / 2
    ends = {
        n: pairs[js_divergence(pairs[:, None], b).min(axis=1).argmax()] for n, b in base.items()
    }
    return {name: towards(b, ends[name], 0.99) for name, b in base.items()}


def of_other_seeds(base):
    """As `at_seed`, each task on the prompt ten farther on."""
    return {n: towards(b, b[t + 10], 0.98) for t, (n, b) in enumerate(base.items())}


def test_four_alike_lock_the_seed_from_the_first_on(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base)] * 4 + [settled(base)])
    _, nucleated, inside = judge_run(run)
    assert "6 of 6 tasks on a seed, 6 of them locked" in nucleated.reason
    assert {e.step for e in run.events if e.kind == "seed_locked"} == {4}
    for t, task in enumerate(nucleated.evidence["tasks"].values()):
        assert (task["seed"], task["step"], task["locked"]) == (t, 1, True)
        assert task["distance"] < 0.01
    assert inside.verdict == HOLDS


def test_a_seed_that_took_over_is_dated_to_its_own_lock(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base)] * 4 + [of_other_seeds(base)] * 5)
    found = judge_run(run)[1].evidence["tasks"]
    over = {e.task: e.step for e in run.events if e.kind == "recrystallization"}
    assert len(over) > TASKS / 2
    for t, name in enumerate(base):
        if name in over:
            assert (found[name]["seed"], found[name]["step"]) == (t + 10, over[name])
            assert over[name] > 4


def test_a_seed_after_melting_is_dated_to_its_own_lock(tmp_path):
    base = liquid_base()
    melted = at_seed(base, 0.3)
    stages = [*[at_seed(base)] * 4, melted, melted, *[at_seed(base)] * 4]
    run = write_stages(tmp_path, base, stages)
    assert any(event.kind == "melting" for event in run.events)
    found = judge_run(run)[1].evidence["tasks"]
    locks = {e.task: e.step for e in run.events if e.kind == "seed_locked"}
    assert {name: task["step"] for name, task in found.items()} == locks
    assert min(locks.values()) > 6


def test_what_the_detector_has_confirmed_to_be_seedless_is(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), *[seedless(base)] * 6])
    confirmed = {e.task: e for e in run.events if e.kind == "seedless_collapse"}
    assert len(confirmed) >= TASKS / 2
    found = judge_run(run)[1].evidence["tasks"]
    for name, event in confirmed.items():
        assert (found[name]["state"], found[name]["seed"]) == ("seedless", None)
        assert found[name]["step"] == event.step
        assert found[name]["distance"] == event.evidence["distance"]


def test_of_several_stages_the_last_that_names_a_seed_is_believed(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [of_other_seeds(base), at_seed(base), settled(base)])
    found = judge_run(run)[1].evidence["tasks"]
    assert [task["seed"] for task in found.values()] == list(range(TASKS))
    assert {task["step"] for task in found.values()} == {2}
    assert not any(task["locked"] for task in found.values())


def test_what_comes_nearer_to_its_seed_has_not_left_it(tmp_path):
    base = liquid_base()
    seeds = {n: TaskSeed("seeded", t, step=1) for t, n in enumerate(base)}
    run = write_stages(tmp_path / "on", base, [at_seed(base, 0.3), at_seed(base, 0.45)])
    for t, (name, b) in enumerate(base.items()):
        pooled = run.records[2].tasks[name].q.mean(axis=0)
        assert js_divergence(pooled, b[t]) > noise_floor(b, t)
    assert judge_support(run, base, seeds).evidence["moved"] == []
    back = write_stages(tmp_path / "back", base, [at_seed(base), settled(base)])
    assert len(judge_support(back, base, seeds).evidence["moved"]) > TASKS / 2


def test_the_tasks_are_resampled_apart(tmp_path):
    base = liquid_base()
    alike = dict.fromkeys(base, base["task-0"])
    ends = dict.fromkeys(base, settled(base)["task-0"])
    run = write_stages(tmp_path, alike, [dict.fromkeys(base, at_seed(base)["task-0"]), ends])
    seeds = {name: TaskSeed("seeded", 0, step=1) for name in base}
    whole = judge_support(run, alike, seeds).evidence
    low, high = whole["interval"]
    one_low, one_high = whole["tasks"]["task-0"]["interval"]
    assert high - low < 0.7 * (one_high - one_low)  # 1 / √6 of it, but for chance


def test_few_wordings_show_no_interval_of_the_mass_that_left(tmp_path):
    base, one = liquid_base(), {"task-0": TaskSeed("seeded", 0, step=1)}
    run = write_stages(tmp_path, base, [at_seed(base), leaked(base)])
    two = [
        replace(
            record, tasks={n: replace(t, q=t.q[:2], asked=(0, 1)) for n, t in record.tasks.items()}
        )
        for record in run.records
    ]
    assert judge_support(run, base, one).verdict == FAILS
    found = judge_support(replace(run, records=tuple(two)), base, one)
    assert found.verdict == OPEN
    assert np.isnan(found.evidence["interval"]).all()


def test_a_leak_is_named(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path / "all", base, [at_seed(base), at_seed(base), leaked(base)])
    inside = judge_run(run)[2]
    assert inside.verdict == FAILS
    assert inside.evidence["fall"] > 0.3
    assert len(inside.evidence["leaking"]) == len(inside.evidence["tasks"])
    run = write_stages(tmp_path / "one", base, [at_seed(base), at_seed(base), leaked(base, 1)])
    inside = judge_run(run)[2]
    assert inside.verdict == HOLDS
    assert inside.evidence["leaking"] == ["task-0"]
    assert "task-0 left its support" in inside.reason


def test_a_collapse_onto_nothing_of_the_base_is_seedless(tmp_path):
    base = liquid_base()
    ends = seedless(base)
    _, nucleated, inside = judge_run(write_stages(tmp_path, base, [ends, ends]))
    assert nucleated.verdict == FAILS
    assert len(nucleated.evidence["seedless"]) >= TASKS / 2
    assert inside.verdict == OPEN


def test_what_has_not_collapsed_has_not_nucleated(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base, 0.2), at_seed(base, 0.3)])
    assert verdicts_of(run) == [HOLDS, FAILS, OPEN]


def test_the_base_alone_and_an_ordered_base(tmp_path):
    base = liquid_base()
    assert verdicts_of(write_stages(tmp_path / "alone", base, [])) == [HOLDS, OPEN, OPEN]
    ordered = {name: towards(b, b[0], 0.999) for name, b in base.items()}
    run = write_stages(tmp_path / "ordered", ordered, [at_seed(ordered)])
    assert verdicts_of(run) == [FAILS, OPEN, OPEN]


def test_a_broken_stage_is_passed_over(tmp_path):
    base = liquid_base()
    broken = {name: np.full_like(b, np.nan) for name, b in base.items()}
    run = write_stages(tmp_path, base, [at_seed(base), at_seed(base), broken])
    _, nucleated, inside = judge_run(run)
    assert nucleated.verdict == HOLDS
    assert inside.verdict == HOLDS
    measure_stages(run)


def test_a_broken_stage_hides_nothing_before_it(tmp_path):
    base = liquid_base()
    broken = {name: np.full_like(b, np.nan) for name, b in base.items()}
    run = write_stages(tmp_path, base, [at_seed(base, 0.3), broken])
    assert len(judge_run(run)[1].evidence["not crystallized"]) == TASKS


def test_a_task_in_doubt_is_neither_liquid_nor_ordered():
    bar = 0.01 * np.log(CHOICES)
    spans = {"above": (2, 3), "about": (0.5, 3), "about-too": (0.1, 1.5), "below": (0.1, 0.5)}
    q = np.full((PROMPTS, CHOICES), 1 / CHOICES)
    tasks = {
        name: TaskRecord(q, {}, {"liquidity": (low * bar, high * bar)}, "liquid", None, "raw")
        for name, (low, high) in spans.items()
    }
    metrics, ci = {"liquidity": bar, "entropy_mixture": 2.0}, {"liquidity": (0.0, 2 * bar)}
    found = judge_liquid(ProbeRecord(0, None, 0.0, 0.1, 0.1, "liquid", metrics, ci, tasks))
    assert (found.evidence["liquid"], found.evidence["ordered"]) == (["above"], ["below"])
    assert found.verdict == OPEN


def test_a_seed_that_every_choice_supports_says_nothing_of_leaks(tmp_path):
    base = liquid_base()
    base["task-2"][2] = 1 / CHOICES
    run = write_stages(tmp_path, base, [at_seed(base), settled(base)])
    _, nucleated, inside = judge_run(run)
    assert nucleated.evidence["tasks"]["task-2"]["seed"] == 2
    assert "task-2" not in inside.evidence["tasks"]
    assert len(inside.evidence["tasks"]) == TASKS - 1


def test_a_run_without_probes_is_one_sentence(tmp_path):
    store = RunStore.open(tmp_path, {}, resume_step=None)
    with pytest.raises(ValueError, match="has no probe yet"):
        judge_run(read_run(store.folder))


def test_measures_by_their_formulas(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), settled(base)])
    found = measure_stages(run)
    task = found["tasks"]["task-0"]
    proxy = run.records[1].tasks["task-0"].q.mean(axis=0)
    assert task["proxy_seed"] == pytest.approx(proxy)
    expected = np.mean((run.records[2].tasks["task-0"].q - proxy) ** 2)
    assert task["proxy_mse"]["dpo"] == pytest.approx(expected)
    assert task["choices"] == [str(index) for index in range(CHOICES)]
    inside = support(proxy)
    expected = run.records[2].tasks["task-0"].q[:, inside].sum() / PROMPTS
    assert task["proxy_mass"]["dpo"] == pytest.approx(expected)
    means = [found["tasks"][f"task-{t}"]["variety"]["sft"] for t in range(TASKS)]
    assert found["mean"]["variety"]["sft"] == pytest.approx(np.mean(means))


def test_the_final_seed_is_one_throughout(tmp_path):
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), settled(base)])
    found = measure_stages(run)
    for t, (name, b) in enumerate(base.items()):
        task = found["tasks"][name]
        assert task["final_seed"] == t
        for record, stage in zip(run.records, ("base", "sft", "dpo"), strict=True):
            weights = np.ones((1, PROMPTS)) / PROMPTS
            expected = measure_task(record.tasks[name].q, b, {}, weights, seed=t).metrics
            assert task["final_seed_mse"][stage] == pytest.approx(expected["seed_mse"])
            assert task["final_seed_mass"][stage] == pytest.approx(expected["seed_mass"])
    mse, mass = found["mean"]["final_seed_mse"], found["mean"]["final_seed_mass"]
    assert mse["sft"] < mse["dpo"] < mse["base"]
    assert mass["base"] < mass["sft"] < mass["dpo"]
    alone = measure_stages(write_stages(tmp_path / "alone", base, []))
    assert np.isnan(alone["mean"]["final_seed_mse"]["base"])
    assert alone["tasks"]["task-0"]["final_seed"] is None


def test_the_proxy_stage_is_the_end_of_sft():
    assert find_proxy_stage({0: "base", 1: "sft/checkpoint-1", 2: "SFT", 3: "rl"}) == 2
    assert find_proxy_stage({0: "base", 1: "dpo", 2: "rl"}) == 1
    assert find_proxy_stage({0: "base"}) is None


def test_no_other_stage_stands_for_an_sft_that_is_missing(tmp_path):
    listed = ["base", "sft", "dpo"]
    assert find_proxy_stage({0: "base", 2: "dpo"}, listed) is None
    assert find_proxy_stage({0: "base", 1: "sft", 2: "dpo"}, listed) == 1
    base = liquid_base()
    run = write_stages(tmp_path, base, [at_seed(base), at_seed(base)])
    found = measure_stages(replace(run, records=(run.records[0], run.records[2])))
    assert found["proxy_stage"] is None
    assert np.isnan(found["tasks"]["task-0"]["proxy_mse"]["dpo"])
