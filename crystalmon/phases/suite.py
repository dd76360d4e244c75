"""All tasks, and the suite's own phase as that of its majority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.phases.detector import PhaseDetector
from crystalmon.phases.state import PhaseState
from crystalmon.runs.records import PHASES, Event

_SUITE_ORDER = ("liquid", "nucleating", "crystallized", "settling")
_SUITE_EVENTS = {
    "nucleating": "nucleation_onset",
    "crystallized": "nucleation_complete",
    "melting": "melting",
}


@dataclass(frozen=True)
class SuiteState:
    """What the suite remembers beside its tasks.

    Args:
        phase: one of `records.PHASES`.
        started: whether a probe has been taken.
        onsets: by task, the latest onset's interval and crossing (low, high, crossing), as steps.
    """

    phase: str = "liquid"
    started: bool = False
    onsets: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


class SuiteDetector:
    """One detector per task, and the suite's phase from theirs.

    The suite has reached a phase when at least half of the tasks that take part have. Tasks whose
    base was already ordered take no part.

    Args:
        reference_q: by task, the base's answers [P, C].
        states: by task, what its detector remembers from before.
    """

    def __init__(
        self,
        reference_q: Mapping[str, np.ndarray],
        states: Mapping[str, PhaseState] | None = None,
    ) -> None:
        before = states or {}
        self.tasks = {
            name: PhaseDetector(q, name, before.get(name)) for name, q in reference_q.items()
        }
        self._state = SuiteState()

    @property
    def phase(self) -> str:
        """The suite's phase; `ordered` if no task takes part."""
        return self._state.phase

    @property
    def taking_part(self) -> list[str]:
        """The tasks whose base has liquidity to lose."""
        return [name for name, task in self.tasks.items() if task.phase != "ordered"]

    def update(
        self, step: int, q: Mapping[str, np.ndarray], coverage: Mapping[str, float]
    ) -> list[Event]:
        """Take one probe of every task; return its events, the suite's own last.

        A task whose answers are not finite skips this probe.
        """
        events: list[Event] = []
        for name, task in self.tasks.items():
            if np.isfinite(q[name]).all():
                events.extend(task.update(step, q[name], coverage=coverage.get(name)))
        phases = {name: self.tasks[name].phase for name in self.taking_part}
        self._state, own = advance_suite(self._state, step, phases, events)
        return [*events, *own]


def advance_suite(
    state: SuiteState, step: int, phases: Mapping[str, str], events: Sequence[Event]
) -> tuple[SuiteState, list[Event]]:
    """One step of the suite: a pure function.

    Args:
        state: after the last probe.
        step: of this probe.
        phases: by task that takes part, its phase now.
        events: that the tasks raised at this probe.

    Returns:
        The state after it, and one event for each phase that the suite has entered or passed.
    """
    onsets = {name: state.onsets[name] for name in state.onsets if phases.get(name) != "liquid"}
    for event in events:
        if event.kind == "nucleation_onset" and event.task is not None:
            low, high = event.evidence["onset_interval"]
            onsets[event.task] = (low, high, event.evidence["onset_step"])
    reached = list(phases.values())
    now = _majority(reached)
    counts = {phase: reached.count(phase) for phase in PHASES if phase in reached}
    spelled = ", ".join(f"{count} {phase}" for phase, count in counts.items())
    message = f"the suite is {now}: {spelled} of {len(reached)} tasks"
    own = []
    for phase in _passed(state.phase, now) if state.started and now != state.phase else ():
        evidence: dict[str, Any] = {"tasks": counts}
        if phase == "nucleating":
            evidence |= _suite_onset(onsets, len(reached))
        own.append(Event(_SUITE_EVENTS[phase], step, None, evidence, message))
    return SuiteState(now, True, onsets), own


def _majority(phases: Sequence[str]) -> str:
    if not phases:
        return "ordered"
    if 2 * phases.count("melting") >= len(phases):
        return "melting"
    ranks = sorted(_SUITE_ORDER.index("liquid" if p == "melting" else p) for p in phases)
    return _SUITE_ORDER[ranks[len(ranks) // 2]]


def _suite_onset(onsets: Mapping[str, tuple[float, float, float]], tasks: int) -> dict[str, Any]:
    """When half of the tasks had their onset: the order statistics of theirs, end by end."""
    needed = tasks - tasks // 2
    if len(onsets) < needed:  # tasks that were first seen beyond their onset have none
        return {}
    low, high, crossing = np.sort(np.array(list(onsets.values())), axis=0)[needed - 1].tolist()
    return {"onset_step": crossing, "onset_interval": [low, high]}


def _passed(before: str, now: str) -> list[str]:
    """The phases with an event after `before`, up to `now`; after melting no onset is repeated."""
    if now == "melting":
        return [now]
    start = _SUITE_ORDER.index("nucleating" if before == "melting" else before)
    passed = _SUITE_ORDER[start + 1 : _SUITE_ORDER.index(now) + 1]
    return [phase for phase in passed if phase in _SUITE_EVENTS]
