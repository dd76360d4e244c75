"""Replay a stored run through the phase detector: what happened in it.

The detector is a pure function of the base and the stored answers. With the same version of
crystalmon a replay repeats the live events; with a newer one it shows how that version judges an
old run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from crystalmon.analysis.transition import (
    Avrami,
    Coexistence,
    Transition,
    classify_transition,
    coexistence,
    fit_growth,
)
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import prompt_crystallinity
from crystalmon.phases import PhaseState, SuiteDetector
from crystalmon.phases.in_words import main_numbers, phase_words, shared_leader
from crystalmon.phases.limits import Limits
from crystalmon.phases.stored import limits_of, observe, states_of
from crystalmon.phases.what_to_do import advise_run
from crystalmon.runs.compared_answers import read_base_answers, read_in_view, read_unanswered
from crystalmon.runs.json_values import Stored
from crystalmon.runs.places import Stages
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.wordings import task_texts


@dataclass(frozen=True)
class TaskDetection:
    """What a replay found in one task.

    Args:
        phase: at the last probe; `looks`: the same as people are told it.
        leading: the likeliest answer then, with its probability.
        seed: the locked seed, an index into the base's prompts, or None.
        seed_set: the prompts that the answers may end on; see `phases.seed_set`.
        p_value: of the seed, when it was locked; see `Candidates.chance`.
        margin: how many times worse than the seed the next candidate explained the answers then.
        distance: JS of the answers at the last probe, pooled over prompts, from the seed, in nats.
        likeliest: the words of the likeliest of the seed set, if it is a prompt that the run tells.
        transition: abrupt or gradual, from the task's `order`.
    """

    phase: str
    looks: str
    leading: str
    seed: int | None
    seed_set: tuple[int | None, ...]
    p_value: float | None
    margin: float | None
    distance: float | None
    likeliest: str | None
    transition: Transition


@dataclass(frozen=True)
class Detection(Stored):
    """What a replay found in a run.

    Args:
        name: of the run.
        probes: number of them.
        wordings: of each task that the last one asked; None for all.
        doubt: a sentence on those that may be wrong, or nothing.
        unobserved: a sentence on the steps after the last of them, or nothing.
        unanswered: the tasks that the base hardly answers.
        stages: of a scan, the names of its stages by step.
        phases: (step, phase) of the suite, at the first probe and wherever it changed.
        numbers: the last probe's order and free energy, in words.
        shared_leader: that one answer leads in all tasks, in words, or nothing.
        looks: the last phase as people are told it; see `in_words.phase_words`.
        events: as the replay raised them.
        advice: by kind of these, what to do; nothing of a scan.
        repeats_live: whether they are the stored ones, as they are if this version of the
            detector watched the run.
        differing: how many events are stored but not replayed, or the reverse.
        tasks: by name.
        inherited: by kind of event, the tasks in which the run that the model came from has raised
            it. It is not raised again until it has passed.
        transition: abrupt or gradual, from the suite's `order`.
        avrami: the JMAK fit of the suite's `crystal_fraction`; None if there is none, or if the
            run began with crystals.
        coexistence: of the prompts' own crystallinity, over all tasks, at the suite's midpoint;
            None if no seed is locked or there is no midpoint.
    """

    name: str
    probes: int
    wordings: int | None
    doubt: str
    unobserved: str
    unanswered: Sequence[str]
    stages: Stages
    phases: tuple[tuple[int, str], ...]
    looks: str
    numbers: str
    shared_leader: str
    events: tuple[Event, ...]
    advice: Mapping[str, str]
    repeats_live: bool
    differing: int
    tasks: Mapping[str, TaskDetection] = field(repr=False)
    inherited: Mapping[str, Sequence[str]]
    transition: Transition
    avrami: Avrami | None
    coexistence: Coexistence | None


class _Replayed(NamedTuple):
    """What the detector said, probe by probe, and the curves: `order` by task, None the suite's."""

    detector: SuiteDetector
    inherited: Mapping[str, PhaseState]
    events: list[Event]
    phases: list[tuple[int, str]]
    steps: list[int]
    fraction: list[float]
    order: dict[str | None, list[float]]


def detect_run(run: Run) -> Detection:
    """Replay a run: its phases, events, seeds and kinetics.

    Raises:
        NoRunError: if the run has no probe yet.
        ValueError: if it, or its reference, is damaged, or of another suite.
        FileNotFoundError: if its reference is gone.
    """
    run.check_probed()
    base = read_base_answers(run.folder, run.records[0].tasks)
    try:
        found = _replay(run, base)
    except ValueError as error:
        raise ValueError(f"the run {run.folder} cannot be replayed: {error}") from error
    steps, last = np.array(found.steps), _as_replayed(run.records[-1], found.detector)
    transitions = {
        name: classify_transition(steps, np.array(curve)) for name, curve in found.order.items()
    }
    differing = _differing(run.events, found.events)
    texts, known = task_texts(run)
    choices = {name: text.choices for name, text in texts.items()}
    prompts = {name: text.prompts for name, text in texts.items() if known}
    return Detection(
        name=run.name,
        probes=len(run.records),
        wordings=last.wordings,
        doubt=run.doubt,
        unobserved=run.unobserved,
        unanswered=read_unanswered(run.folder),
        stages=run.stages,
        phases=tuple(found.phases),
        looks=phase_words(last),
        numbers=main_numbers(last),
        shared_leader=shared_leader(last, choices),
        events=tuple(found.events),
        advice=advise_run(run, found.events, last),
        repeats_live=differing == 0,
        differing=differing,
        tasks=_tasks(last, choices, prompts, found.detector, base, transitions),
        inherited=_raised_before(found.inherited),
        transition=transitions[None],
        avrami=fit_growth(steps, np.array(found.fraction), (phase for _, phase in found.phases)),
        coexistence=_coexistence(run, steps, base, found.detector, transitions[None].midpoint),
    )


def _replay(run: Run, base: Mapping[str, np.ndarray]) -> _Replayed:
    """Show the run's probes to a new detector.

    Raises:
        ValueError: if the run is damaged.
    """
    inherited, limits = states_of(run.info), Limits(limits_of(run.info))
    detector = SuiteDetector(base, inherited, read_in_view(run.folder))
    detector.training = not run.stages
    found = _Replayed(detector, inherited, [], [], [], [], {name: [] for name in (None, *base)})
    for record in run.records:  # once: a long run's records may lie on disk
        found.events.extend(observe(detector, record) + limits.check(record))
        found.steps.append(record.step)
        found.fraction.append(record.metrics.get("crystal_fraction", math.nan))
        for name, curve in found.order.items():
            holder = record if name is None else record.tasks[name]
            curve.append(holder.metrics.get("order", math.nan))
        if not found.phases or found.phases[-1][1] != detector.phase:
            found.phases.append((record.step, detector.phase))
    return found


def _raised_before(inherited: Mapping[str, PhaseState]) -> dict[str, list[str]]:
    """By kind of event, the tasks in which it was raised before the run."""
    kinds = sorted({kind for state in inherited.values() for kind in state.raised})
    return {k: [name for name, state in inherited.items() if k in state.raised] for k in kinds}


def _differing(stored: Sequence[Event], replayed: Sequence[Event]) -> int:
    """How many events of either are not among the other.

    A version may word one in another way, or give its interval at another level.
    """
    one, other = (Counter(map(_known_by, events)) for events in (stored, replayed))
    return (one - other).total() + (other - one).total()


def _known_by(event: Event) -> str:
    """What two versions must agree on."""
    bounds = ("order_interval", "least_order")
    evidence = {key: each for key, each in event.evidence.items() if key not in bounds}
    return json.dumps(replace(event, message="", evidence=evidence).to_json(), sort_keys=True)


def _as_replayed(record: ProbeRecord, detector: SuiteDetector) -> ProbeRecord:
    """A record with the phases that the replay has found."""
    tasks = {n: replace(task, phase=detector.tasks[n].phase) for n, task in record.tasks.items()}
    return replace(record, phase=detector.phase, tasks=tasks)


def _tasks(
    last: ProbeRecord,
    choices: Mapping[str, Sequence[str]],
    prompts: Mapping[str, Sequence[str]],
    detector: SuiteDetector,
    base: Mapping[str, np.ndarray],
    transitions: Mapping[str | None, Transition],
) -> dict[str, TaskDetection]:
    """What was found in each task, at the last probe."""
    found = {}
    for name, task in last.tasks.items():
        own = detector.tasks[name]
        lock, seed, now = own.state.lock, own.seed, task.q.mean(axis=0)
        first = next(iter(own.seed_set), None)
        found[name] = TaskDetection(
            phase=own.phase,
            looks=phase_words(last, name),
            leading=task.leading(choices[name]),
            seed=seed,
            seed_set=own.seed_set,
            p_value=None if lock is None else lock.p_value,
            margin=None if lock is None else lock.margin,
            distance=None if seed is None else float(js_divergence(now, base[name][seed])),
            likeliest=prompts[name][first] if prompts and first is not None else None,
            transition=transitions[name],
        )
    return found


def _coexistence(
    run: Run,
    steps: np.ndarray,
    base: Mapping[str, np.ndarray],
    detector: SuiteDetector,
    midpoint: float | None,
) -> Coexistence | None:
    """Of all prompts of all tasks with a seed, at the probe nearest to the midpoint."""
    if midpoint is None:
        return None
    record = run.records[int(np.argmin(np.abs(steps - midpoint)))]
    values = []
    for name, task in detector.tasks.items():
        if task.seed is not None:
            found = record.tasks[name]
            own = prompt_crystallinity(found.q, base[name], task.seed)
            values.append(own[found.rows != task.seed])
    return coexistence(np.concatenate(values)) if values else None
