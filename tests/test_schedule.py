"""When to probe: the default schedule, a fixed one, and the budget that both keep to."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from crystalmon.monitor.budget import REMEMBERED, SAVED_PROBES, Budget
from crystalmon.monitor.callback import CrystalCallback
from crystalmon.monitor.schedule import COSTLY, Forecast, Schedule, probe_steps
from crystalmon.runs.records import ProbeRecord


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def simulate(
    share, step_seconds, probe_seconds, steps, *, start=0.0, moving=(), every=1, asked=None
):
    """Run a schedule; the steps probed and the share of time that it took."""
    clock = Clock()
    budget = Budget(share, clock)
    schedule = Schedule(probe_steps(steps, every), budget)
    with budget.spending():
        clock.now += start
    probed, order = [], 0.0
    asked = [] if asked is None else asked

    def probe(step):
        nonlocal order
        schedule.taken()
        with budget.spending():
            clock.now += probe_seconds
        order += 0.1 if step in moving else 0.0
        budget.expect(probe_seconds)  # as the callback does
        schedule.probed(record(step, order, probe_seconds), [])
        probed.append(step)

    probe(0)
    for step in range(1, steps + 1):
        clock.now += step_seconds
        last = step == steps
        if schedule.asks(step, last):
            asked.append(step)
            if schedule.wants(step, last):
                probe(step)
    return probed, budget.spent / budget.elapsed


def record(step, order, seconds):
    return ProbeRecord(
        step=step,
        epoch=None,
        time=0.0,
        seconds=seconds,
        share=0.0,
        phase="liquid",
        metrics={"order": order},
        ci={},
        tasks={},
    )


@pytest.mark.parametrize("length", [1, 7, 100, 101, 1000, 54321])
def test_default_schedule(length):
    steps = sorted(probe_steps(length))
    assert steps[0] == 0
    assert steps[-1] == length
    assert len(steps) <= 101
    assert len(steps) >= min(length, 75)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert gaps[0] <= gaps[-1]


def forecasts(step_seconds, probe_seconds, *, start, steps, every=1, slow_first=0.0):
    """What a forecast says at each step after `start`, and what probing then takes of the whole."""
    clock = Clock()
    meter = Budget(float("inf"), clock)
    schedule = probe_steps(steps, every)
    forecast, said = Forecast(schedule, meter), {}
    with meter.spending():
        clock.now += 7.0  # the base's answers
    meter.expect(probe_seconds)
    clock.now += slow_first
    for step in range(start + 1, steps + 1):
        clock.now += step_seconds
        if found := forecast.at(step):
            said[step] = found
        if step in schedule:
            with meter.spending():
                clock.now += probe_seconds
            meter.expect(probe_seconds)
    return said, meter.spent / meter.elapsed


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("slow_first", [0.0, 30.0])
def test_a_forecast_comes_true(start, every, slow_first):
    said, share = forecasts(0.5, 2.0, start=start, steps=50, every=every, slow_first=slow_first)
    assert [*said] == ([start + 4] if share >= COSTLY else [])
    for found in said.values():
        assert found == pytest.approx((share, 2.0, 0.5))


def test_a_forecast_of_little_or_at_the_end_is_not_told():
    assert forecasts(1000.0, 2.0, start=0, steps=50)[0] == {}
    assert forecasts(0.5, 2.0, start=0, steps=4)[0] == {}


@pytest.mark.parametrize(
    ("length", "every", "expected"),
    [(10, 4, [0, 4, 8, 10]), (8, 4, [0, 4, 8]), (3, 7, [0, 3]), (0, 5, [0]), (2, None, [0, 1, 2])],
)
def test_fixed_schedule(length, every, expected):
    steps = probe_steps(length, every)
    assert [*steps] == [step for step in range(length + 1) if step in steps] == expected
    counts = [sum(each >= step for each in expected) for step in range(length + 1)]
    assert [steps.count_from(step) for step in range(length + 1)] == counts


def test_a_schedule_and_its_forecast_take_no_more_for_more_steps():
    tracemalloc.start()
    length = 10**12
    schedule, clock = Schedule(probe_steps(length, every=1)), Clock()
    assert schedule.asks(length - 1)
    assert len(schedule.steps) == length + 1
    forecast = Forecast(schedule.steps, meter := Budget(float("inf"), clock))
    meter.expect(1.0)
    found = []
    for step in range(5):
        clock.now += 1.0
        found.append(forecast.at(step))
    assert found == [None, None, None, (pytest.approx(0.5), 1.0, 1.0), None]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_budget_holds_and_is_used(share, start):
    probed, spent = simulate(share, 1.0, 2.0, 5000, start=start)
    assert spent <= share
    assert spent > 0.8 * share
    assert probed[0] == 0
    assert probed[-1] == 5000


def test_cheap_probes_follow_the_schedule_once_the_first_is_earned_back():
    probed, _ = simulate(0.5, 1.0, 0.001, 40, every=5)
    assert probed == list(range(0, 41, 5))


def test_a_run_too_short_for_its_budget_gets_its_first_probe_only():
    probed, _ = simulate(0.01, 1.0, 2.0, 50)
    assert probed == [0]


def test_what_was_saved_is_spent_where_the_model_moves():
    moving = range(2500, 2600)
    probed, spent = simulate(0.02, 1.0, 2.0, 5000, moving=moving, every=100)
    around = [step for step in probed if 2500 <= step < 2600]
    assert len(around) > SAVED_PROBES
    assert around[1] - around[0] == 1
    calm, _ = simulate(0.02, 1.0, 2.0, 5000, every=100)
    assert len([step for step in calm if 2500 <= step < 2600]) == 1
    assert spent <= 0.02


def test_a_failed_probe_is_not_tried_again_until_the_next_is_due():
    schedule = Schedule(probe_steps(5, every=5))
    assert schedule.asks(0)
    schedule.taken()
    assert not schedule.asks(1)
    assert schedule.asks(5)


def test_a_wait_is_not_asked_for_at_every_step():
    asked = []
    probed, _ = simulate(0.01, 1.0, 2.0, 5000, asked=asked)
    assert len(asked) < 12 * len(probed)


@pytest.mark.parametrize("share", [1.0, float("inf")])
def test_who_may_spend_all_of_the_time_never_waits(share):
    budget = Budget(share, Clock())
    budget.expect(300.0)
    assert budget.wait() == 0.0
    assert budget.affords(300.0)


def test_a_typical_cost_is_no_outlier():
    budget = Budget(0.5, Clock())
    assert budget.typical_cost == 0.0
    for seconds in (1.0, 90.0, 2.0):
        budget.expect(seconds)
    assert budget.typical_cost == 2.0


def test_one_slow_probe_is_forgotten():
    budget = Budget(0.5, Clock())
    budget.expect(300.0)
    assert budget.wait(last=True) > 0
    for _ in range(REMEMBERED):
        budget.expect(0.1)
    assert budget.wait(last=True) == pytest.approx(0.1)


def test_time_is_counted_when_a_probe_raises():
    clock = Clock()
    budget = Budget(0.5, clock)

    def fail():
        with budget.spending():
            clock.now += 4.0
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert budget.spent == 4.0
    assert budget.wait(last=True) == 4.0


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_is_within_0_and_1(share):
    with pytest.raises(ValueError, match=r"max_overhead must be within \(0, 1\], got"):
        CrystalCallback(max_overhead=share)


@pytest.mark.parametrize("share", ["0.01", True])
def test_a_share_is_a_number(share):
    with pytest.raises(TypeError, match="max_overhead must be a number or None"):
        CrystalCallback(max_overhead=share)
