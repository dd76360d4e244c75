"""The fits against plain least squares, and on series too long to try everything."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from crystalmon.analysis.fits import fit_sigmoid, linear_loss, sigmoid_losses, step_loss
from crystalmon.analysis.transition import classify_transition, fit_avrami

LONG = 1000
STEPS = 10.0 * np.arange(LONG)


def sigmoid(steps, middle, width):
    return 1 / (1 + np.exp(-np.clip((steps - middle) / (width / (2 * np.log(9))), -60, 60)))


def plain_loss(design, values):
    """RSS by numpy's least squares."""
    columns = np.stack([np.ones(len(values)), design], axis=1)
    return float(np.sum((values - columns @ np.linalg.lstsq(columns, values)[0]) ** 2))


@pytest.mark.parametrize(
    "steps",
    [STEPS[:150], np.concatenate([np.arange(100.0), 100 + 40 * np.arange(50.0)])],
    ids=["even", "dense at first"],
)
@pytest.mark.parametrize("width", [0.2, 7.0, 60.0, 900.0, 4000.0])
def test_the_loss_is_that_of_plain_least_squares(steps, width):
    values = sigmoid(steps, 700, 300) + 0.05 * np.random.default_rng(0).standard_normal(len(steps))
    middles = np.linspace(steps[0], steps[-1], 333)[1:-1]
    found = sigmoid_losses(steps, values, middles, width)
    flat = float(np.sum((values - values.mean()) ** 2))
    for middle, loss in zip(middles, found, strict=True):
        shape = sigmoid(steps, middle, width)
        rises = shape.std() > 1e-3 and np.cov(shape, values)[0, 1] > 0
        if shape.std() > 1e-3:
            assert loss == pytest.approx(plain_loss(shape, values) if rises else flat, abs=1e-8)


def test_lines_and_steps_are_those_of_plain_least_squares():
    values = np.random.default_rng(1).standard_normal(40) + 2 * (np.arange(40) >= 17)
    steps = STEPS[:40]
    assert linear_loss(steps, values) == pytest.approx(plain_loss(steps, values))
    places = [plain_loss(steps >= steps[at], values) for at in range(1, 40)]
    assert step_loss(values) == pytest.approx(min(places))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_step_between_any_two_of_many_points_is_found(seed, noise):
    rng = np.random.default_rng(seed)
    place = int(rng.integers(100, 900))
    order = 0.6 * (np.arange(LONG) >= place) + noise * rng.standard_normal(LONG)
    found = classify_transition(STEPS, order)
    assert found.verdict == "abrupt"
    assert found.midpoint == pytest.approx(STEPS[place] - 5, abs=10)
    assert found.width is not None
    assert found.width <= 30


@pytest.mark.parametrize("width", [45.0, 400.0, 2500.0])
def test_the_width_of_a_rise_over_many_points_is_measured(width):
    rng = np.random.default_rng(int(width))
    middle = 4321.0
    found = fit_sigmoid(STEPS, 0.8 * sigmoid(STEPS, middle, width) + 0.01 * rng.normal(size=LONG))
    low, high = found.width_interval
    assert 0.98 * low <= width <= 1.02 * high  # ends are those of the last grid
    assert found.width == pytest.approx(width, rel=0.05)
    assert found.midpoint == pytest.approx(middle, abs=5)
    assert found.loss == pytest.approx(1e-4 * LONG, rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_where_all_steps_between_two_points_fit_alike_the_narrowest_is_taken(seed):
    steps = np.concatenate([np.arange(20.0), 20 + 100 * np.arange(20.0)])
    order = 0.8 * (steps >= 720) + 0.01 * np.random.default_rng(seed).standard_normal(len(steps))
    order[[26, 27]] += -0.1, 0.1  # no wider sigmoid comes nearer to the points beside the step
    found = fit_sigmoid(steps, order)
    assert found.width == pytest.approx(0.2)
    assert 620 <= found.midpoint <= 720


@pytest.mark.parametrize("fit", [classify_transition, fit_avrami])
def test_a_long_series_needs_little_memory(fit):
    order = 0.9 * sigmoid(STEPS, 5000, 800)
    tracemalloc.start()
    fit(STEPS, order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6, "a mesh of all points at once"
