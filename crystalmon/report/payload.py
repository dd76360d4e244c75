"""What the page shows, as one JSON-ready dict: runs in, numbers and sentences out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import crystalmon
from crystalmon.analysis.transition import LEAST_RISE, Transition, classify_transition, fit_avrami
from crystalmon.report.caveats import caveats
from crystalmon.report.experiment_cards import run_cards
from crystalmon.report.frames import base_answers, encode, encode_history, pick_frames
from crystalmon.report.lanes import Lane, lane_names
from crystalmon.report.palette import PHASE_COLOURS, PHASE_WORDS
from crystalmon.runs.reader import Run
from crystalmon.runs.records import PHASES, Event, ProbeRecord, json_value
from crystalmon.runs.wordings import TaskTexts, task_texts
from crystalmon.suites.tasks import TaskSuite

SUITE_KEYS = (
    "order",
    "crystallinity",
    "seed_mass",
    "liquidity",
    "free_energy",
    "free_energy_choice",
    "free_energy_format",
    "coverage",
    "entropy",
)
TASK_KEYS = ("order", "crystallinity", "seed_mass", "free_energy", "coverage")
INFO_KEYS = ("suite", "model", "reference_model", "trainer", "max_steps", "method", "versions")

Kinetics = Callable[[Run], Sequence[Mapping[str, Any]]]
"""Rows on how fast a run's transition was: `{"task", "verdict", "text"}`, task None for the suite.
The page has a section for them when there are any."""


def kinetics_rows(run: Run) -> list[dict[str, Any]]:
    """`{"task", "verdict", "text"}`, of the suite with task None, then of each task.

    A run whose suite hardly rises has none.
    """
    steps, order = run.series("order")
    if not len(order) or not order.max() - order.min() >= LEAST_RISE:
        return []
    rows = [_row(None, classify_transition(steps, order))]
    grew = run.records[0].phase == "liquid"  # not begun with crystals
    avrami = fit_avrami(*run.series("crystal_fraction")) if grew else None
    if avrami is not None:
        low, high = avrami.exponent_interval
        text = (
            f"share of collapsed wordings: 1 − exp(−(k·(s − s₀))ⁿ) with n = {avrami.exponent:.2f} "
            f"[{low:.2f}, {high:.2f}] from step {avrami.start:.0f}"
        )
        rows.append({"task": None, "verdict": "Avrami fit", "text": text})
    tasks = run.records[-1].tasks
    return rows + [_row(name, classify_transition(*run.series("order", name))) for name in tasks]


def _row(task: str | None, found: Transition) -> dict[str, Any]:
    text = "too little rise, or too few probes, to tell"
    if found.width is not None and found.width_interval is not None:
        low, high = found.width_interval
        text = f"10–90% of the rise in {found.width:.3g} steps [{low:.3g}, {high:.3g}]"
    return {"task": task, "verdict": found.verdict, "text": text}


def build_payload(
    lanes: Sequence[Lane],
    *,
    suite: TaskSuite | None = None,
    notes: Iterable[str] = (),
    kinetics: Kinetics = kinetics_rows,
    experiments: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that the page draws.

    Args:
        lanes: from `make_lanes`; runs without a probe are allowed.
        suite: for the words of prompts and choices, where the run does not keep them.
        notes: further sentences for the section on what the runs cannot tell.
        kinetics: what the kinetics of a run were.
        experiments: further cards of experiments, beside those of the runs.

    Returns:
        Strict JSON values only.
    """
    runs = [run for lane in lanes for run in lane.runs]
    texts, known = task_texts(runs, suite)
    cards, broken = run_cards(runs)
    return {
        "version": crystalmon.__version__,
        "phases": [
            {"name": name, "colour": PHASE_COLOURS[name], "words": PHASE_WORDS[name]}
            for name in PHASES
        ],
        "tasks": [_task(name, text) for name, text in texts.items()],
        "lanes": [
            _lane(lane, name, texts) for lane, name in zip(lanes, lane_names(lanes), strict=True)
        ],
        "kinetics": [row for run in runs for row in _kinetics(run, kinetics)],
        "experiments": [*cards, *experiments],
        "caveats": [*notes, *broken, *caveats(lanes, texts_known=known)],
    }


def _task(name: str, text: TaskTexts) -> dict[str, Any]:
    return {"name": name, "prompts": list(text.prompts), "choices": list(text.choices)}


def _lane(lane: Lane, name: str, texts: Mapping[str, TaskTexts]) -> dict[str, Any]:
    records, frames = lane.records, pick_frames(lane)
    return {
        "name": name,
        "runs": [
            {
                "name": run.name,
                "start": start,
                "stop": stop,
                "probes": len(run.records),
                "info": json_value({key: run.info[key] for key in INFO_KEYS if key in run.info}),
            }
            for run, start, stop in zip(lane.runs, lane.starts[:-1], lane.starts[1:], strict=True)
        ],
        "x": lane.positions.tolist(),
        "step": [record.step for record in records],
        "stage": lane.stages.tolist(),
        "time": [round(record.time, 1) for record in records],
        "seconds": _rounded([record.seconds for record in records]),
        "share": _rounded([record.share for record in records]),
        "phase": [PHASES.index(record.phase) for record in records],
        "series": {key: _series(records, key) for key in SUITE_KEYS},
        "base_liquidity": base_liquidity(lane),
        "events": [_event(lane, index, event) for index, event in lane.events],
        "tasks": {task: _task_history(records, task) for task in texts},
        "frames": frames,
        "history": {
            task: encode_history(lane, frames, task, _shape(text)) for task, text in texts.items()
        },
        "base": _base(lane, texts),
        "base_is_first_probe": not any(base_answers(run) for run in lane.runs[:1]),
    }


def _shape(text: TaskTexts) -> tuple[int, int]:
    return len(text.prompts), len(text.choices)


def _base(lane: Lane, texts: Mapping[str, TaskTexts]) -> dict[str, str]:
    """The base's answers by task; without a reference, the first probe's stand in for them."""
    kept = base_answers(lane.runs[0])
    first = lane.records[0].tasks if lane.records else {}
    found: dict[str, str] = {}
    for name, text in texts.items():
        answers = kept.get(name)
        if answers is None and name in first:
            answers = first[name].q
        if answers is not None and answers.shape == _shape(text):
            found[name] = encode(answers)
    return found


def _series(records: Sequence[ProbeRecord], key: str) -> dict[str, list[Any]] | None:
    values = [record.metrics.get(key, math.nan) for record in records]
    if not np.isfinite(values).any():
        return None
    ends = [record.ci.get(key, (math.nan, math.nan)) for record in records]
    series = {"v": _rounded(values)}
    if np.isfinite(ends).any():
        series |= {"lo": _rounded([low for low, _ in ends]), "hi": _rounded([h for _, h in ends])}
    return series


def _task_history(records: Sequence[ProbeRecord], name: str) -> dict[str, Any]:
    """One task's phases, seeds and metrics; null where a probe left the task out."""
    found = [record.tasks.get(name) for record in records]
    history: dict[str, Any] = {
        "phase": [None if task is None else PHASES.index(task.phase) for task in found],
        "seed": [None if task is None else task.seed for task in found],
    }
    for key in TASK_KEYS:
        values = [math.nan if task is None else task.metrics.get(key, math.nan) for task in found]
        history[key] = _rounded(values)
    return history


def _event(lane: Lane, index: int, event: Event) -> dict[str, Any]:
    p_value = event.evidence.get("p_value")
    return {
        "kind": event.kind,
        "run": index,
        "step": event.step,
        "x": lane.starts[index] + event.step,
        "task": event.task,
        "message": event.message,
        "p": p_value if isinstance(p_value, int | float) and math.isfinite(p_value) else None,
    }


def _kinetics(run: Run, kinetics: Kinetics) -> list[dict[str, Any]]:
    return [json_value({"run": run.name, **row}) for row in kinetics(run)]


def base_liquidity(lane: Lane) -> float | None:
    """The suite's liquidity in the base, in nats; None where no probe tells it.

    A task's is liquidity / (1 − order) at any probe, most precisely at the lowest order.
    """
    best: dict[str, tuple[float, float]] = {}
    for record in lane.records:
        for name, task in record.tasks.items():
            order = task.metrics.get("order", math.nan)
            value = task.metrics.get("liquidity", math.nan)
            known = math.isfinite(order) and math.isfinite(value) and order < 1
            if known and (name not in best or order < best[name][0]):
                best[name] = (order, value / (1 - order))
    return float(np.mean([value for _, value in best.values()])) if best else None


def _rounded(values: Sequence[float]) -> list[float | None]:
    """Four significant digits; null for what is not finite, which is drawn as a gap."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
