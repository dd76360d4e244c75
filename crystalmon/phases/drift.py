"""The rules on certainty and distance: answers that become sure, KL that leaps, a user's limits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crystalmon.metrics.catalogue import METRICS
from crystalmon.metrics.divergences import entropy
from crystalmon.phases.order import CONFIRM
from crystalmon.phases.state import Base, Observation, Outcome, PhaseState
from crystalmon.runs.records import LIMIT_EVENT, Event, ProbeRecord

VARIED = 0.1
"""Share of log C that the base's entropy must have, or a task's answers were sure before."""
SURE = 0.25
"""Share of the base's entropy below which answers have become sure."""
PACES = 8
"""Latest intervals between probes that a leap of KL is held against, …"""
LEAST_PACES = 4
"""… and the fewest of them."""
FASTER = 3.0
"""How many times the fastest of them a leap is."""
LEAP = 0.1
"""Nats that a leap has at the least, …"""
SHARE = 0.1
"""… and its least share of the KL before it."""

LIMITED = {m.key: m for m in METRICS if m.level != "task" and m.key not in ("phase", "seed")}
"""The metrics of the suite that a limit may be set on."""


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
    event = now.event("entropy_collapse", {"entropy": own, "base_entropy": before}, message)
    return state.once("entropy_collapse"), [event]


def leap(steps: Sequence[int], values: Sequence[float]) -> dict[str, float] | None:
    """Whether the last value of a series has leapt up against its own recent pace.

    It has if it rose by `LEAP`, by `SHARE` of the value before, and per step more than `FASTER`
    times as much as the fastest change among the latest `PACES` intervals before.

    Args:
        steps: of the probes, increasing.
        values: as many, in nats.

    Returns:
        The rise, its pace per step and the fastest pace before; None if it has not.

    >>> leap(range(6), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) is None
    True
    >>> round(leap(range(6), [0.0, 0.1, 0.2, 0.3, 0.4, 0.9])["rise"], 3)
    0.5
    """
    steps, values = steps[-PACES - 2 :], values[-PACES - 2 :]
    if len(values) < LEAST_PACES + 2 or not np.isfinite(values).all():
        return None
    paces = np.diff(values) / np.diff(steps)
    rise, fastest = values[-1] - values[-2], float(np.abs(paces[:-1]).max())
    if rise < max(LEAP, SHARE * values[-2]) or paces[-1] <= FASTER * fastest:
        return None
    return {"rise": float(rise), "pace": float(paces[-1]), "fastest_before": fastest}


def check_limits(limits: Mapping[str, float] | None) -> dict[str, float]:
    """The limits by metric.

    Raises:
        TypeError: if they are no mapping, or a limit is no number.
        ValueError: for a metric that the suite does not have, or a limit that is not finite.
    """
    if limits is not None and not isinstance(limits, Mapping):
        raise TypeError(f"limits must be a mapping, got {type(limits).__name__}.")
    for key, limit in (limits or {}).items():
        if key not in LIMITED:
            near = difflib.get_close_matches(str(key), LIMITED, n=3) or list(LIMITED)
            raise ValueError(
                f"limits must be on a metric of the suite, got {key!r}. Did you mean "
                f"{' or '.join(near)}?"
            )
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise TypeError(f"the limit on {key} must be a number, got {type(limit).__name__}.")
        if not math.isfinite(limit):
            raise ValueError(f"the limit on {key} must be finite, got {limit}.")
    return {key: float(limit) for key, limit in (limits or {}).items()}


class Limits:
    """Raises `<metric>_limit` when a metric of the suite passes a bound that the user has set.

    A metric of which more is better passes it downwards, any other upwards. It is told again once
    the metric has been back.

    Args:
        limits: by metric; see `check_limits`.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._passed: set[str] = set()

    def check(self, record: ProbeRecord) -> list[Event]:
        """Take up a probe; return the events that it raises."""
        events = []
        for key, limit in self._limits.items():
            value, metric = record.metrics.get(key, math.nan), LIMITED[key]
            passed = value < limit if metric.better == "higher" else value > limit
            if passed and key not in self._passed:
                evidence: dict[str, Any] = {key: value, "limit": limit}
                side = "below" if value < limit else "above"
                message = f"{metric.label} is {side} {limit:g} {metric.unit}".rstrip()
                message += f": {value:.3g}"
                events.append(Event(f"{key}{LIMIT_EVENT}", record.step, None, evidence, message))
            if not math.isnan(value):
                (self._passed.add if passed else self._passed.discard)(key)
        return events
