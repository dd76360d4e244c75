"""Stored probes shown to a detector, and the states that a run begins with, kept in `run.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from crystalmon.phases import Lock, PhaseState, SuiteDetector
from crystalmon.phases.limits import check_limits
from crystalmon.runs.compared_answers import read_in_view
from crystalmon.runs.records import EVENT_KINDS, Event, ProbeRecord
from crystalmon.runs.run import Run

INHERITED_KEY = "inherited"
"""In `run.json`: by task, what `PhaseState.handed_on` keeps."""


def observe(detector: SuiteDetector, record: ProbeRecord) -> list[Event]:
    """Show one stored probe to a detector; return the events that it raises."""
    q = {name: task.q for name, task in record.tasks.items()}
    asked = {name: task.asked for name, task in record.tasks.items()}
    coverage, measurable, free_energy = (
        {name: task.metrics.get(key) for name, task in record.tasks.items()}
        for key in ("coverage", "measurable", "free_energy")
    )
    return detector.update(record.step, q, coverage, asked, measurable, free_energy)


def replay_run(
    run: Run, base_q: Mapping[str, np.ndarray], until: float = math.inf
) -> SuiteDetector:
    """The detector as it was after a run's probes up to the step `until`.

    Its `run.json` says what the run began with; `base_q` holds the base's answers [P, C].

    Raises:
        ValueError: see `states_of`.
    """
    detector = SuiteDetector(base_q, states_of(run.info), read_in_view(run.folder))
    for record in run.records:
        if record.step <= until:
            observe(detector, record)
    return detector


def to_info(states: Mapping[str, PhaseState]) -> dict[str, Any]:
    """The states that a run begins with, by task, as `run.json` keeps them."""
    return {
        task: {
            "lock": None if state.lock is None else asdict(state.lock),
            "coverage": state.coverage,
            "raised": sorted(state.raised),
        }
        for task, state in states.items()
    }


def states_of(run_info: Mapping[str, Any]) -> dict[str, PhaseState]:
    """The inverse of `to_info`, from the content of `run.json`; empty if it keeps none.

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


def limits_of(run_info: Mapping[str, Any]) -> dict[str, float]:
    """The limits on metrics that a run was watched with, from the content of `run.json`.

    Raises:
        ValueError: if that part of it is damaged.
    """
    try:
        return check_limits(run_info.get("config", {}).get("limits"))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the limits in run.json are damaged ({error}). Take them out.") from error


def _read_state(kept: Mapping[str, Any]) -> PhaseState:
    lock = None if kept["lock"] is None else Lock(**kept["lock"])
    numbers = [kept["coverage"]]
    if lock is not None:
        if type(lock.seed) is not int or None in (lock.mass, lock.nearest):
            raise TypeError(f"a lock must have a seed, a mass and a distance, got {lock}")
        numbers += [lock.mass, lock.nearest, lock.p_value, lock.margin]
    for number in numbers:
        if number is not None and not (type(number) in (int, float) and math.isfinite(number)):
            raise TypeError(f"numbers must be finite, got {number!r}")
    raised = kept.get("raised", [])  # earlier versions did not write it
    if not isinstance(raised, list) or not set(raised) <= set(EVENT_KINDS):
        raise TypeError(f"raised must list kinds of events, got {raised!r}")
    return PhaseState(lock=lock, coverage=kept["coverage"], raised=frozenset(raised))
