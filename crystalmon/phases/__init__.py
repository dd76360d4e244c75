"""Online phase detection: (state, observation) → (state, events).

The detector sees nothing but its base and the observations so far, so replaying a stored run gives
the same events. `scripts/validate_detection.py` measures its error rates.

    liquid ──order ≥ 0.2──▶ nucleating ──order ≥ 0.8──▶ crystallized ◀─leaves─▶ settling
       ▲                        │                           │   order < 0.6        │
       └────────order < 0.15────┴───────── melting ◀────────┴──────────────────────┘

    state.py         what is observed and remembered; the base as the rules need it
    partial.py       what a probe of few prompts says of order
    order.py         early warning, onset with its back-dating, completion, melting
    seed.py          which base prompt has won, or none; another one's taking over
    seed_fit.py      … by where the prompts' paths lead: straight_path.py, descent_path.py
    seed_odds.py     … and how likely it is that they lead to any base prompt
    seed_set.py      the base prompts that cannot be excluded
    support.py       settling inside the seed's support, leaking out of it, drift of the format
    certainty.py     answers that become sure
    leaps.py         a series, such as the KL, that leaps
    limits.py        bounds that a user sets on metrics
    detector.py      the rules in their order, for one task
    suite.py         all tasks, and the suite as their majority
    in_words.py      what one probe says, in words
    what_to_do.py    what to look at or do after an event
    stored.py        a stored run's probes and states, read and replayed
"""

from __future__ import annotations

from crystalmon.phases.detector import PhaseDetector
from crystalmon.phases.state import Lock, PhaseState
from crystalmon.phases.suite import SuiteDetector

__all__ = ["Lock", "PhaseDetector", "PhaseState", "SuiteDetector"]
