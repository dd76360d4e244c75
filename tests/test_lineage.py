"""What is handed on from run to run, read back, and refused when damaged."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from crystalmon.phases import Lock, PhaseDetector, PhaseState
from crystalmon.phases.stored import INHERITED_KEY, states_of, to_info

LOCK = {"seed": 2, "mass": 0.9, "nearest": 0.01, "p_value": 0.04, "margin": 3.0}
KEPT = {"lock": LOCK, "coverage": 0.8, "raised": ["support_leak"]}


def test_what_is_handed_on_comes_back():
    states = {
        "coin": PhaseState(lock=Lock(**LOCK), raised=frozenset({"melting"})),
        "die": PhaseState(coverage=0.5),
    }
    stored = json.loads(json.dumps({INHERITED_KEY: to_info(states)}))
    assert states_of(stored) == states
    assert states_of({}) == {}


def test_a_run_of_an_earlier_version_is_read():
    old = {"lock": {"seed": 2, "mass": 0.9, "nearest": 0.01}, "coverage": None}
    state = states_of({INHERITED_KEY: {"coin": old}})["coin"]
    assert state.lock == Lock(2, 0.9, 0.01, None, None)
    assert state.raised == frozenset()


@pytest.mark.parametrize(
    "damage",
    [
        {"lock": {**LOCK, "seed": "2"}},
        {"lock": {**LOCK, "seed": 2.0}},
        {"lock": {**LOCK, "seed": None}},
        {"lock": {**LOCK, "mass": None}},
        {"lock": {**LOCK, "nearest": [0.1]}},
        {"lock": {**LOCK, "p_value": "x"}},
        {"lock": {"seed": 2}},
        {"lock": [1]},
        {"coverage": "x"},
        {"coverage": float("nan")},
        {"raised": "support_leak"},
        {"raised": ["support_leak", 1]},
        {"raised": ["foo"]},
    ],
)
def test_damage_gives_one_clear_sentence(damage):
    with pytest.raises(ValueError, match=re.escape(f"{INHERITED_KEY} in run.json must hold")):
        states_of({INHERITED_KEY: {"coin": {**KEPT, **damage}}})
    with pytest.raises(ValueError, match="must hold"):
        states_of({INHERITED_KEY: {"coin": []}})


@pytest.mark.parametrize("seed", [-3, 4, 999])
def test_a_seed_that_is_no_prompt_is_refused(seed):
    base = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.7, 0.3]])
    state = PhaseState(lock=Lock(seed, 0.9, 0.01))
    with pytest.raises(
        ValueError, match=f"seed must be one of the 4 prompts of 'coin', got {seed}"
    ):
        PhaseDetector(base, "coin", state)
