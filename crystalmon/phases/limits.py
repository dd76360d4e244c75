"""Bounds that a user sets on metrics, and the events when one is passed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from crystalmon.metrics.catalogue import METRICS
from crystalmon.runs.json_values import LARGE
from crystalmon.runs.records import LIMIT_EVENT, Event, ProbeRecord

_OUTSIDE = ("phase", "probe_seconds", "probe_share")
LIMITED = {m.key: m for m in METRICS if m.level != "task" and m.key not in _OUTSIDE}
"""The metrics of the suite that a limit may be set on: those that each probe has measured."""
_FEW = "Most limit free_energy, entropy, order or coverage; crystalmon/metrics/README.md has all."


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
            near = difflib.get_close_matches(str(key), LIMITED, n=3)
            advice = f"Did you mean {' or '.join(near)}?" if near else _FEW
            raise ValueError(f"limits must be on a metric of the suite, got {key!r}. {advice}")
        if isinstance(limit, bool) or not isinstance(limit, Real):  # NumPy's numbers count
            raise TypeError(f"the limit on {key} must be a number, got {type(limit).__name__}.")
        if not -LARGE < limit < LARGE:
            raise ValueError(f"the limit on {key} must be finite, got {limit!r:.30}.")
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
        self._well: dict[str, int] = {}

    def forget(self, keys: Iterable[str]) -> None:
        """Begin anew with these metrics: the run had other limits on them before."""
        self._passed -= set(keys)

    def check(self, record: ProbeRecord) -> list[Event]:
        """Take up a probe; return the events that it raises."""
        events = []
        for key, limit in self._limits.items():
            value, metric = record.metrics.get(key, math.nan), LIMITED[key]
            passed = value < limit if metric.better == "higher" else value > limit
            if passed and key not in self._passed:
                evidence: dict[str, Any] = {key: value, "limit": limit}
                evidence["since"] = self._well.get(key, 0)
                side = "below" if value < limit else "above"
                message = f"{metric.label} is {side} {limit:g} {metric.unit}".rstrip()
                message += f": {value:.3g}"
                events.append(Event(f"{key}{LIMIT_EVENT}", record.step, None, evidence, message))
            if passed:
                self._passed.add(key)
            elif not math.isnan(value):
                self._passed.discard(key)
                self._well[key] = record.step
        return events
