"""When to probe: the default schedule, a fixed one, and the budget that both keep to."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from crystalmon.monitor.budget import REMEMBERED, Budget
from crystalmon.monitor.callback import CrystalCallback
from crystalmon.monitor.schedule import COSTLY, STRIDE, Forecast, Schedule, probe_steps
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.shares import LEAST


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


AHEAD = {"liquid": (ONSET, "nucleating"), "nucleating": (COMPLETE, "crystallized")}
TOKENS = {2: 10, 4: 20, 8: 40, 24: 100}
"""Of a probe, by the number of prompts of each task that it asks."""


def simulate(
    share,
    step_seconds,
    whole_seconds,
    steps,
    *,
    start=0.0,
    order=lambda step: 0.0,
    every=None,
    asked=None,
    enough=2,
):
    """Run a schedule; by step how many prompts were asked, and the share of time that it took.

    `order` gives what a probe finds at a step. A phase changes at the second probe, of those that
    ask `enough` prompts, that is beyond.
    """
    clock = Clock()
    budget = Budget(share, clock)
    schedule = Schedule(probe_steps(steps, every), budget)
    schedule.tokens = TOKENS
    with budget.spending():
        clock.now += start
    probed, beyond, phase = {}, 0, "liquid"
    asked = [] if asked is None else asked

    def probe(step, prompts):
        nonlocal beyond, phase
        schedule.taken()
        bar, following = AHEAD.get(phase, (2.0, ""))
        beyond = beyond + (prompts >= enough) if order(step) >= bar else 0
        if beyond == 2:
            beyond, phase = 0, following
        seconds = whole_seconds * TOKENS[prompts] / 100
        with budget.spending():
            clock.now += seconds
        budget.expect(TOKENS[prompts], seconds)  # as the callback does
        schedule.probed(record(step, order(step), seconds, phase))
        probed[step] = prompts

    probe(0, 24)
    schedule.begin(0)
    for step in range(1, steps + 1):
        clock.now += step_seconds
        last = step == steps
        if schedule.asks(step, last):
            asked.append(step)
            if prompts := schedule.wants(step, last):
                probe(step, prompts)
    return probed, budget.spent / budget.elapsed


def record(step, order, seconds, phase="liquid"):
    return ProbeRecord(
        step=step,
        epoch=None,
        time=0.0,
        seconds=seconds,
        share=0.0,
        phase=phase,
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
    meter.expect(10, probe_seconds)
    clock.now += slow_first
    for step in range(start + 1, steps + 1):
        clock.now += step_seconds
        if found := forecast.at(step, 10):
            said[step] = found
        if step in schedule:
            with meter.spending():
                clock.now += probe_seconds
            meter.expect(10, probe_seconds)
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
    meter.expect(10, 1.0)
    found = []
    for step in range(5):
        clock.now += 1.0
        found.append(forecast.at(step, 10))
    assert found == [None, None, None, (pytest.approx(0.5), 1.0, 1.0), None]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize("every", [None, 7])
def test_a_budget_holds_and_is_used(share, start, every):
    probed, spent = simulate(share, 1.0, 5.0, 5000, start=start, every=every)
    assert spent <= share
    few = every is None and share > 0.1  # 100 whole probes are all that is planned
    assert few or spent > 0.6 * share
    assert min(probed) == 0
    assert max(probed) == 5000


def test_probes_lie_dense_at_first():
    probed, _ = simulate(0.02, 1.0, 10.0, 5000)
    gaps = [b - a for a, b in itertools.pairwise(probed)]
    assert len(gaps) > 12
    assert sum(gaps[: len(gaps) // 2]) < 5000 / 3


@pytest.mark.parametrize(
    ("share", "size"), [(0.004, 2), (0.015, 4), (0.03, 8), (0.08, 24), (0.9, 24)]
)
def test_probes_are_as_large_as_leaves_room_for_enough_of_them(share, size):
    probed, _ = simulate(share, 1.0, 10.0, 5000)
    usual = [*probed.values()][2:-1]
    assert max(set(usual), key=usual.count) == size


def test_the_end_is_probed_whole_if_that_fits():
    assert simulate(0.02, 1.0, 10.0, 5000)[0][5000] == 24
    assert simulate(0.003, 1.0, 10.0, 5000)[0][5000] < 24


@pytest.mark.parametrize(("steps", "every"), [(4, None), (16, 3), (40, None), (400, 3)])
def test_a_run_too_short_for_its_budget_gets_its_fewest_probes_all_the_same(steps, every):
    probed, spent = simulate(0.001, 1.0, 20.0, steps, start=30.0, every=every)
    assert spent > 0.001
    assert len(probed) == LEAST + 1
    assert [*probed.values()] == [24, *[2] * LEAST]
    assert max(probed) == steps


def test_cheap_probes_follow_the_schedule():
    probed, _ = simulate(0.5, 1.0, 0.001, 40, every=5)
    assert [*probed] == list(range(0, 41, 5))


def test_what_was_saved_is_spent_where_the_model_moves():
    probed, spent = simulate(0.02, 1.0, 10.0, 5000, order=rising(2000, 2300))
    calm, _ = simulate(0.02, 1.0, 10.0, 5000)

    def within(steps):
        return sum(2000 <= step < 2300 for step in steps)

    assert within(probed) > 2 * within(calm)
    assert spent <= 0.02
    assert max(probed) == 5000


def rising(start, end):
    """From 0 to 1 between two steps."""
    return lambda step: min(max((step - start) / (end - start), 0.0), 1.0)


@pytest.mark.parametrize(("share", "enough"), [(0.01, 2), (0.01, 4), (0.02, 8)])
def test_more_prompts_are_asked_where_few_cannot_tell(share, enough):
    """Beyond the onset, and the phase stays: the next probes ask as many as it takes."""
    probed, spent = simulate(share, 1.0, 10.0, 5000, order=rising(1000, 3000), enough=enough)
    before = {size for step, size in probed.items() if 0 < step < 1400}
    after = [size for step, size in probed.items() if 1400 < step < 2400]
    assert max(before) <= enough == max(after)
    assert spent < 1.01 * share


def test_a_rise_is_probed_at_its_own_pace():
    probed, _ = simulate(0.05, 1.0, 10.0, 5000, order=rising(1000, 3000))
    steps = [step for step in probed if 1200 < step < 2900]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) <= STRIDE * 2000 + 1


def test_a_crossing_that_was_none_is_forgotten():
    """After it, as many probes as without it, and a second crossing is confirmed at once."""
    passing, _ = simulate(0.02, 1.0, 10.0, 5000, order=lambda step: 0.3 * (1000 < step < 1100))
    calm, _ = simulate(0.02, 1.0, 10.0, 5000)
    late = [sum(step > 1500 for step in probed) for probed in (passing, calm)]
    assert late[0] > 0.8 * late[1]
    twice, _ = simulate(
        0.02, 1.0, 10.0, 5000, order=lambda step: 0.3 * (1000 < step < 1010 or step > 3000)
    )
    first = min(step for step in twice if step > 3000)
    assert first + 1 in twice


def test_a_threshold_that_is_crossed_is_confirmed_at_the_next_step():
    probed, _ = simulate(0.02, 1.0, 10.0, 5000, order=lambda step: 0.3 * (step >= 1500))
    first = min(step for step in probed if step >= 1500)
    assert first + 1 in probed


@pytest.mark.parametrize(("order", "next_probe"), [(0.3, 501), (0.0, 550)])
def test_a_run_that_is_resumed_confirms_what_its_last_probe_has_crossed(order, next_probe):
    schedule = Schedule(probe_steps(1000, every=50), Budget(0.5, clock := Clock()))
    schedule.tokens = TOKENS
    for step in (400, 450):
        schedule.probed(record(step, 0.0, 0.1))
    schedule.probed(record(500, order, 0.1))
    schedule.begin(500)
    for step in range(501, 1000):
        clock.now += 1.0
        if schedule.wants(step):
            break
    assert step == next_probe


def test_a_probe_that_fails_while_the_model_moves_is_not_tried_again_at_once():
    schedule = Schedule(probe_steps(1000, every=500), Budget(0.5, clock := Clock()))
    schedule.tokens = TOKENS
    schedule.begin(0)
    for step, order in enumerate((0.0, 0.1, 0.3)):
        clock.now += 1.0
        schedule.taken()
        schedule.probed(record(step, order, 0.1))
    assert schedule.asks(3)
    schedule.taken()
    assert not any(map(schedule.asks, range(4, 500)))


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


def test_one_slow_probe_is_forgotten():
    budget = Budget(0.5, Clock())
    assert budget.cost(10) == 0.0
    budget.expect(10, 300.0)
    assert budget.cost(20) == 600.0
    for _ in range(REMEMBERED):
        budget.expect(10, 0.1)
    assert budget.cost(10) == pytest.approx(0.1)


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
    assert budget.trained == 0.0


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_is_within_0_and_1(share):
    with pytest.raises(ValueError, match=r"max_overhead must be within \(0, 1\], got"):
        CrystalCallback(max_overhead=share)


@pytest.mark.parametrize("share", ["0.01", True])
def test_a_share_is_a_number(share):
    with pytest.raises(TypeError, match="max_overhead must be a number or None"):
        CrystalCallback(max_overhead=share)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("start", [40, 75, 110, 190])
def test_a_crossing_is_confirmed_at_the_next_step_also_when_few_probes_are_left(share, start):
    rise = rising(start, 4 * start)
    probed, spent = simulate(share, 1.0, 6.5, 1000, order=rise)
    crossing = min(step for step in probed if rise(step) >= ONSET)
    assert crossing + 1 in probed
    assert 1000 in probed
    assert spent <= 1.01 * share
