"""The history of every answer and curve, small enough to travel in one page.

A run of 1,000 probes holds millions of probabilities. The page shows a selection of the probes,
its **frames**, each probability in one byte on a square-root scale: byte v stands for (v / 255)²,
so that rare answers keep their detail and the largest error is 0.4 percentage points, at p = 1.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crystalmon.report.lanes import Lane
from crystalmon.report.palette import CURVES
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.run import Run

MAX_FRAMES = 160
MAX_PROBES = 2000
"""Probes up to which a page draws every one."""


def thinned(lane: Lane) -> Lane:
    """The lane with at most `MAX_PROBES` of its probes, such that no curve loses a peak.

    If not all fit, these are kept, in this order: the first and last probe of each run; both sides
    of each change of phase, the suite's first, up to half of them; and, in each of as many
    equal stretches as still fit, the probes where a metric, or the probe's own time, is lowest and
    highest.
    """
    records = lane.records
    count = len(records)
    if count <= MAX_PROBES:
        return lane
    turns = _turns(lane.stages.tolist()) + _turns([record.phase for record in records])
    for name in dict.fromkeys(
        name for run in lane.runs for r in run.records[-1:] for name in r.tasks
    ):
        found = [record.tasks.get(name) for record in records]
        turns += _turns([None if task is None else task.phase for task in found])
    kept = set(list(dict.fromkeys((0, count - 1, *turns)))[: MAX_PROBES // 2])
    values = [[record.metrics.get(metric.key, np.nan) for record in records] for metric in CURVES]
    curves = np.array([*values, [record.seconds for record in records]], dtype=np.float64)
    curves = curves[np.isfinite(curves).any(axis=1)]
    kept |= extremes(curves, (MAX_PROBES - len(kept)) // (2 * len(curves)))
    runs, first = [], 0
    for run in lane.runs:
        own = [r for i, r in enumerate(run.records, first) if i in kept]
        runs.append(replace(run, records=tuple(own)))
        first += len(run.records)
    return Lane(tuple(runs), lane.starts)


def extremes(curves: np.ndarray, stretches: int) -> set[int]:
    """The places at which a curve [K, S] is lowest or highest in one of so many equal stretches."""
    found: set[int] = set()
    edges = np.linspace(0, curves.shape[1], stretches + 1).astype(int)
    for start, stop in itertools.pairwise(edges.tolist()):
        for sign in (1.0, -1.0):
            lowest = np.where(np.isfinite(part := sign * curves[:, start:stop]), part, np.inf)
            found |= {start + int(place) for place in lowest.argmin(axis=1)}
    return found


def _turns(values: Sequence[object]) -> list[int]:
    """The places on both sides of each change."""
    return [
        place
        for i, (before, now) in enumerate(itertools.pairwise(values))
        if before != now
        for place in (i, i + 1)
    ]


def pick_frames(lane: Lane, limit: int = MAX_FRAMES) -> list[int]:
    """The probes to show, at most `limit`, as ascending indices into the lane's probes.

    If not all fit: the first and last of each run, then those at which the suite's phase changed,
    then as many evenly spaced ones as fit.
    """
    records, stages = lane.records, lane.stages
    count = len(records)
    if count <= limit:
        return list(range(count))
    ends = _turns(stages.tolist())
    turns = [i for i in range(1, count) if records[i].phase != records[i - 1].phase]
    kept = list(dict.fromkeys((0, count - 1, *ends, *turns)))[:limit]
    room = limit - len(kept)
    spread = np.linspace(0, count - 1, room + 2)[1:-1].round().astype(int)
    return sorted({*kept, *(int(index) for index in spread)})


def encode(q: np.ndarray) -> str:
    """Probabilities as base64 of one byte each; what is not finite becomes 0."""
    clean = np.clip(np.nan_to_num(q, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
    return base64.b64encode((np.sqrt(clean) * 255).round().astype(np.uint8).tobytes()).decode()


def encode_history(lane: Lane, frames: Sequence[int], task: str, shape: tuple[int, int]) -> str:
    """[F, P, C] of one task; zeros where a probe, or one of its prompts, is missing."""
    records, empty = lane.records, np.zeros(shape)
    found = (records[index].tasks.get(task) for index in frames)
    stack = [t.whole(shape[0]) if t is not None and t.fits(*shape) else empty for t in found]
    return encode(np.array(stack).reshape(len(frames), *shape))


def base_answers(run: Run) -> dict[str, np.ndarray]:
    """The frozen base's answers [P, C] by task; none if they are missing or damaged."""
    try:
        return read_base_answers(run.folder)
    except (OSError, ValueError):
        return {}
