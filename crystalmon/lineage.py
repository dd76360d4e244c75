"""What a stage of training takes over from the run that its model came from.

The detector of each stage is its own, but a seed that has won stays the seed, and what has been
raised is not raised again: SFT → DPO → GRPO is one history. A stage's `run.json` holds what it took
over, so that a replay needs no other folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crystalmon.phases import Lock, PhaseState, SuiteDetector
from crystalmon.records import PHASES, Event, ProbeRecord
from crystalmon.store import Run, read_run

INHERITED_KEY = "inherited"
"""In `run.json`: by task, what `PhaseState.handed_on` keeps."""


def states_of(run_info: Mapping[str, Any]) -> dict[str, PhaseState]:
    """By task, the detector's state at the start of a run, from its `run.json`.

    Raises:
        ValueError: if that part of it is damaged.
    """
    try:
        return {
            task: PhaseState(
                lock=None if kept["lock"] is None else Lock(**kept["lock"]),
                coverage=kept["coverage"],
                raised=frozenset(kept.get("raised", [])),
            )
            for task, kept in (run_info.get(INHERITED_KEY) or {}).items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{INHERITED_KEY} in run.json must hold locks, coverages and events, cannot be read "
            f"({type(error).__name__}: {error})."
        ) from error


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


def inherited_states(
    run_folder: Path, model: str, reference: str, reference_q: Mapping[str, np.ndarray]
) -> dict[str, PhaseState]:
    """By task, what the run in a folder hands on to the next one.

    Args:
        run_folder: of the run that trained the model.
        model: the folder that the model was loaded from: `checkpoint-N` was at step N.
        reference: the id of the next run's base; a run with another one hands on nothing.
        reference_q: by task, the base's answers [P, C].
    """
    try:
        run = read_run(run_folder)
    except (OSError, ValueError):
        return {}
    if run.info.get("reference") != reference:
        return {}
    checkpoint = re.fullmatch(r"checkpoint-(\d+)", Path(model).name)
    detector = replay(run, reference_q, until=int(checkpoint[1]) if checkpoint else None)
    return {
        name: task.state.handed_on()
        for name, task in detector.tasks.items()
        if task.phase != PHASES[-1]
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
