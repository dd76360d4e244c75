"""Fits against planted kinetics."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from crystalmon.analysis.transition import classify_transition, coexistence, fit_avrami

STEPS = np.arange(0, 400, 10)


def sigmoid(middle, width):
    return 1 / (1 + np.exp(-(STEPS - middle) / (width / (2 * np.log(9)))))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("order", "verdict"),
    [
        (0.95 * (STEPS >= 150), "abrupt"),
        (0.5 * (STEPS >= 255), "abrupt"),
        (0.9 * sigmoid(180, 10), "abrupt"),
        (0.9 * sigmoid(180, 110), "gradual"),
        (0.6 * STEPS / 400, "gradual"),
        (0.9 * np.clip((STEPS - 100) / 150, 0, 1), "gradual"),
    ],
)
def test_abrupt_and_gradual_are_told_apart(order, verdict, seed):
    noisy = order + 0.02 * np.random.default_rng(seed).standard_normal(len(STEPS))
    assert classify_transition(STEPS, noisy).verdict == verdict


@pytest.mark.long
@pytest.mark.parametrize("width", [1, 30, 300, 9000])
def test_of_a_long_history_what_the_rise_needs_is_fitted(width):
    steps, rng = np.arange(30_000), np.random.default_rng(2)
    shape = 1 / (1 + np.exp(-np.clip((steps - 11_000.3) / (width / (2 * np.log(9))), -60, 60)))
    tracemalloc.start()
    found = classify_transition(steps, 0.9 * shape + 0.02 * rng.standard_normal(len(steps)))
    fit_avrami(steps, shape)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert found.verdict == ("abrupt" if width == 1 else "gradual")
    assert found.width == pytest.approx(width, rel=0.1, abs=0.5)
    assert found.midpoint == pytest.approx(11_000, rel=0.01)
    assert found.spacing == 1


def test_the_width_is_measured_with_its_interval():
    noisy = 0.9 * sigmoid(200, 100) + 0.01 * np.random.default_rng(1).standard_normal(len(STEPS))
    found = classify_transition(STEPS, noisy)
    assert found.model == "sigmoid"
    assert found.width == pytest.approx(100, rel=0.1)
    assert found.width_interval[0] <= 100 <= found.width_interval[1]
    assert found.midpoint == pytest.approx(200, abs=5)
    assert found.spacing == 10


@pytest.mark.parametrize(
    "order",
    [
        0.9 * (np.arange(6) >= 3),
        np.full(40, 0.3),
        np.full(40, np.nan),
        np.zeros(0),
        -0.6 * (np.arange(40) < 20),  # back from a fall
    ],
)
def test_too_little_is_undetermined(order):
    assert classify_transition(10 * np.arange(len(order)), order).verdict == "undetermined"


def test_a_later_melting_and_lost_probes_are_left_out():
    order = 0.9 * (STEPS >= 150).astype(float)
    order[30:] = 0.1
    order[[3, 20]] = np.nan
    assert classify_transition(STEPS, order).verdict == "abrupt"


@pytest.mark.parametrize("exponent", [1.0, 2.5, 4.0])
def test_avrami_finds_its_parameters(exponent):
    truth = 1 - np.exp(-((np.maximum(STEPS - 60, 0) / 120) ** exponent))
    found = fit_avrami(STEPS, truth)
    assert found.exponent == pytest.approx(exponent, rel=0.15)
    assert found.residual < 0.01
    low, high = found.exponent_interval
    assert 0.9 * low <= exponent <= 1.1 * high
    assert found.rate == pytest.approx(1 / 120, rel=0.15)
    assert fit_avrami(STEPS, np.zeros(len(STEPS))) is None
    assert fit_avrami(STEPS[:5], truth[-5:]) is None
    assert fit_avrami(STEPS, 0.25 * np.eye(1, len(STEPS))[0]) is None, "a fall is no growth"


def test_coexistence_is_two_groups_and_not_a_spread():
    rng = np.random.default_rng(3)
    two = np.concatenate([rng.normal(0.1, 0.05, 12), rng.normal(0.9, 0.05, 12)])
    assert coexistence(two).bimodal
    assert coexistence(two).share == pytest.approx(0.5)
    false = [coexistence(rng.normal(0.5, 0.1, 24)).bimodal for _ in range(30)]
    assert sum(false) <= 2
    assert not coexistence(np.zeros(3)).bimodal


@pytest.mark.parametrize("random_seed", range(4))
def test_noise_in_a_long_history_is_no_transition(random_seed):
    noise = np.random.default_rng(random_seed).normal(0, 0.05, 5000)
    assert classify_transition(np.arange(5000), 0.1 + noise).verdict == "undetermined"


@pytest.mark.long
@pytest.mark.parametrize("random_seed", range(4))
def test_noise_on_a_long_rise_is_no_melting(random_seed):
    steps = np.arange(20_000)
    rise = 1 / (1 + np.exp(-4.39 * (steps - 10_000) / 6_667))
    order = rise + np.random.default_rng(random_seed).normal(0, 0.02, len(steps))
    assert classify_transition(steps, order).width == pytest.approx(6_667, rel=0.05)
