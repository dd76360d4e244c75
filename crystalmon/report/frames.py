"""The history of every answer, small enough to travel in one page.

A run of 1,000 probes holds millions of probabilities. The page shows a selection of the probes,
its **frames**, each probability in one byte on a square-root scale: byte v stands for (v / 255)²,
so that rare answers keep their detail and the largest error is 0.4 percentage points, at p = 1.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from crystalmon.report.lanes import Lane
from crystalmon.runs.reader import Run
from crystalmon.runs.reference import read_base_answers

MAX_FRAMES = 160


def pick_frames(lane: Lane, limit: int = MAX_FRAMES) -> list[int]:
    """The probes to show, at most `limit`, as ascending indices into the lane's probes.

    If not all fit: the first and last of each run, then those at which the suite's phase changed,
    then as many evenly spaced ones as fit.
    """
    records, stages = lane.records, lane.stages
    count = len(records)
    if count <= limit:
        return list(range(count))
    later = range(1, count)
    ends = [place for i in later if stages[i] != stages[i - 1] for place in (i - 1, i)]
    turns = [i for i in later if records[i].phase != records[i - 1].phase]
    kept = list(dict.fromkeys((0, count - 1, *ends, *turns)))[:limit]
    room = limit - len(kept)
    spread = np.linspace(0, count - 1, room + 2)[1:-1].round().astype(int)
    return sorted({*kept, *(int(index) for index in spread)})


def encode(q: np.ndarray) -> str:
    """Probabilities as base64 of one byte each; what is not finite becomes 0."""
    clean = np.clip(np.nan_to_num(q, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
    return base64.b64encode((np.sqrt(clean) * 255).round().astype(np.uint8).tobytes()).decode()


def encode_history(lane: Lane, frames: Sequence[int], task: str, shape: tuple[int, int]) -> str:
    """[F, P, C] of one task; a frame without the task, or of another shape, is zeros."""
    records, empty = lane.records, np.zeros(shape)
    found = (records[index].tasks.get(task) for index in frames)
    stack = [t.q if t is not None and t.q.shape == shape else empty for t in found]
    return encode(np.array(stack).reshape(len(frames), *shape))


def base_answers(run: Run) -> dict[str, np.ndarray]:
    """The frozen base's answers [P, C] by task; none if they are missing or damaged."""
    try:
        return read_base_answers(run.folder)
    except (OSError, ValueError):
        return {}
