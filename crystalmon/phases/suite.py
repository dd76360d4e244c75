"""All tasks, and the suite's own phase as that of its majority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crystalmon.metrics.answers import MAJORITY
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.phases.detector import PhaseDetector
from crystalmon.phases.leaps import PACES, leap
from crystalmon.phases.partial import order_bounds
from crystalmon.phases.state import Observation, PhaseState
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import PHASES, Event

_SUITE_ORDER = ("liquid", "nucleating", "crystallized", "settling")
_SUITE_EVENTS = {
    "nucleating": "nucleation_onset",
    "crystallized": "nucleation_complete",
    "melting": "melting",
}


class SuiteDetector:
    """One detector per task, and the suite's phase from theirs.

    The suite has reached a phase when at least half of the tasks that take part have. Tasks whose
    base was already ordered take no part (unless all are), nor those that were never measured.
    Where a probe cannot measure more than half of the others, the suite is not measurable either.

    Args:
        base_q: by task, the base's answers [P, C].
        states: by task, what its detector remembers from before.
        in_view: by task that is compared with the base's answers to the plain prompts, those in
            the view [P, C].

    Attributes:
        training: whether steps are those of one training. If they count the stages of a scan, there
            is no pace that a leap of the KL could be held against.
    """

    def __init__(
        self,
        base_q: Mapping[str, np.ndarray],
        states: Mapping[str, PhaseState] | None = None,
        in_view: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        before, view = states or {}, in_view or {}
        self.tasks = {
            name: PhaseDetector(q, name, before.get(name), view.get(name))
            for name, q in base_q.items()
        }
        self.training = True
        self._phase: str | None = None
        self._onsets: dict[str, tuple[float, float, float]] = {}
        self._kl: dict[Any, list[tuple[int, float]]] = {}

    @property
    def phase(self) -> str:
        """The suite's phase, `liquid` before the first probe."""
        part = self.taking_part or list(self.tasks)
        known = [name for name in part if self.tasks[name].state.measurable]
        if len(known) < MAJORITY * len(part):
            return NOT_MEASURABLE
        return self._phase or "liquid"

    @property
    def taking_part(self) -> list[str]:
        """The tasks whose base has liquidity to lose."""
        return [name for name, task in self.tasks.items() if not task.ordered]

    @property
    def measurable(self) -> list[str]:
        """Those of them that the latest probe could measure."""
        return [name for name in self.taking_part if self.tasks[name].state.measurable]

    def update(
        self,
        step: int,
        q: Mapping[str, np.ndarray],
        coverage: Mapping[str, float | None],
        asked: Mapping[str, Sequence[int] | None] | None = None,
        measurable: Mapping[str, float | None] | None = None,
        free_energy: Mapping[str, float | None] | None = None,
    ) -> list[Event]:
        """Take one probe of every task; return its events, the suite's own last.

        A task whose answers are not finite skips this probe. If few prompts are asked, what a task
        seems to do may be their doing, and is weighed against the other tasks; see `order_bounds`.
        The arguments are, by task, those of `PhaseDetector.update`, and the KL to the base, in
        nats; without it no `free_energy_jump`.
        """
        asked, measurable = asked or {}, measurable or {}
        seen = {
            name: task.observe(
                step,
                q[name],
                coverage=coverage.get(name),
                asked=asked.get(name),
                measurable=measurable.get(name),
            )
            for name, task in self.tasks.items()
            if np.isfinite(q[name]).all()
        }
        part = [name for name in self.taking_part if name in seen and seen[name].measurable]
        seen |= self._bounded({name: seen[name] for name in part})
        events: list[Event] = []
        for name, task in self.tasks.items():
            if name in seen:
                events += task.take(seen[name])
            if task.phase == "liquid":
                self._onsets.pop(name, None)
        for event in events:
            if event.kind == "nucleation_onset" and event.task is not None:
                low, high = event.evidence["onset_interval"]
                crossing = event.evidence.get("onset_step", high)
                self._onsets[event.task] = (low, high, crossing)
        events += self._leaps(step, asked, free_energy or {})
        if self.phase == NOT_MEASURABLE:
            return events
        # one that cannot be measured now is where it was: its absence is no change of the suite's
        states = [self.tasks[name].state for name in self.taking_part or self.tasks]
        phases = [state.phase for state in states if state.steps]
        before, self._phase = self._phase, majority(phases)
        if before not in (None, self._phase):
            events += self._entered(before, step, phases)
        return events

    def _leaps(
        self,
        step: int,
        asked: Mapping[str, Sequence[int] | None],
        free_energy: Mapping[str, float | None],
    ) -> list[Event]:
        """`free_energy_jump`: the mean KL over tasks has leapt; see `leaps.leap`.

        A probe is held against those before that have asked the same prompts: others have another
        level. One whose KL is not finite is passed over.
        """
        values = [value for value in free_energy.values() if value is not None]
        if not self.training or not values or not np.isfinite(values).all():
            return []
        prompts = tuple((name, rows and tuple(rows)) for name, rows in asked.items())
        seen = self._kl.setdefault(prompts, [])
        seen.append((step, float(np.mean(values))))
        del seen[: -PACES - 2]
        steps, kl = zip(*seen, strict=True)
        if (evidence := leap(steps, kl)) is None:
            return []
        (since, before), (_, now) = seen[-2:]
        evidence |= {"free_energy": now, "since": since}
        message = f"the KL to the base leapt from {before:.2f} to {now:.2f} nats since step {since}"
        return [Event("free_energy_jump", step, None, evidence, message)]

    def _bounded(self, seen: Mapping[str, Observation]) -> dict[str, Observation]:
        """By task with a finite order, its probe with the bounds of that; see `order_bounds`."""
        seen = {name: now for name, now in seen.items() if np.isfinite(now.order)}
        orders = np.array([now.order for now in seen.values()])
        shares = [1 / len(now.q) - 1 / self.tasks[name].prompts for name, now in seen.items()]
        before = [now.before for now in seen.values()]
        mean = float(np.average(orders, weights=before)) if sum(before) else 0.0
        bounds = order_bounds(orders, mean, shares)
        return {
            name: replace(now, least=least, most=most)
            for (name, now), (least, most) in zip(seen.items(), bounds, strict=True)
        }

    def _entered(self, before: str, step: int, phases: Sequence[str]) -> list[Event]:
        """One event for each phase that the suite has entered or passed since the last probe."""
        counts = {phase: phases.count(phase) for phase in PHASES if phase in phases}
        spelled = ", ".join(f"{count} {phase}" for phase, count in counts.items())
        message = f"the suite is {self.phase}: {spelled} of {counted(len(phases), 'task')}"
        events = []
        for phase in _passed(before, self.phase):
            evidence: dict[str, Any] = {"tasks": counts}
            if phase == "nucleating":
                evidence |= self._onset(len(phases))
            events.append(Event(_SUITE_EVENTS[phase], step, None, evidence, message))
        return events

    def _onset(self, tasks: int) -> dict[str, Any]:
        """When half of the tasks had their onset: the order statistics of theirs, end by end."""
        needed = tasks - tasks // 2
        if len(self._onsets) < needed:  # tasks that were first seen beyond their onset have none
            return {}
        onsets = np.sort(np.array(list(self._onsets.values())), axis=0)
        low, high, crossing = onsets[needed - 1].tolist()
        return {"onset_step": crossing, "onset_interval": [low, high]}


def majority(phases: Sequence[str]) -> str:
    """The phase of a suite, from those of the tasks that take part."""
    if phases and 2 * phases.count("melting") >= len(phases):
        return "melting"
    if not phases or "ordered" in phases:
        return "ordered"
    ranks = sorted(_SUITE_ORDER.index("liquid" if p == "melting" else p) for p in phases)
    return _SUITE_ORDER[ranks[len(ranks) // 2]]


def _passed(before: str, now: str) -> list[str]:
    """The phases with an event after `before`, up to `now`; after melting no onset is repeated."""
    if now in ("melting", "ordered"):
        return [now] if now in _SUITE_EVENTS else []
    start = _SUITE_ORDER.index("nucleating" if before == "melting" else before)
    passed = _SUITE_ORDER[start + 1 : _SUITE_ORDER.index(now) + 1]
    return [phase for phase in passed if phase in _SUITE_EVENTS]
