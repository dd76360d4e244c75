"""What the page shows, as one JSON-ready dict: runs in, numbers and sentences out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import crystalmon
from crystalmon.analysis.transition import Transition, classify_transition, fit_growth
from crystalmon.phases.in_words import phase_shown, phase_words, shared_leader, unconfirmed_tasks
from crystalmon.phases.what_to_do import advise_run
from crystalmon.report import palette
from crystalmon.report.caveats import caveats, compared_with, unlike
from crystalmon.report.experiment_cards import folder_cards, rounded
from crystalmon.report.frames import base_answers, encode, encode_history, pick_frames, thinned
from crystalmon.report.lanes import Lane, lane_names
from crystalmon.report.palette import CURVES, PHASE_COLOURS, PHASE_WORDS
from crystalmon.report.training_log import log_curves, log_panels
from crystalmon.runs.json_values import json_value
from crystalmon.runs.names import EXPERIMENTS_FOLDER, model_title
from crystalmon.runs.places import told
from crystalmon.runs.records import PHASES, Event, ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.wordings import TaskTexts, suite_names, told_apart
from crystalmon.suites.tasks import TaskSuite

INFO_KEYS = ("suite", "model", "reference_model", "trainer", "max_steps", "method", "versions")


def build_payload(
    lanes: Sequence[Lane],
    *,
    suite: TaskSuite | None = None,
    notes: Iterable[str] = (),
    experiments: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that the page draws.

    Args:
        lanes: from `make_lanes`; runs without a probe are allowed.
        suite: for the words of prompts and choices, where the run does not keep them.
        notes: further sentences for the section on what the runs cannot tell.
        experiments: further cards of experiments, beside those of the runs.

    Returns:
        Strict JSON values only.
    """
    names, texts, known = told_apart([run for lane in lanes for run in lane.runs], suite)
    each = iter(names)
    called = [list(itertools.islice(each, len(lane.runs))) for lane in lanes]
    said = caveats(lanes, texts_known=known)  # a base knows its tasks by their own names
    lanes = [_renamed(lane, own) for lane, own in zip(lanes, called, strict=True)]
    runs = [run for lane in lanes for run in lane.runs]
    found = [folder_cards(run.folder / EXPERIMENTS_FOLDER, run.name) for run in runs]
    return {
        "version": crystalmon.__version__,
        "phases": [
            {"name": name, "colour": PHASE_COLOURS[name], "words": PHASE_WORDS[name]}
            for name in PHASES
        ],
        "metrics": _metrics(),
        "tasks": [
            {"name": name, "prompts": list(text.prompts), "choices": list(text.choices)}
            for name, text in texts.items()
        ],
        "lanes": [
            _lane(lane, name, texts, own)
            for lane, name, own in zip(lanes, lane_names(lanes), called, strict=True)
        ],
        "suites": list(dict.fromkeys(filter(None, suite_names(runs)))),
        "bases": compared_with(runs),
        "unlike": unlike(runs),
        "kinetics": [
            json_value({"run": run.name, **row}) for run in runs for row in kinetics_rows(run)
        ],
        "log": log_panels(lanes),
        "experiments": [*(card for cards, _ in found for card in cards), *experiments],
        "caveats": [
            *notes,
            *(note for _, broken in found for note in broken),
            *said,
        ],
    }


def _renamed(lane: Lane, called: Sequence[Mapping[str, str]]) -> Lane:
    """The lane with its tasks under the names that they have on the page."""
    runs = []
    for run, names in zip(lane.runs, called, strict=True):
        if any(name != own for own, name in names.items()):
            records = tuple(
                replace(record, tasks={names.get(n, n): task for n, task in record.tasks.items()})
                for record in run.records
            )
            events = tuple(
                replace(event, task=names.get(event.task or "", event.task)) for event in run.events
            )
            run = replace(run, records=records, events=events)
        runs.append(run)
    return replace(lane, runs=tuple(runs))


def _metrics() -> dict[str, dict[str, Any]]:
    """What the scripts know of each curve, by its key, in the order of the catalogue."""
    shown = ("label", "unit", "brief", "brief_if_held", "summary")
    return {
        metric.key: {key: getattr(metric, key) for key in shown}
        | dict(zip(("section", "panel"), metric.panel or (), strict=True))
        | {"part": palette.is_part(metric), "colour": palette.CURVE_COLOURS[metric.key]}
        for metric in CURVES
    }


def _lane(
    lane: Lane, name: str, texts: Mapping[str, TaskTexts], called: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    shown = thinned(lane)
    records, frames = shown.records, pick_frames(shown)
    return {
        "name": name,
        "runs": [_run(*span) for span in lane.spans],
        "x": shown.positions.tolist(),
        "step": [record.step for record in records],
        "stage": shown.stages.tolist(),
        "seconds": rounded([record.seconds for record in records]),
        "phase": [PHASES.index(record.phase) for record in records],
        **_last(records, texts),
        "series": {metric.key: _series(records, metric.key) for metric in CURVES},
        "events": [
            _event(event, run, index, start)
            for index, (run, start, _) in enumerate(lane.spans)
            for event in run.events
        ],
        "tasks": {task: _task_history(records, task) for task in texts},
        "frames": frames,
        "history": {
            task: encode_history(shown, frames, task, _shape(text)) for task, text in texts.items()
        },
        "base": _base(lane, texts, called),
    }


def _run(run: Run, start: int, stop: int) -> dict[str, Any]:
    info = {key: run.info[key] for key in INFO_KEYS if key in run.info}
    if info.get("model"):
        info["model"] = model_title(info["model"])
    return {
        "name": run.name,
        "start": start,
        "stop": stop,
        "probes": len(run.records),
        "share": run.share,
        "seconds": sum(r.seconds for r in run.records if math.isfinite(r.seconds)),
        "stages": run.stages,
        "log": log_curves(run),
        "advice": list(advise_run(run).items()),
        "info": json_value(info),
    }


def _last(records: Sequence[ProbeRecord], texts: Mapping[str, TaskTexts]) -> dict[str, Any]:
    """What the last probe alone shows."""
    if not records:
        empty = dict.fromkeys(("looks", "unconfirmed", "leader"), "")
        return {**empty, "shown": None, "wordings": None}
    last, choices = records[-1], {name: text.choices for name, text in texts.items()}
    return {
        "looks": phase_words(last),
        "shown": PHASES.index(phase_shown(last)),
        "unconfirmed": unconfirmed_tasks(last),
        "leader": shared_leader(last, choices),
        "wordings": last.wordings,
    }


def _series(records: Sequence[ProbeRecord], key: str) -> dict[str, list[Any]] | None:
    values = [record.metrics.get(key, math.nan) for record in records]
    if not np.isfinite(values).any():
        return None
    ends = [record.ci.get(key, (math.nan, math.nan)) for record in records]
    series = {"v": rounded(values)}
    if np.isfinite(ends).any():
        series |= {"lo": rounded([low for low, _ in ends]), "hi": rounded([h for _, h in ends])}
    return series


def _event(event: Event, run: Run, index: int, start: int) -> dict[str, Any]:
    p = event.evidence.get("p_value")
    return {key: getattr(event, key) for key in ("kind", "step", "task")} | {
        "message": told(event.message, run.stages),
        "run": index,
        "x": start + event.step,
        "p": p if isinstance(p, int | float) and math.isfinite(p) else None,
    }


def _task_history(records: Sequence[ProbeRecord], name: str) -> dict[str, Any]:
    """One task's phases and seeds, what the last probe shows, and where it may end.

    Null where a probe left the task out.
    """
    found = [record.tasks.get(name) for record in records]
    return {
        "phase": [None if task is None else PHASES.index(task.phase) for task in found],
        "seed": [None if task is None else task.seed for task in found],
        "shown": PHASES.index(phase_shown(records[-1], name)) if found and found[-1] else None,
        "ends": list(found[-1].seed_set) if found and found[-1] is not None else [],
    }


def _base(
    lane: Lane, texts: Mapping[str, TaskTexts], called: Sequence[Mapping[str, str]]
) -> dict[str, str]:
    """The base's answers by task, as the first run that asked it has them.

    Without a reference, the first probe's stand in for them.
    """
    found: dict[str, np.ndarray] = {}
    for run, names in zip(lane.runs, called, strict=True):
        first = run.records[0].tasks if run.records else {}
        if first.keys() <= found.keys():
            continue
        asked = {name: task.q for name, task in first.items() if task.asked is None}
        kept = {names.get(name, name): q for name, q in base_answers(run).items()}
        found = asked | kept | found
    return {
        name: encode(found[name])
        for name, text in texts.items()
        if name in found and found[name].shape == _shape(text)
    }


def _shape(text: TaskTexts) -> tuple[int, int]:
    return len(text.prompts), len(text.choices)


def kinetics_rows(run: Run) -> list[dict[str, Any]]:
    """How fast a run's transition was: of the suite, with `task` None, then of each task.

    Returns:
        `{"task", "verdict", "text"}` each; nothing for what hardly rises.
    """
    if not run.records:
        return []
    rows = _transition(None, classify_transition(*run.series("order")))
    phases = (record.phase for record in run.records)
    if (avrami := fit_growth(*run.series("crystal_fraction"), phases)) is not None:
        text = f"share of collapsed wordings: {avrami.words}"
        rows.append({"task": None, "verdict": "Avrami fit", "text": text})
    for task in run.records[-1].tasks:
        rows += _transition(task, classify_transition(*run.series("order", task)))
    return rows


def _transition(task: str | None, found: Transition) -> list[dict[str, Any]]:
    """One row; none where there was too little rise, or too few probes, to tell."""
    row = {"task": task, "verdict": found.verdict, "text": found.words}
    return [row] if found.words else []
