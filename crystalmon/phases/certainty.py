"""The rule on certainty: answers that become sure, whether or not the wordings agree."""

from __future__ import annotations

import math

from crystalmon.metrics.divergences import entropy
from crystalmon.phases.order import CONFIRM
from crystalmon.phases.state import Base, Observation, Outcome, PhaseState

VARIED = 0.1
"""Share of log C that the base's entropy must have, or a task's answers were sure before."""
SURE = 0.25
"""Share of the base's entropy below which answers have become sure."""


def entropy_rule(base: Base, state: PhaseState, now: Observation) -> Outcome:
    """`entropy_collapse`: the answers to one wording have become sure, whichever they are.

    mean_p H(q_p) < `SURE` · mean_p H(b_p), over the prompts that were asked, at `CONFIRM` probes.
    """
    before = float(entropy(base.q[now.asked]).mean())
    if before < VARIED * math.log(now.q.shape[1]):
        return state, []
    own = float(entropy(now.q).mean())
    state = state.streak(entropy=own < SURE * before)
    if own > 2 * SURE * before:
        state = state.rearm("entropy_collapse")
    if state.streaks["entropy"] < CONFIRM or "entropy_collapse" in state.raised:
        return state, []
    message = (
        "the model has become sure of its answer to each wording: their entropy fell from "
        f"{before:.2f} to {own:.2f} nats"
    )
    earlier = state.steps[:-CONFIRM]
    evidence = {"entropy": own, "base_entropy": before, "since": earlier[-1] if earlier else 0}
    return state.once("entropy_collapse"), [now.event("entropy_collapse", evidence, message)]
