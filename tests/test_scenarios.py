"""The simulated histories are what they say, and the detector keeps its promises on small banks."""

from __future__ import annotations

import numpy as np
import pytest
from scenarios import (
    HELD_OUT_KINDS,
    KINDS,
    NULL_KINDS,
    NULL_ORDER,
    TRUE_MELT,
    TRUE_ONSET,
    bank,
    make_scenario,
    orders,
)

from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor, support
from crystalmon.phases import PhaseDetector
from crystalmon.phases.seed_fit import Candidates
from crystalmon.phases.seed_odds import TELLING
from crystalmon.runs.records import EVENT_KINDS

SEEDED = ("collapse, abrupt", "collapse, gradual", "collapse, prompt by prompt", "settling")
FIRST, MORE = range(900, 902), range(900, 905)


def watch(scenario):
    """(detector, [(kind, probe)])."""
    detector, events = PhaseDetector(scenario.base), []
    for probe, (q, coverage) in enumerate(zip(scenario.q, scenario.coverage, strict=True)):
        found = detector.update(int(scenario.steps[probe]), q, coverage=float(coverage))
        events += [(event.kind, probe) for event in found]
    return detector, events


# --- the bank itself -------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *NULL_KINDS, *HELD_OUT_KINDS])
def test_a_scenario_is_what_it_says(kind, held_out):
    for seed in FIRST:
        scenario = make_scenario(kind, seed, held_out=held_out)
        clean = orders(scenario.clean, scenario.base)
        assert (
            scenario.q.shape == scenario.clean.shape == (len(scenario.steps), *scenario.base.shape)
        )
        assert len(scenario.coverage) == len(scenario.steps)
        np.testing.assert_allclose(scenario.q.sum(axis=2), 1, atol=1e-6)
        assert scenario.held_out == (held_out or kind in HELD_OUT_KINDS)
        assert set(scenario.expected) <= set(EVENT_KINDS)
        if kind in KINDS:
            assert not scenario.is_null
            assert clean[scenario.onset] >= TRUE_ONSET > clean[: scenario.onset].max()
        elif kind != "ordered base":
            assert scenario.is_null
            assert clean.max() < NULL_ORDER


def test_the_same_seed_gives_the_same_scenario_and_another_another():
    one, same, other = (make_scenario("partial", seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.q, same.q)
    assert one.q.shape != other.q.shape or not np.array_equal(one.q, other.q)


def test_later_truths_hold_of_the_noise_free_history():
    for seed in FIRST:
        melting = make_scenario("melting", seed)
        at = melting.expected["melting"]
        values = orders(melting.clean, melting.base)
        assert values[at] < TRUE_MELT <= values[at - 1]
        leak = make_scenario("leak", seed)
        at, inside = leak.expected["support_leak"], support(leak.base[leak.seed])
        mass = leak.clean[:, :, inside].sum(axis=2).mean(axis=1)
        assert mass[at] < min(mass[at - 1].max(), leak.base[leak.seed][inside].sum())
        lonely = make_scenario("seedless", seed)
        end = lonely.clean[-1].mean(axis=0)
        floors = [noise_floor(lonely.base, k) for k in range(len(lonely.base))]
        assert (js_divergence(lonely.base, end) > 1.5 * np.array(floors)).all()


def test_real_bases_may_be_given():
    pool = {"mine": np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])}
    scenario = make_scenario("jitter alone", 0, pool=pool)
    assert scenario.family == "mine"
    np.testing.assert_array_equal(scenario.base, pool["mine"])


def test_a_bank_takes_the_kinds_in_turn():
    kinds = [scenario.kind for scenario in bank(3, 2, random_seed=3)]
    assert kinds == [*list(KINDS)[:3], *list(NULL_KINDS)[:2]]
    with pytest.raises(ValueError, match=r"kind must be one of collapse, abrupt, .* got 'x'"):
        make_scenario("x", 0)


# --- the promises, on banks small enough for every test run ----------------------------------


@pytest.mark.parametrize("kind", [*NULL_KINDS, "random walk", "few prompts"])
def test_nulls_raise_nothing_but_what_is_true(kind):
    for seed in MORE:
        scenario = make_scenario(kind, seed)
        detector, events = watch(scenario)
        assert {name for name, _ in events} == set(scenario.expected)
        assert detector.phase == scenario.phase
        assert detector.seed is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "partial" not in kind])
def test_what_happens_is_found_in_time(kind):
    for seed in FIRST:
        scenario = make_scenario(kind, seed)
        detector, events = watch(scenario)
        onset = next(probe for name, probe in events if name == "nucleation_onset")
        assert -2 <= onset - scenario.onset <= 2
        for name, at in scenario.expected.items():
            gone = kind == "melting" and scenario.base.shape[1] < TELLING  # before one was left
            if name == "seed_locked" and (gone or len(detector.seed_set) > 1):
                continue  # two choices: several prompts are alike
            locked = [probe for kind, probe in events if kind == "seed_locked"]
            if name == "recrystallization" and not (locked and min(locked) < at):
                continue  # none was locked before that could be taken over
            assert any(kind == name and probe >= at - 1 for kind, probe in events), name


@pytest.mark.parametrize("kind", SEEDED)
def test_the_seed_is_the_planted_one_or_its_twin(kind):
    for seed in FIRST:
        scenario = make_scenario(kind, seed)
        detector, events = watch(scenario)
        assert detector.seed is not None or len(detector.seed_set) > 1
        right = Candidates.of(scenario.base).twins(scenario.seed)
        assert any(right[member] for member in detector.seed_set if member is not None)
        assert "seedless_collapse" not in dict(events)
        assert detector.phase == scenario.phase


def test_a_partial_collapse_shows_its_seed_where_the_nearest_prompt_does_not():
    for seed in range(900, 912):
        scenario = make_scenario("partial", seed)
        detector, _ = watch(scenario)
        right = Candidates.of(scenario.base).twins(scenario.seed)
        assert any(right[member] for member in detector.seed_set if member is not None)
        assert detector.seed is not None or scenario.base.shape[1] < TELLING


def test_a_seedless_collapse_is_named_so():
    named = 0
    for seed in MORE:
        detector, events = watch(make_scenario("seedless", seed))
        named += "seedless_collapse" in dict(events) and detector.seed is None
    assert named >= len(MORE) - 1
