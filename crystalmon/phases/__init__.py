"""Online phase detection: (state, observation) → (state, events).

The detector sees nothing but its reference and the observations so far, so replaying a stored run
gives the same events. Its error rates are those that `scripts/validate_detection.py` prints.

    liquid ──order ≥ 0.2──▶ nucleating ──order ≥ 0.8──▶ crystallized ◀─leaves─▶ settling
       ▲                        │                           │   order < 0.6        │
       └────────order < 0.15────┴───────── melting ◀────────┴──────────────────────┘

    state.py      what is observed and remembered; the reference as the rules need it
    order.py      early warning, onset with its back-dating, completion, melting
    seed.py       which base prompt has won, or none; another one's taking over
    support.py    settling inside the seed's support, leaking out of it, drift of the format
    detector.py   the rules in their order, for one task
    suite.py      all tasks, and the suite as their majority
"""

from __future__ import annotations

from crystalmon.phases.detector import PhaseDetector, advance
from crystalmon.phases.order import COMPLETE, CONFIRM, MELT, ONSET, WARNING
from crystalmon.phases.state import Base, Lock, Observation, PhaseState
from crystalmon.phases.suite import SuiteDetector

__all__ = [
    "COMPLETE",
    "CONFIRM",
    "MELT",
    "ONSET",
    "WARNING",
    "Base",
    "Lock",
    "Observation",
    "PhaseDetector",
    "PhaseState",
    "SuiteDetector",
    "advance",
]
