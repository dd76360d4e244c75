"""Simulated training histories with known truth: what the phase detector is calibrated on.

    for scenario in bank(positives=200, nulls=200, random_seed=0):
        detector = PhaseDetector(scenario.base)
        ...

Everything is on the level of the answers q [S, P, C]: S probes, P prompts, C choices. Kinds and
parameters that calibration never saw carry `held_out`.
"""

from __future__ import annotations

from scenarios.bank import HELD_OUT_KINDS, KINDS, NULL_KINDS, bank, make_scenario
from scenarios.truth import NULL_ORDER, TRUE_MELT, TRUE_ONSET, Scenario, orders

__all__ = [
    "HELD_OUT_KINDS",
    "KINDS",
    "NULL_KINDS",
    "NULL_ORDER",
    "TRUE_MELT",
    "TRUE_ONSET",
    "Scenario",
    "bank",
    "make_scenario",
    "orders",
]
