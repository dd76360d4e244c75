"""The detector against planted truths, rule by rule, and replayed.

The sequences are simulated here: a base of prompts, a path to somewhere else, and a little noise
on the logits. They show that each rule does what it says; its error rates are measured by
`scripts/validate_detection.py`, and held to by test_scenarios.py on small banks.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import make_scenario
from scenarios.paths import descent

from crystalmon.metrics.answers import liquidity, order, round_significant
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import NOISE_FLOOR, seed_distances, support
from crystalmon.phases import PhaseDetector, PhaseState, SuiteDetector
from crystalmon.phases.detector import advance
from crystalmon.phases.seed import at_rest, remember
from crystalmon.phases.state import RESTING, Base
from crystalmon.runs.records import EVENT_KINDS, PHASES, Event, TaskRecord

PROMPTS, CHOICES = 16, 8
SEEDS = range(8)
EVERY = 10
"""Training steps between two probes."""
UP = ["nucleation_onset", "nucleation_complete"]


# --- a small generator -----------------------------------------------------------------------


def make_base(rng: np.random.Generator, prompts: int = PROMPTS, choices: int = CHOICES):
    rows = rng.dirichlet(np.full(choices, 0.4), size=prompts) + 1e-3
    return rows / rows.sum(axis=1, keepdims=True)


def softmax(z: np.ndarray) -> np.ndarray:
    rows = np.exp(z - z.max(axis=-1, keepdims=True))
    return rows / rows.sum(axis=-1, keepdims=True)


def geometric(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    return softmax((1 - share) * np.log(start) + share * np.log(end))


def mixture(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    return (1 - share) * start + share * end


def ramp(probes: int, start: int = 4, length: int = 10) -> np.ndarray:
    """0 up to probe `start`, then evenly to 1 in `length` probes."""
    return np.clip((np.arange(probes) - start) / length, 0, 1)


def noisy(rng: np.random.Generator, q: np.ndarray, scale: float) -> np.ndarray:
    return softmax(np.log(q) + scale * rng.standard_normal(q.shape))


def true_orders(base: np.ndarray, path) -> np.ndarray:
    return np.array([order(q, base, uniform_weights(len(base))) for q in path])


def true_onset(base: np.ndarray, path) -> int:
    """The first probe at which the noise-free order passes 0.2, as a step."""
    return EVERY * int(np.argmax(true_orders(base, path) >= 0.2))


def watch(base, path, coverage=None, rng=None, noise=0.05, task="t"):
    """Run a detector over a path; (detector, events)."""
    detector = PhaseDetector(base, task)
    events = []
    for index, q in enumerate(path):
        seen = q if rng is None else noisy(rng, q, noise)
        share = None if coverage is None else float(coverage[index])
        events += detector.update(EVERY * index, seen, coverage=share)
    return detector, events


def kinds(events) -> list[str]:
    """Those of order, seed and format; test_drift_events.py has answers that become sure."""
    return [event.kind for event in events if event.kind != "entropy_collapse"]


def at_order(base: np.ndarray, seed: int, value: float) -> np.ndarray:
    """The mixture of every prompt with base prompt `seed` that has exactly this order."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        found = order(mixture(base, base[seed], middle), base, uniform_weights(len(base)))
        low, high = (middle, high) if found < value else (low, middle)
    return mixture(base, base[seed], high)


def follow(values, base=None, seed=3):
    """Events of a run with these orders, on the way to base prompt `seed`."""
    base = BASE if base is None else base
    return watch(base, [at_order(base, seed, value) for value in values])


BASE = make_base(np.random.default_rng(0))


def test_the_generator_does_what_it_says():
    assert true_orders(BASE, [at_order(BASE, 3, v) for v in (0.05, 0.2, 0.9)]) == pytest.approx(
        [0.05, 0.2, 0.9]
    )
    assert true_orders(BASE, [geometric(BASE, BASE[3], 1.0)]) == pytest.approx(1.0)
    assert ramp(20)[[0, 4, 9, 14, 19]].tolist() == [0, 0, 0.5, 1, 1]


def told(events) -> list[str]:
    """The kinds of events but warnings, in the order of the alphabet."""
    return sorted(kind for kind in kinds(events) if kind != "early_warning")


# --- planted truths: a collapse onto a seed --------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dynamics", [geometric, mixture])
def test_a_collapse_onto_a_seed_without_noise(dynamics, seed):
    rng = np.random.default_rng(seed)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    path = [dynamics(base, base[k], share) for share in ramp(24)]
    detector, events = watch(base, path)
    assert told(events) == sorted([*UP, "seed_locked"])
    onset = next(event for event in events if event.kind == "nucleation_onset")
    truth = true_onset(base, path)
    assert onset.step == truth + EVERY  # the second probe confirms
    low, high = onset.evidence["onset_interval"]
    assert low < truth <= high <= low + 3 * EVERY
    assert truth - EVERY <= onset.evidence["onset_step"] <= truth
    locked = next(event for event in events if event.kind == "seed_locked")
    assert detector.seed == locked.evidence["candidate"] == k
    assert detector.phase in ("crystallized", "settling")
    assert all(event.step < truth for event in events if event.kind == "early_warning")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dynamics", [geometric, mixture])
def test_a_collapse_onto_a_seed_in_noise(dynamics, seed):
    rng = np.random.default_rng(seed + 100)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    path = [dynamics(base, base[k], share) for share in ramp(24)]
    detector, events = watch(base, path, rng=rng)
    assert told(events) == sorted([*UP, "seed_locked"])
    onset = next(event for event in events if event.kind == "nucleation_onset")
    assert 0 <= onset.step - true_onset(base, path) <= 2 * EVERY
    assert detector.seed == k


@pytest.mark.parametrize("choices", [2, 30])
def test_two_choices_and_many(choices):
    rng = np.random.default_rng(1)
    base = make_base(rng, choices=choices)
    k = int(np.argmin(base[:, 0]))
    detector, events = watch(base, [geometric(base, base[k], share) for share in ramp(24)])
    assert told(events) == sorted([*UP, "seed_locked"])
    assert detector.seed is not None
    spread = js_divergence(base, base[k]).sum() / (PROMPTS - 1)
    assert js_divergence(base[detector.seed], base[k]) <= 0.1 * spread  # a near-twin is as good


def test_a_collapse_at_once_raises_onset_and_completion_together():
    detector, events = watch(BASE, [BASE, BASE] + [np.tile(BASE[5], (PROMPTS, 1))] * 4)
    assert kinds(events) == [*UP, "seed_locked"]
    assert [event.step for event in events] == [30, 30, 50]
    assert events[0].evidence["onset_interval"] == [10, 20]
    assert detector.seed == 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dynamics", [geometric, mixture])
def test_a_collapse_onto_what_no_base_prompt_shows_is_seedless(dynamics, seed):
    rng = np.random.default_rng(seed + 200)
    base = make_base(rng)
    distances = seed_distances(base, base) + np.diag(np.full(PROMPTS, np.inf))
    spacing = np.median(distances.min(axis=0))
    targets = rng.dirichlet(np.full(CHOICES, 0.4), size=2000) + 1e-3
    targets /= targets.sum(axis=1, keepdims=True)
    lonely = js_divergence(targets[:, None], base).min(axis=1)
    target = targets[np.argmax(lonely)]
    assert lonely.max() > 1.5 * spacing
    path = [dynamics(base, target, share) for share in ramp(24, length=6)]
    detector, events = watch(base, path, rng=rng)
    assert told(events) == sorted([*UP, "seedless_collapse"])
    assert detector.seed is None
    seedless = next(event for event in events if event.kind == "seedless_collapse")
    assert seedless.evidence["distance"] > spacing


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("extent", [0.4, 0.7])
def test_a_descent_that_rests_on_its_way_names_its_seed(extent, seed):
    rng = np.random.default_rng(seed + 300)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    shares = np.tile(extent * ramp(26, length=6)[:, None], PROMPTS)
    path = list(descent(base, base[k], shares))
    assert true_orders(base, path).max() < 0.8
    detector, events = watch(base, path, rng=rng, noise=0.1)
    assert detector.seed == k
    assert kinds(events).count("seed_locked") == 1
    assert "seedless_collapse" not in kinds(events)


def alike_then_together(base, target, alike: float, gone: float) -> np.ndarray:
    """Prompts that lose `alike` of what is their own, and go `gone` of the way to the target."""
    own, middle = np.log(base), np.log(base).mean(axis=0)
    return softmax((1 - alike) * (own - middle) + middle + gone * (np.log(target) - middle))


@pytest.mark.parametrize(("alike", "gone", "known"), [(0.95, 0.5, [3]), (0.75, 0.4, [])])
def test_a_collapse_that_stops_short_of_its_seed_is_hardly_ever_seedless(alike, gone, known):
    called = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed + 400)
        base, k = make_base(rng), int(rng.integers(PROMPTS))
        path = [alike_then_together(base, base[k], alike * x, gone * x) for x in ramp(26, length=6)]
        _, events = watch(base, path, rng=rng, noise=0.02)
        called += [seed] if "seedless_collapse" in kinds(events) else []
        assert all(e.evidence["candidate"] == k for e in events if e.kind == "seed_locked")
    assert called == known


def test_a_verdict_averages_over_the_probes_at_rest():
    base = BASE
    rests = geometric(base, base[3], 0.5)
    rng = np.random.default_rng(5)
    shaken = [noisy(rng, rests, 0.3) for _ in range(5)]
    detector, _ = watch(base, [base] * 3 + [rests] * 3)
    state = detector.state
    for q in shaken:
        state = remember(state, Base.of(base).read(0, q))
    assert len(state.answers) == RESTING == 5
    state = replace(state, orders=(0.5,) * 5)
    seen = Base.of(base).read(0, shaken[-1])
    asked, held = at_rest(state, seen)
    assert asked.tolist() == list(range(len(base)))
    wanted = softmax(np.mean([np.log(q) for q in shaken], axis=0))
    np.testing.assert_allclose(held, wanted, rtol=1e-4)
    assert js_divergence(held, rests).mean() < 0.4 * js_divergence(seen.q, rests).mean()
    moving = replace(state, orders=(0.3, 0.4, 0.5, 0.5, 0.5))
    assert at_rest(moving, seen)[1] is seen.q


def test_the_probes_to_average_over_are_forgotten_with_their_use():
    path = [geometric(BASE, BASE[3], share) for share in 0.6 * ramp(30, length=6)]
    detector = PhaseDetector(BASE)
    held = []
    for step, q in enumerate(path):
        detector.update(step, q)
        held.append((len(detector.state.answers), detector.seed))
    assert max(count for count, _ in held) == RESTING
    assert held[0] == (0, None)
    assert held[-1] == (0, 3)


# --- planted truths: what comes after --------------------------------------------------------


def collapsed(base: np.ndarray, k: int, probes: int = 8) -> list[np.ndarray]:
    """From the base onto prompt k in 4 probes, and there."""
    return [geometric(base, base[k], share) for share in ramp(probes, start=1, length=4)]


@pytest.mark.parametrize("seed", SEEDS)
def test_another_seed_takes_over(seed):
    rng = np.random.default_rng(seed + 300)
    base, first = make_base(rng), int(rng.integers(PROMPTS))
    second = int(np.argmax(js_divergence(base, base[first])))
    there = np.tile(base[first], (PROMPTS, 1))
    path = collapsed(base, first, 12) + [geometric(there, base[second], s) for s in ramp(14, 0, 4)]
    detector, events = watch(base, path, rng=rng)
    assert [e.evidence["candidate"] for e in events if e.kind == "seed_locked"] == [first]
    takeover = [e for e in events if e.kind == "recrystallization"]
    assert takeover[0].evidence["from"] == first
    assert takeover[-1].evidence["candidate"] == detector.seed == second
    assert not {"melting", "seedless_collapse"} & set(kinds(events))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crystal_that_melts(seed):
    rng = np.random.default_rng(seed + 400)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    path = collapsed(base, k, 12) + [geometric(base, base[k], 1 - s) for s in ramp(14, 0, 6)]
    detector, events = watch(base, path, rng=rng)
    assert [kind for kind in kinds(events) if kind not in ("early_warning", "support_leak")] == [
        *UP,
        "seed_locked",
        "melting",
    ]
    orders = true_orders(base, path)
    melts = EVERY * (12 + int(np.argmax(orders[12:] < 0.6)))
    melting = next(event for event in events if event.kind == "melting")
    assert melts <= melting.step <= melts + 2 * EVERY
    assert detector.phase == "liquid"
    assert detector.seed is None


@pytest.mark.parametrize("seed", SEEDS)
def test_mass_that_leaves_the_support_of_the_seed(seed):
    rng = np.random.default_rng(seed + 500)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    outside = np.where(support(base[k]), 0.0, 1.0) + 1e-3
    outside /= outside.sum()
    there = np.tile(base[k], (PROMPTS, 1))
    path = collapsed(base, k, 12) + [mixture(there, outside, 0.3 * s) for s in ramp(14, 0, 6)]
    _, events = watch(base, path, rng=rng)
    leaks = [event for event in events if event.kind == "support_leak"]
    assert len(leaks) == 1
    mass = np.array([q[:, support(base[k])].sum(axis=1).mean() for q in path])
    true = EVERY * int(np.argmax((np.arange(len(path)) > 12) & (mass < mass[11] - 0.1)))
    assert abs(leaks[0].step - true - EVERY) <= EVERY
    assert leaks[0].evidence["seed_mass"] < base[k][support(base[k])].sum() - 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_moving_on_inside_the_support_is_settling_and_no_leak(seed):
    rng = np.random.default_rng(seed + 900)
    base, k = make_base(rng), int(rng.integers(PROMPTS))
    one, two, three = rng.permutation(CHOICES)[:3]
    base[k], target = 0.08 / (CHOICES - 2), 0.08 / (CHOICES - 2) * np.ones(CHOICES)
    base[k, one] = base[k, two] = 0.46
    target[one], target[two] = 0.80, 0.12
    rivals = [p for p in range(PROMPTS) if p != k and js_divergence(base[p], target) < 0.15]
    for p in rivals:
        base[p, [one, three]] = base[p, [three, one]]
    there = np.tile(base[k], (PROMPTS, 1))
    path = collapsed(base, k, 12) + [mixture(there, target, s) for s in ramp(14, 0, 6)]
    assert js_divergence(base, target).argmin() == k
    detector, events = watch(base, path, rng=rng)
    assert "support_leak" not in kinds(events)
    floor = NOISE_FLOOR * np.delete(js_divergence(base, base[k]), k).mean()
    assert js_divergence(target, base[k]) > 1.2 * floor
    assert detector.phase == "settling"
    assert detector.seed == k


@pytest.mark.parametrize("seed", SEEDS)
def test_format_drift_is_told_from_collapse(seed):
    rng = np.random.default_rng(seed + 700)
    base = make_base(rng)
    coverage = 0.9 - 0.7 * ramp(24)
    detector, events = watch(base, [base] * 24, coverage=coverage, rng=rng)
    assert kinds(events) == ["format_drift"]
    first = EVERY * int(np.argmax(coverage < 0.45))
    assert events[0].step == first + EVERY
    assert events[0].evidence["first_coverage"] == pytest.approx(0.9)
    assert detector.phase == "liquid"


# --- planted truths: nothing happens ---------------------------------------------------------


def autocorrelated_noise(rng, base):
    state, path = np.zeros_like(base), []
    for _ in range(30):
        state = 0.95 * state + 0.08 * rng.standard_normal(base.shape)
        path.append(softmax(np.log(base) + state))
    return path


def common_drift(rng, base):
    tilt = 0.3 * rng.standard_normal(CHOICES)
    return [softmax(np.log(base) + share * tilt) for share in ramp(30)]


def sharpening(rng, base):
    return [softmax((1 + 0.5 * share) * np.log(base)) for share in ramp(30)]


def prompt_specific_learning(rng, base):
    tilts = 0.4 * rng.standard_normal(base.shape)
    return [softmax(np.log(base) + share * tilts) for share in ramp(30)]


def white_noise(rng, base):
    return [noisy(rng, base, 0.1) for _ in range(30)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "null",
    [autocorrelated_noise, common_drift, sharpening, prompt_specific_learning, white_noise],
)
def test_movement_that_is_no_collapse_raises_nothing(null, seed):
    rng = np.random.default_rng(seed + 800)
    base = make_base(rng)
    path = null(rng, base)
    assert true_orders(base, path).max() < 0.1  # the contract's null
    assert max(js_divergence(q, base).mean() for q in path) > 1e-3  # and yet it moves
    detector, events = watch(base, path, coverage=np.full(30, 0.8), rng=rng)
    assert events == []
    assert detector.phase == "liquid"
    assert detector.seed is None


@pytest.mark.parametrize(
    "base",
    [
        np.tile([0.2, 0.3, 0.5], (5, 1)),
        np.array([[0.2, 0.3, 0.5]]),
        np.tile([0.5, 0.5], (4, 1)) + 0.01 * np.array([[1, -1], [-1, 1], [1, -1], [-1, 1]]),
    ],
    ids=["identical rows", "one prompt", "nearly alike"],
)
def test_an_ordered_base_takes_no_part(base):
    prompts, choices = base.shape
    rows = [
        np.tile(np.eye(choices)[0], (prompts, 1)),
        np.eye(choices)[np.arange(prompts) % choices],
    ]
    detector, events = watch(base, [base, *rows * 4])
    assert kinds(events) == []
    assert detector.phase == "ordered"
    assert detector.seed is None


def test_an_ordered_base_still_has_a_format_to_lose():
    base = np.tile([0.2, 0.8], (3, 1))
    detector, events = watch(base, [base] * 4, coverage=[0.8, 0.8, 0.3, 0.3])
    assert kinds(events) == ["format_drift"]
    assert detector.phase == "ordered"


# --- rule by rule ----------------------------------------------------------------------------


def test_onset_is_back_dated_by_interpolation():
    _, events = follow([0.0, 0.1, 0.3, 0.4])
    assert kinds(events) == ["nucleation_onset"]
    assert events[0].step == 30
    assert events[0].evidence["order"] == pytest.approx(0.4)
    assert events[0].evidence["onset_interval"] == [10, 20]
    assert events[0].evidence["onset_step"] == pytest.approx(15.0)
    assert events[0].message == "order passed 0.2 between steps 10 and 20 (now 0.40)"


def test_a_repeated_onset_is_not_dated_to_before_the_first_one():
    """So rough a course leaves no probe that is surely below the onset."""
    _, events = follow([0.0, 0.35, 0.66, 0.13, -0.04, 0.01, 0.86, 0.96])
    first, again = (event for event in events if event.kind == "nucleation_onset")
    assert first.evidence["onset_interval"] == [0, 10]
    low, high = again.evidence["onset_interval"]
    assert (low, high) == (40, 60), "liquid again at 40"
    assert again.message.startswith("order passed 0.2 between steps 40 and 60")


@pytest.mark.parametrize(
    ("values", "raised", "phase"),
    [
        # one probe alone is nothing
        ([0, 0.3, 0], [], "liquid"),
        ([0, 0.9, 0], [], "liquid"),
        ([0, 0.3, 0.1, 0.3, 0.1], [], "liquid"),
        ([0, 0.19, 0.19, 0.19], [], "liquid"),
        # onset, and back again without an event
        ([0, 0.21, 0.21], ["nucleation_onset"], "nucleating"),
        ([0, 0.3, 0.3, 0.1], ["nucleation_onset"], "nucleating"),
        ([0, 0.3, 0.3, 0.1, 0.1], ["nucleation_onset"], "liquid"),
        ([0, 0.3, 0.3, 0.1, 0.1, 0.3, 0.3], ["nucleation_onset"] * 2, "nucleating"),
        # completion
        ([0, 0.3, 0.3, 0.79, 0.79], ["nucleation_onset"], "nucleating"),
        ([0, 0.3, 0.3, 0.81, 0.7, 0.81], ["nucleation_onset"], "nucleating"),
        ([0, 0.3, 0.3, 0.81, 0.81], UP, "crystallized"),
        # melting needs more than falling below completion
        ([0, 0.9, 0.9, 0.7, 0.61, 0.61], UP, "crystallized"),
        ([0, 0.9, 0.9, 0.59, 0.59], [*UP, "melting"], "melting"),
        ([0, 0.9, 0.9, 0.5, 0.7, 0.5], UP, "crystallized"),
        ([0, 0.9, 0.9, 0.5, 0.5], [*UP, "melting"], "melting"),
        ([0, 0.9, 0.9, 0.5, 0.5, 0.7, 0.7], [*UP, "melting"], "melting"),
        ([0, 0.9, 0.9, 0.1, 0.1], [*UP, "melting"], "melting"),
        ([0, 0.9, 0.9, 0.1, 0.1, 0.1], [*UP, "melting"], "liquid"),
        ([0, 0.9, 0.9, 0.5, 0.5, 0.9, 0.9], [*UP, "melting", UP[1]], "crystallized"),
        # a run that starts late has no onset to report
        ([0.3, 0.3, 0.3], [], "nucleating"),
        ([0.9, 0.9], [], "crystallized"),
        ([0.9] * 5, [], "crystallized"),
        ([0.9] * 6, ["seed_locked"], "crystallized"),
        ([0.9, 0.5, 0.5], ["melting"], "melting"),
    ],
    ids=str,
)
def test_thresholds_and_confirmation(values, raised, phase):
    detector, events = follow(values)
    assert kinds(events) == raised
    assert detector.phase == phase


def test_more_liquid_than_the_reference_is_liquid():
    apart = np.eye(CHOICES)[np.arange(PROMPTS) % CHOICES]
    detector, events = watch(BASE, [BASE] + [apart] * 5)
    assert true_orders(BASE, [apart])[0] < 0
    assert kinds(events) == []
    assert detector.phase == "liquid"


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([0, 0.04, 0.08, 0.13], [30]),
        ([0, 0.04, 0.08, 0.13, 0.14, 0.16], [30]),  # once
        ([0, 0.04, 0.08, 0.12], []),  # over 0.11, but by less than its noise may be
        ([0, 0.06, 0.05, 0.12, 0.13], []),  # did not rise all the time
        ([0.05, 0.08, 0.12], []),  # two rises only
        ([0, 0.15, 0.15, 0.15], []),  # a plateau
        ([0, 0.04, 0.08, 0.13, 0.3, 0.3, 0, 0, 0.05, 0.1, 0.15], [30]),  # too noisy by now
        ([0, 0.05, 0.1, 0.21], []),  # at the onset itself it warns of nothing
        ([0, 0.1, 0.3, 0.4], []),
    ],
    ids=str,
)
def test_early_warning_wants_three_rises_to_a_tenth(values, steps):
    _, events = follow(values)
    assert [event.step for event in events if event.kind == "early_warning"] == steps
    for event in events:
        if event.kind == "early_warning":
            assert len(event.evidence["orders"]) == len(event.evidence["steps"]) == 4
            assert event.evidence["steps"][-1] == event.step


def test_the_seed_must_be_nearest_three_times_running():
    there = [np.tile(BASE[k], (PROMPTS, 1)) for k in range(3)]
    detector, events = watch(BASE, [BASE, there[0], there[0], there[1], there[1], there[0]])
    assert "seed_locked" not in kinds(events)
    assert detector.seed is None
    detector, events = watch(BASE, [BASE, there[0], there[0], there[1], there[1], there[1]])
    assert kinds(events) == [*UP, "seed_locked"]
    assert detector.seed == 1
    assert events[-1].evidence["distance"] == pytest.approx(0.0, abs=1e-12)


def test_a_twin_of_the_seed_is_no_other_seed():
    twin = BASE.copy()
    twin[7] = geometric(BASE[6], BASE[7], 0.01)
    there = [np.tile(twin[k], (PROMPTS, 1)) for k in (6, 7)]
    detector, events = watch(twin, [twin] + [there[0]] * 4 + [there[1]] * 6)
    assert kinds(events) == [*UP, "seed_locked"]
    assert detector.seed == 6


def test_a_leak_is_raised_once_until_the_mass_is_back():
    k = int(np.argmin([support(row).sum() for row in BASE]))
    outside = np.where(support(BASE[k]), 0.0, 1.0) + 1e-3
    outside /= outside.sum()
    there = np.tile(BASE[k], (PROMPTS, 1))
    slight = mixture(there, outside, 0.2)
    path = [BASE] + [there] * 4 + [slight] * 4 + [there] * 2 + [slight] * 2
    detector, events = watch(BASE, path)
    leaks = [event.step for event in events if event.kind == "support_leak"]
    assert leaks == [60, 120]
    assert detector.seed == k
    # one probe alone is nothing
    _, events = watch(BASE, [BASE] + [there] * 4 + [slight, there, slight, there])
    assert "support_leak" not in kinds(events)


def test_format_drift_is_raised_once_until_the_coverage_is_back():
    coverage = [0.8, 0.3, 0.7, 0.3, 0.3, 0.3, 0.5, 0.3, 0.3, 0.7, 0.3, 0.3]
    _, events = watch(BASE, [BASE] * 12, coverage=coverage)
    assert [event.step for event in events] == [40, 110]
    assert set(kinds(events)) == {"format_drift"}
    assert events[0].message == "the choices' total probability fell from 0.80 to 0.30"


def test_format_drift_of_a_small_coverage_keeps_its_figures():
    _, events = watch(BASE, [BASE] * 4, coverage=[0.11, 0.11, 0.00123, 0.00123])
    assert events[0].message == "the choices' total probability fell from 0.11 to 0.0012"


def test_what_was_hardly_answered_has_no_format_to_lose():
    _, events = watch(BASE, [BASE] * 4, coverage=[0.09, 0.09, 0.00123, 0.00123])
    assert events == []


def test_format_drift_is_judged_by_the_same_prompts():
    detector = PhaseDetector(BASE)
    detector.update(0, BASE, coverage=0.51)

    def probe(step, coverage):
        return detector.update(step, BASE[[0, 1]], coverage=coverage, asked=[0, 1])

    for step in (1, 2, 3):  # these two were low from the start
        assert probe(step, 0.12) == []
    assert probe(4, 0.05) == []
    (event,) = probe(5, 0.05)
    assert event.kind == "format_drift"
    assert "from 0.12 to 0.05 after the 2 wordings asked" in event.message


def test_format_drift_needs_a_coverage():
    detector = PhaseDetector(BASE)
    for step in range(5):
        assert detector.update(step, BASE) == []
    # and compares with the first one that it was given
    shares = [0.8, 0.8, 0.3, 0.3]
    events = [e for n, c in enumerate(shares) for e in detector.update(5 + n, BASE, coverage=c)]
    assert kinds(events) == ["format_drift"]
    assert events[0].evidence["first_coverage"] == 0.8


def test_every_event_says_where_and_why():
    outside = np.where(support(BASE[2]), 0.0, 1.0) + 1e-3
    there = np.tile(BASE[2], (PROMPTS, 1))
    path = [
        *(at_order(BASE, 2, value) for value in (0, 0.04, 0.08, 0.13, 0.3, 0.6)),
        *[there] * 4,
        *[mixture(there, outside / outside.sum(), 0.3)] * 3,
        *[np.tile(BASE[9], (PROMPTS, 1))] * 4,
        *[BASE] * 4,
    ]
    _, events = watch(BASE, path, coverage=1 - 0.9 * ramp(len(path)), task="digit")
    others = {"seedless_collapse", "entropy_collapse", "free_energy_jump"}
    assert set(EVENT_KINDS) - set(kinds(events)) == others
    for event in events:
        assert event.task == "digit"
        assert event.step % EVERY == 0
        assert event.message
        assert event.message[0].islower()
        assert "\n" not in event.message
        assert event.evidence


# --- pure, replayable, invariant -------------------------------------------------------------


def eventful(seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A run in which most things happen: (base, path, coverage), as they would be stored."""
    rng = np.random.default_rng(seed)
    base = make_base(rng)
    first, second = rng.permutation(PROMPTS)[:2]
    there = np.tile(base[first], (PROMPTS, 1))
    path = [geometric(base, base[first], s) for s in ramp(16, 2, 8)]
    path += [geometric(there, base[second], s) for s in ramp(12, 2, 6)]
    path += [geometric(base, base[second], 1 - s) for s in ramp(12, 2, 6)]
    path = [round_significant(noisy(rng, q, 0.05)) for q in path]
    return round_significant(base), path, 0.9 - 0.6 * ramp(40)


def same_events(left: list[Event], right: list[Event]) -> bool:
    return [event.to_json() for event in left] == [event.to_json() for event in right]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replay_of_the_stored_run_gives_the_same_events(seed):
    base, path, coverage = eventful(seed)
    live, events = watch(base, path, coverage=coverage)
    assert len(events) >= 5
    lines = [
        json.dumps(TaskRecord(q, {"coverage": c}, {}, "liquid", None, "raw").to_json())
        for q, c in zip(path, coverage.tolist(), strict=True)
    ]
    stored = [TaskRecord.from_json(json.loads(line)) for line in lines]
    replay, again = watch(
        base, [task.q for task in stored], coverage=[t.metrics["coverage"] for t in stored]
    )
    assert same_events(events, again)
    assert (replay.phase, replay.seed) == (live.phase, live.seed)


def test_a_detector_that_caught_up_goes_on_as_if_it_had_never_stopped():
    base, path, coverage = eventful(1)
    _, events = watch(base, path, coverage=coverage)
    for cut in (1, 5, 13, 21, 33):
        detector = PhaseDetector(base, "t")
        found = []
        for index, q in enumerate(path[:cut]):
            found += detector.update(EVERY * index, q, coverage=coverage[index])
        resumed = copy.deepcopy(detector)
        for index, q in enumerate(path[cut:], start=cut):
            found += resumed.update(EVERY * index, q, coverage=coverage[index])
        assert same_events(events, found)


def test_advance_is_a_pure_function():
    base, path, coverage = eventful(2)
    frozen = Base.of(base)
    state = PhaseState()
    for index, q in enumerate(path):
        observation = frozen.read(EVERY * index, q, float(coverage[index]))
        before = copy.deepcopy([asdict(state), asdict(observation)])
        state_once, events_once = advance(frozen, state, observation)
        state_twice, events_twice = advance(frozen, state, observation)
        assert same_events(events_once, events_twice)
        np.testing.assert_equal(asdict(state_once), asdict(state_twice))
        np.testing.assert_equal([asdict(state), asdict(observation)], before)
        assert state_once.phase in PHASES
        state = state_once


def test_later_probes_do_not_change_earlier_events():
    base, path, coverage = eventful(3)
    _, events = watch(base, path, coverage=coverage)
    for cut in (10, 20, 30):
        _, found = watch(base, path[:cut], coverage=coverage[:cut])
        assert same_events(found, [event for event in events if event.step < EVERY * cut])


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_choices_does_not_matter(seed):
    base, path, coverage = eventful(seed)
    shuffled = np.random.default_rng(seed).permutation(CHOICES)
    _, events = watch(base, path, coverage=coverage)
    _, moved = watch(base[:, shuffled], [q[:, shuffled] for q in path], coverage=coverage)
    assert [(e.kind, e.step, e.evidence.get("candidate")) for e in events] == [
        (e.kind, e.step, e.evidence.get("candidate")) for e in moved
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_prompts_moves_the_seed_alone(seed):
    base, path, coverage = eventful(seed)
    shuffled = np.random.default_rng(seed).permutation(PROMPTS)
    detector, events = watch(base, path[:28], coverage=coverage)
    other, moved = watch(base[shuffled], [q[shuffled] for q in path[:28]], coverage=coverage)
    assert [(e.kind, e.step) for e in events] == [(e.kind, e.step) for e in moved]
    assert shuffled[other.seed] == detector.seed


def test_events_do_not_depend_on_the_steps_between_probes():
    base, path, _ = eventful(4)
    plain, wide = PhaseDetector(base), PhaseDetector(base)
    for index, q in enumerate(path):
        left, right = plain.update(index, q), wide.update(7 * index + 3, q)
        assert kinds(left) == kinds(right)
        assert [7 * event.step + 3 for event in left] == [event.step for event in right]


def test_the_detector_keeps_its_own_copy_of_the_reference():
    base = BASE.copy()
    detector = PhaseDetector(base)
    base[:] = 1 / CHOICES
    path = collapsed(BASE, 4, 12)
    found = [event for index, q in enumerate(path) for event in detector.update(index, q)]
    assert kinds(found) == kinds(watch(BASE, path)[1])
    assert detector.seed == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=25),
    st.integers(0, 10**6),
)
def test_whatever_happens_the_detector_stays_within_its_contract(moves, seed):
    base = make_base(np.random.default_rng(seed), prompts=5, choices=3)
    if liquidity(base, uniform_weights(5)) < 0.02:
        return
    detector = PhaseDetector(base, "t")
    for index, (share, target) in enumerate(moves):
        q = mixture(base, base[target], share)
        found = detector.update(index, q, coverage=share)
        assert all(event.kind in EVENT_KINDS for event in found)
        assert len({event.kind for event in found}) == len(found)
        assert detector.phase in PHASES[:-1]
        assert detector.seed is None or 0 <= detector.seed < 5
        assert detector.phase != "settling" or detector.seed is not None
        for event in found:
            json.dumps(event.to_json(), allow_nan=False)


@st.composite
def any_history(draw):
    """(base, history) of any distributions, zeros and single answers among them."""
    prompts, choices = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    weights = st.lists(st.integers(0, 5), min_size=choices, max_size=choices).filter(any)
    table = st.lists(weights, min_size=prompts, max_size=prompts)
    rows = [np.array(draw(table), dtype=float) for _ in range(draw(st.integers(2, 12)))]
    rows = [row / row.sum(axis=1, keepdims=True) for row in rows]
    times = draw(st.lists(st.integers(1, 4), min_size=len(rows), max_size=len(rows)))
    return rows[0], [row for row, count in zip(rows, times, strict=True) for _ in range(count)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_history())
def test_any_distributions_are_taken_and_a_replay_equals_the_live_run(found):
    base, path = found
    live, events = watch(base, path)
    again, repeated = watch(base, path)
    assert same_events(events, repeated)
    assert live.state == again.state
    assert live.phase in PHASES
    assert live.seed is None or 0 <= live.seed < len(base)
    for event in events:
        assert event.kind in EVENT_KINDS
        json.dumps(event.to_json(), allow_nan=False)
    with pytest.raises(ValueError, match="q must be finite, got NaN or infinity"):
        live.update(10**6, np.full_like(base, np.nan))


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], r"reference_q must be of shape \[P, C\], got shape \(2,\)"),
        (np.zeros((0, 3)), r"reference_q must be of shape \[P, C\], got shape \(0, 3\)"),
        (np.zeros((2, 2, 2)), r"must be of shape \[P, C\], got shape \(2, 2, 2\)"),
        (
            [[0.5, np.nan]],
            r"reference_q must be finite, got NaN or infinity. Leave such a probe out",
        ),
        ([[0.5, np.inf]], r"reference_q must be finite"),
        (
            [[0.5, 0.5], [0.5, 0.6]],
            r"reference_q must have rows on the simplex, got \[0.5, 0.6\] first",
        ),
        (
            [[0.5, 0.5], [1.5, -0.5]],
            r"reference_q must have rows on the simplex, got \[1.5, -0.5\] first",
        ),
    ],
)
def test_a_reference_that_is_no_table_of_distributions_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^.*{message}"):
        PhaseDetector(values)


def test_a_probe_that_is_no_table_of_distributions_is_refused_and_forgotten():
    detector = PhaseDetector(BASE)
    detector.update(0, BASE)
    with pytest.raises(ValueError, match=r"q must be finite, got NaN"):
        detector.update(10, np.full_like(BASE, np.nan))
    with pytest.raises(ValueError, match=r"q must have rows on the simplex"):
        detector.update(10, 2 * BASE)
    with pytest.raises(
        ValueError, match=r"q must be of the reference's shape \(16, 8\), got \(8, 8\)"
    ):
        detector.update(10, BASE[:8])
    assert detector.update(10, BASE) == []


@pytest.mark.parametrize("step", [20, 19, 0])
def test_steps_must_go_forward(step):
    detector = PhaseDetector(BASE)
    detector.update(20, BASE)
    with pytest.raises(
        ValueError, match=rf"step must be larger than the last one \(20\), got {step}. Replay"
    ):
        detector.update(step, BASE)


def test_lists_and_rounded_rows_are_accepted():
    detector = PhaseDetector([[0.3333333, 0.6666666], [0.9, 0.1]])
    assert detector.update(0, [[0.3333333, 0.6666666], [0.9, 0.1]]) == []
    assert detector.phase == "liquid"


# --- the suite -------------------------------------------------------------------------------


def test_the_suites_onset_is_back_dated_to_that_of_its_half():
    early, late = [0, 0.3, 0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0.1, 0.3, 0.3]
    _, _, own, everything = watch_suite({"a": early, "b": late, "c": [0] * 6, "d": late})
    (onset,) = own
    theirs = next(e for e in everything if e.task == "b" and e.kind == "nucleation_onset")
    assert onset.step == 50
    assert onset.evidence["onset_interval"] == theirs.evidence["onset_interval"] == [30, 40]
    assert onset.evidence["onset_step"] == pytest.approx(35)


def watch_suite(columns: dict[str, list[float]], ordered: int = 0):
    """A suite whose tasks have these orders; (detector, the suite's own events, all events)."""
    bases = dict.fromkeys(columns, BASE)
    bases |= {f"ordered {n}": np.tile(BASE[0], (PROMPTS, 1)) for n in range(ordered)}
    detector = SuiteDetector(bases)
    everything, phases = [], []
    for index in range(len(next(iter(columns.values())))):
        q = {name: at_order(BASE, 3, values[index]) for name, values in columns.items()}
        q |= {name: base for name, base in bases.items() if name.startswith("ordered")}
        everything += detector.update(EVERY * index, q, dict.fromkeys(bases, 0.9))
        phases.append(detector.phase)
    return detector, phases, [event for event in everything if event.task is None], everything


def test_a_suite_of_one_task_goes_with_it():
    values = [0, 0.3, 0.3, 0.9, 0.9, 0.5, 0.5, 0.1, 0.1]
    _, phases, own, everything = watch_suite({"a": values})
    assert phases == ["liquid"] * 2 + ["nucleating"] * 2 + ["crystallized"] * 2 + [
        "melting",
        "melting",
        "liquid",
    ]
    assert [(e.kind, e.step) for e in own] == [
        ("nucleation_onset", 20),
        ("nucleation_complete", 40),
        ("melting", 60),
    ]
    assert [(e.kind, e.step) for e in everything if e.task == "a"] == [
        (e.kind, e.step) for e in own
    ]


def test_half_of_the_tasks_carry_the_suite():
    up, flat = [0, 0.3, 0.3, 0.9, 0.9], [0] * 5
    _, phases, own, _ = watch_suite({"a": up, "b": up, "c": flat, "d": flat})
    assert phases[-1] == "crystallized"
    assert kinds(own) == UP
    assert own[-1].evidence == {"tasks": {"liquid": 2, "crystallized": 2}}
    assert own[-1].message == "the suite is crystallized: 2 liquid, 2 crystallized of 4 tasks"
    _, phases, own, _ = watch_suite({"a": up, "b": flat, "c": flat})
    assert phases[-1] == "liquid"
    assert own == []


def test_tasks_with_an_ordered_base_have_no_vote():
    up = [0, 0.3, 0.3, 0.9, 0.9]
    detector, phases, own, _ = watch_suite({"a": up}, ordered=5)
    assert detector.taking_part == ["a"]
    assert phases[-1] == "crystallized"
    assert own[-1].evidence == {"tasks": {"crystallized": 1}}
    detector, phases, own, everything = watch_suite({"a": [0.0]}, ordered=1)
    assert phases == ["liquid"]
    assert everything == []


def test_a_suite_of_ordered_tasks_is_ordered():
    base = np.tile([0.5, 0.5], (3, 1))
    detector = SuiteDetector({"a": base})
    assert detector.update(0, {"a": base}, {}) == []
    assert detector.update(1, {"a": np.tile([1.0, 0.0], (3, 1))}, {}) == []
    assert detector.phase == "ordered"
    assert detector.taking_part == []


def test_a_suite_first_seen_late_raises_nothing_of_its_own():
    _, phases, own, _ = watch_suite({"a": [0.9, 0.9], "b": [0.9, 0.9]})
    assert phases == ["crystallized", "crystallized"]
    assert own == []


def test_a_suite_that_collapses_at_once_has_its_onset_too():
    _, phases, own, everything = watch_suite({"a": [0, 0, 0.9, 0.9], "b": [0, 0, 0.9, 0.9]})
    assert phases == ["liquid", "liquid", "liquid", "crystallized"]
    assert kinds(event for event in everything if event.task == "a") == UP
    assert [(event.kind, event.step) for event in own] == [(kind, 30) for kind in UP]


def test_a_suite_that_crystallizes_again_after_melting_says_so():
    values = [0, 0.9, 0.9, 0.5, 0.5, 0.9, 0.9]
    _, _, own, everything = watch_suite({"a": values, "b": values})
    expected = [*UP, "melting", "nucleation_complete"]
    assert kinds(event for event in everything if event.task == "a") == expected
    assert kinds(own) == expected


def test_the_suites_events_come_last_and_tasks_are_named():
    up = [0, 0.3, 0.3]
    _, _, _, everything = watch_suite({"a": up, "b": up})
    assert [event.task for event in everything] == ["a", "b", None]


# --- what a stage takes over -----------------------------------------------------------------


def next_stage(detector: PhaseDetector, path, base=BASE):
    """(detector, events) of a stage that begins with what another one hands on."""
    begun = PhaseDetector(base, "t", detector.state.handed_on())
    events = [event for step, q in enumerate(path) for event in begun.update(step, q)]
    return begun, events


def leaking(k: int) -> list[np.ndarray]:
    """Answers on base prompt k's, then with a fifth of their mass off its support."""
    outside = np.where(support(BASE[k]), 0.0, 1.0) + 1e-3
    outside /= outside.sum()
    there = np.tile(BASE[k], (PROMPTS, 1))
    return [there] * 4 + [mixture(there, outside, 0.2)] * 4


def test_the_next_stage_does_not_raise_an_old_leak_again():
    k = int(np.argmin([support(row).sum() for row in BASE]))
    path = leaking(k)
    detector, events = watch(BASE, [BASE, *path])
    assert kinds(events).count("support_leak") == 1
    begun, events = next_stage(detector, path[-4:])
    assert events == []
    assert begun.seed == k
    _, events = next_stage(detector, [*path[-2:], *path[:2], *path[-2:]])
    assert kinds(events) == ["support_leak"]  # the mass had been back


def test_the_next_stage_does_not_call_a_collapse_seedless_again():
    scenario = make_scenario("seedless", 1)
    detector, events = watch(scenario.base, scenario.q)
    assert kinds(events).count("seedless_collapse") == 1
    begun, events = next_stage(detector, list(scenario.q[-8:]), scenario.base)
    assert events == []
    assert "seedless_collapse" in begun.state.raised


def test_a_stage_that_begins_liquid_takes_over_no_crystal():
    detector, _ = watch(BASE, [BASE] + [np.tile(BASE[5], (PROMPTS, 1))] * 5)
    assert detector.seed == 5
    begun, events = next_stage(detector, [BASE] * 3)
    assert (begun.phase, begun.seed, events) == ("liquid", None, [])


def test_a_lock_keeps_how_sure_it_was():
    detector, events = watch(BASE, [BASE] + [np.tile(BASE[5], (PROMPTS, 1))] * 5)
    lock, evidence = detector.state.lock, events[-1].evidence
    assert (lock.p_value, lock.margin) == (evidence["p_value"], evidence["margin"])


def test_a_crowd_of_twins_is_no_evidence_for_a_far_end():
    base = np.repeat([[0.7, 0.1, 0.1, 0.1]], 18, axis=0)
    base[17] = [0.1, 0.7, 0.1, 0.1]
    end = np.array([0.05, 0.05, 0.1, 0.8])
    detector, events = watch(base, [mixture(base, end, share) for share in ramp(25, 2, 5)])
    assert "seed_locked" not in kinds(events)
    assert detector.seed is None


def ordered_base(prompts: int = 12, choices: int = 2) -> np.ndarray:
    """Every wording is answered alike."""
    return np.tile(np.linspace(0.4, 0.6, choices), (prompts, 1))


def judged(prompts: int = 12) -> np.ndarray:
    """Half of the wordings get the one answer, half the other."""
    return np.where(np.arange(prompts)[:, None] % 2, [0.95, 0.05], [0.05, 0.95])


def test_an_ordered_base_whose_wordings_come_to_differ_melts_and_orders_again():
    base = ordered_base()
    detector, told = PhaseDetector(base, "judge"), []
    phases = []
    for step, q in enumerate([base, base, judged(), judged(), judged(), base, base, base]):
        told += detector.update(step, q)
        phases.append(detector.phase)
    assert [(event.kind, event.step) for event in told] == [("melting", 3)]
    assert phases == [*["ordered"] * 3, *["melting"] * 3, *["ordered"] * 2]
    assert told[0].evidence["liquidity"] > 0.4
    assert told[0].evidence["base_liquidity"] < 1e-9
    assert "the base answered alike" in told[0].message


def test_a_suite_of_ordered_bases_melts_with_them():
    base = {name: ordered_base() for name in ("one", "two", "three")}
    detector, told = SuiteDetector(base), []
    after = {"one": judged(), "two": judged(), "three": base["three"]}
    for step, q in enumerate([base, base, after, after, after]):
        told += detector.update(step, q, {})
    assert detector.phase == "melting"
    assert [event.step for event in told if event.task is None] == [3]
    states = {name: task.state.handed_on() for name, task in detector.tasks.items()}
    later = SuiteDetector(base, states)  # the next stage of a chain repeats no event
    assert not [event for step in range(4) for event in later.update(step, after, {})]
    assert later.phase == "melting"


def test_one_ordered_base_that_melts_is_not_the_suites_phase():
    liquid = np.eye(12)[:, :4] + 0.1
    base = {"a": ordered_base(), "b": np.abs(liquid) / liquid.sum(axis=1, keepdims=True)}
    detector, told = SuiteDetector(base), []
    for step, q in enumerate([base, *[{"a": judged(), "b": base["b"]}] * 3]):
        told += detector.update(step, q, {})
    assert [(event.task, event.kind) for event in told] == [("a", "melting")]
    assert detector.phase == "liquid"
