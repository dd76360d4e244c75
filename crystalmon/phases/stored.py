"""stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from crystalmon.phases import Lock, PhaseState, SuiteDetector
from crystalmon.runs.reader import Run
from crystalmon.runs.records import EVENT_KINDS, Event, ProbeRecord

INHERITED_KEY = "inherited"
"""In `run.json`: by task, what `PhaseState.handed_on` keeps."""


def states_of(run_info: Mapping[str, Any]) -> dict[str, PhaseState]:
    """By task, the detector's state at the start of a run, from its `run.json`.

    Raises:
        ValueError: if that part of it is damaged.
    """
    try:
        kept = (run_info.get(INHERITED_KEY) or {}).items()
        return {task: _read_state(state) for task, state in kept}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{INHERITED_KEY} in run.json must hold locks, coverages and kinds of events, and is "
            f"damaged ({type(error).__name__}: {error}). Take it out, or train the stage again."
        ) from error


def _read_state(kept: Mapping[str, Any]) -> PhaseState:
    """What `to_info` has written of one task, checked."""
    lock = None if kept["lock"] is None else Lock(**kept["lock"])
    numbers = [kept["coverage"]]
    if lock is not None:
        numbers += [lock.mass, lock.nearest, lock.p_value, lock.margin]
        if type(lock.seed) is not int or None in (lock.mass, lock.nearest):
            raise TypeError(f"a lock must have a seed, a mass and a distance, got {lock}")
    wrong = [x for x in numbers if x is not None and not _is_number(x)]
    if wrong:
        raise TypeError(f"numbers must be finite, got {wrong[0]!r}")
    raised = kept.get("raised", [])
    if not isinstance(raised, list) or not set(raised) <= set(EVENT_KINDS):
        raise TypeError(f"raised must list kinds of events, got {raised!r}")
    return PhaseState(lock=lock, coverage=kept["coverage"], raised=frozenset(raised))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def to_info(states: Mapping[str, PhaseState]) -> dict[str, Any]:
    """The inverse of `states_of`: what goes into `run.json`."""
    return {
        task: {
            "lock": None if state.lock is None else asdict(state.lock),
            "coverage": state.coverage,
            "raised": sorted(state.raised),
        }
        for task, state in states.items()
    }


def replay(
    run: Run, reference_q: Mapping[str, np.ndarray], *, until: int | None = None
) -> SuiteDetector:
    """The detector after a run's probes, up to a step."""
    detector = SuiteDetector(reference_q, states_of(run.info))
    for record in run.records:
        if until is None or record.step <= until:
            show(detector, record)
    return detector


def show(detector: SuiteDetector, record: ProbeRecord) -> list[Event]:
    """Show one stored probe to a detector."""
    q = {name: task.q for name, task in record.tasks.items()}
    coverage = {name: task.metrics["coverage"] for name, task in record.tasks.items()}
    return detector.update(record.step, q, coverage)
