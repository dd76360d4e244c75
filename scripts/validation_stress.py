"""A million random probes through the state machine: whatever comes, its contract holds."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from crystalmon.phases import PhaseDetector
from crystalmon.runs.records import EVENT_KINDS, PHASES

RUN = 500
"""Probes of one detector before another base is drawn."""


def stress(count: int, seed: int = 0) -> dict[str, Any]:
    """Feed `count` random probes to detectors of random bases; what broke, and how long it took.

    Shapes from P = 1, C = 2 up; rows dense, with zeros, one-hot or alike; runs that persist for a
    few probes, so that events come about.

    Raises:
        RuntimeError: if an event, a phase or a seed is outside the contract.
    """
    rng, began, events = np.random.default_rng(seed), time.perf_counter(), 0
    with tqdm(total=count, desc="stress", unit="probe", mininterval=10) as bar:
        for start in range(0, count, RUN):
            size = min(RUN, count - start)
            events += _one_detector(rng, size)
            bar.update(size)
    seconds = round(time.perf_counter() - began)
    return {"stress": count, "events": events, "violations": 0, "seconds": seconds}


def _one_detector(rng: np.random.Generator, size: int) -> int:
    prompts, choices = int(rng.integers(1, 7)), int(rng.integers(2, 6))
    base = rows(rng, prompts, choices)
    detector, events = PhaseDetector(base, "t"), 0
    start, goal, held = base, base, 0
    for step in range(size):
        if held == 0:
            held, start = int(rng.integers(1, 12)), goal
            goal = rows(rng, prompts, choices)
        part = rng.random() if rng.random() < 0.5 else 1.0
        held -= 1
        raised = detector.update(step, (1 - part) * start + part * goal, coverage=rng.random())
        events += len(raised)
        _check(detector, raised, prompts)
    return events


def rows(rng: np.random.Generator, prompts: int, choices: int) -> np.ndarray:
    """[P, C] distributions of one of the sorts named above."""
    sort = rng.integers(5)
    if sort == 0:
        return np.eye(choices)[rng.integers(choices, size=prompts)]
    found = rng.dirichlet(np.full(choices, 0.5), size=prompts)
    if sort == 1:
        return np.tile(found[:1], (prompts, 1))
    if sort == 2:
        found[found < 0.1] = 0.0
        found /= found.sum(axis=1, keepdims=True)
    return found


def _check(detector: PhaseDetector, raised: list[Any], prompts: int) -> None:
    kinds = [event.kind for event in raised]
    seed, phase = detector.seed, detector.phase
    sound = (
        len(set(kinds)) == len(kinds)
        and set(kinds) <= set(EVENT_KINDS)
        and phase in PHASES
        and (seed is None or 0 <= seed < prompts)
        and (phase != "settling" or seed is not None)
        and (phase != "ordered" or seed is None)
    )
    for event in raised:
        json.dumps(event.to_json(), allow_nan=False)
    if not sound:
        raise RuntimeError(f"the detector broke its contract: {phase}, {seed}, {kinds}")
