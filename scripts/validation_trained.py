"""The promises on real runs of tiny models, replayed from their stored answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scenarios import NULL_ORDER, TRUE_MELT, TRUE_ONSET
from tqdm.auto import tqdm
from trained_bank import Bank
from validation_sets import GROUPS, Line, Look, find_looks, set_lines

from crystalmon import read_run
from crystalmon.metrics.divergences import entropy, js_divergence
from crystalmon.phases import PhaseDetector
from crystalmon.phases.leaps import leap
from crystalmon.phases.order import COMPLETE
from crystalmon.phases.seed_fit import Candidates
from crystalmon.phases.seed_set import Members

LEAKED = 0.12
"""Mass that must have left the support for a leak to be true, as in the simulated bank."""


@dataclass(frozen=True)
class TaskHistory:
    """One task of one run, with what was planted and what the detector made of it.

    Args:
        kind: of the run.
        goals: of its stages.
        planted: the seed planted in the first stage, or None.
        second: the one planted in a second stage, or None.
        orders, q: [S] and [S, P, C], over all stages.
        cut: number of probes in the first stage.
        candidates: of its base.
        events: (kind, probe).
        seeds, sets: [S] the seed held at each probe, and the seed set.
        phase: the last one.
    """

    kind: str
    goals: tuple[str, ...]
    planted: int | None
    second: int | None
    orders: np.ndarray = field(repr=False)
    q: np.ndarray = field(repr=False)
    cut: int
    candidates: Candidates = field(repr=False)
    events: tuple[tuple[str, int], ...]
    seeds: tuple[int | None, ...] = field(repr=False)
    sets: tuple[Members, ...] = field(repr=False)
    phase: str

    @property
    def is_complete(self) -> bool:
        """Whether the first stage ended complete."""
        return bool(self.orders[self.cut - 1] >= COMPLETE)

    @property
    def group(self) -> str:
        """What became of the first stage: complete, partial or seedless; nothing of others."""
        if self.goals[0] == "seedless":
            return "seedless"
        if self.planted is None or self.goals == ("untrained",):
            return ""
        return "complete" if self.is_complete else "partial"

    def looks(self) -> list[Look]:
        """At the sets of the first stage."""
        right = None if self.planted is None else self.candidates.twins(self.planted)
        events = [(kind, at) for kind, at in self.events if at < self.cut]
        return find_looks(self.group, self.q, right, self.sets[: self.cut], events)

    def raised(self, kind: str, start: int = 0, stop: int | None = None) -> bool:
        """Whether an event of this kind was raised at a probe of this range."""
        last = len(self.orders) if stop is None else stop
        return any(name == kind and start <= at < last for name, at in self.events)

    def lands(self, seed: int, at: int) -> bool:
        """Whether the pooled answers at a probe are within a seed's noise floor."""
        distance = js_divergence(self.q[at].mean(axis=0), self.candidates.b[seed])
        return bool(distance < self.candidates.floors[seed])

    def right(self, found: int) -> bool:
        """Whether a seed is the planted one or within its noise floor."""
        return self.planted is not None and bool(self.candidates.twins(self.planted)[found])


def read_histories(folder: Path) -> list[TaskHistory]:
    """All tasks of one run, replayed."""
    truth = json.loads((folder / "truth.json").read_text())
    records: list[Any] = []
    cut = 0
    for stage in truth["stages"]:
        read = read_run(folder / stage["folder"]).records
        records += read if not records else read[1:]  # a stage begins where the last one ended
        cut = cut or len(records)
    goals = tuple(stage["goal"] for stage in truth["stages"])
    return [_history(truth, goals, name, records, cut) for name in records[0].tasks]


def _history(
    truth: Any, goals: tuple[str, ...], name: str, records: list[Any], cut: int
) -> TaskHistory:
    tasks = [record.tasks[name] for record in records]
    detector = PhaseDetector(tasks[0].q, name)
    events, seeds, sets = [], [], []
    for at, task in enumerate(tasks):
        raised = detector.update(at, task.q, coverage=task.metrics["coverage"])
        events += [(event.kind, at) for event in raised]
        seeds.append(detector.seed)
        sets.append(detector.seed_set)
    targets = truth.get("targets_0", {})
    return TaskHistory(
        kind=truth["kind"],
        goals=goals if targets.get(name) or goals[0].startswith("own") else ("untrained",),
        planted=truth["seeds"][name] if goals[0] == "seed" else None,
        second=truth["second"].get(name) if "second" in truth else None,
        orders=np.array([task.metrics["order"] for task in tasks]),
        q=np.stack([task.q for task in tasks]),
        cut=cut,
        candidates=Candidates.of(tasks[0].q),
        events=tuple(events),
        seeds=tuple(seeds),
        sets=tuple(sets),
        phase=detector.phase,
    )


def read_bank(bank: Bank, count: int | None) -> tuple[list[Path], list[TaskHistory]]:
    """Folders and histories of a bank's first `count` runs, trained if missing; all if None.

    With 0, only those that have been trained before.
    """
    folders = bank.trained() if count == 0 else bank.train(count)
    bar = tqdm(folders, desc=f"reading {bank.folder}", unit="run", mininterval=5)
    return folders, [history for folder in bar for history in read_histories(folder)]


def judge_bank(folders: list[Path], histories: list[TaskHistory]) -> Iterator[Line]:
    """(label, key, bound, hits) of every promise."""
    yield from _null_lines(histories)
    yield from _onset_lines(histories)
    yield from seed_lines(histories)
    yield from _later_lines(histories)
    yield from _sure_lines(histories)
    yield from _leap_lines(folders)


def _null_lines(histories: list[TaskHistory]) -> Iterator[Line]:
    nulls = [h for h in histories if h.kind.startswith("null") and h.orders.max() < NULL_ORDER]
    wrong = [bool(set(h.events)) for h in nulls]
    yield "null tasks with any false event", "false", "≤1", wrong


def _onset_lines(histories: list[TaskHistory]) -> Iterator[Line]:
    found, timely = [], []
    for history in histories:
        onset = _true_onset(history.orders)
        if onset is None:
            continue
        raised = [at for kind, at in history.events if kind == "nucleation_onset"]
        found.append(any(at >= onset for at in raised))
        timely.append(any(0 <= at - onset <= 2 for at in raised))
    yield "onsets found", "onset", "≥99", found
    yield "onsets found within 2 probes", "timely", "≥99", timely


def _true_onset(orders: np.ndarray) -> int | None:
    """The first probe from which the measured order is over the onset four times running."""
    over = orders >= TRUE_ONSET
    lasts = over[:-3] & over[1:-2] & over[2:-1] & over[3:]
    return int(np.argmax(lasts)) if lasts.any() else None


def seed_lines(histories: list[TaskHistory]) -> Iterator[Line]:
    """The seed set, and the verdicts, at the end of the first stage."""
    judged = [h for h in histories if h.group]
    yield from set_lines([look for history in judged for look in history.looks()])
    for group in GROUPS:
        some = [h for h in judged if h.group == group]
        seeds = [h.seeds[h.cut - 1] for h in some]
        called = [h.raised("seedless_collapse", 0, h.cut) for h in some]
        if group == "seedless":
            yield "seedless, named so", "seedless", "≥95", called
            ended = [name for h, name in zip(some, called, strict=True) if h.is_complete]
            yield "… of those complete at the end", "seedless/complete", "", ended
            forced = [seed is not None for seed in seeds]
            yield "… given a seed instead", "seedless/forced", "≤1", forced
            continue
        yield f"{group}: a seed locked", f"locked/{group}", "", [s is not None for s in seeds]
        wrong = [s is not None and not h.right(s) for h, s in zip(some, seeds, strict=True)]
        yield "… locked and wrong", f"locked/{group}/wrong", "≤1", wrong
        yield "… wrongly called seedless", f"called/{group}", "≤1", called


def _later_lines(histories: list[TaskHistory]) -> Iterator[Line]:
    two = [h for h in histories if len(h.goals) == 2]
    melted = [h for h in two if h.kind == "melting" and _sinks(h)]
    yield "melting found", "melting", "≥95", [h.raised("melting", h.cut) for h in melted]
    locked = [h for h in two if h.seeds[h.cut - 1] is not None]
    taken = [
        h
        for h in locked
        if h.second is not None and h.lands(h.second, -1) and h.planted != h.second
    ]
    yield (
        "recrystallization found, a seed held before",
        "recrystallization",
        "≥95",
        [h.raised("recrystallization", h.cut) for h in taken],
    )
    leaked = [h for h in locked if h.kind == "leak" and _leaks(h)]
    yield (
        "support_leak found, a seed held before",
        "support_leak",
        "≥95",
        [h.raised("support_leak", h.cut) for h in leaked],
    )
    calm = [h for h in locked if h.kind.startswith("settling") and not _leaks(h)]
    for kind in ("support_leak", "melting", "recrystallization"):
        yield (
            f"false {kind} in DPO and GRPO",
            f"calm/{kind}",
            "",
            [h.raised(kind, h.cut) for h in calm],
        )


def _sinks(history: TaskHistory) -> bool:
    before, after = history.orders[: history.cut], history.orders[history.cut :]
    return bool(before.max() >= 0.8 and (after[-3:] < TRUE_MELT).all())


def _leaks(history: TaskHistory) -> bool:
    """Whether the held seed's support has lost mass at the last two probes."""
    seed = history.seeds[history.cut - 1]
    if seed is None:
        return False
    row = history.candidates.b[seed]
    ranked = np.argsort(-row)
    inside = ranked[: int(np.searchsorted(np.cumsum(row[ranked]), 0.9)) + 1]
    mass = history.q[:, :, inside].sum(axis=2).mean(axis=1)
    held = min(mass[history.cut - 1], row[inside].sum())
    return bool((mass[-2:] < held - LEAKED).all())


def _sure_lines(histories: list[TaskHistory]) -> Iterator[Line]:
    """`entropy_collapse`: true once a task's answers have been so sure at two probes."""
    found, timely = [], []
    for history in histories:
        if history.kind == "sure" and (at := _turned_sure(history)) is not None:
            raised = [probe for kind, probe in history.events if kind == "entropy_collapse"]
            found.append(bool(raised))
            timely.append(any(0 <= probe - at <= 1 for probe in raised))
    yield "entropy collapses found", "entropy_collapse", "≥95", found
    yield "… within a probe", "entropy_collapse/timely", "", timely
    others = [h for h in histories if h.kind != "sure" and _turned_sure(h) is None]
    wrong = [h.raised("entropy_collapse") for h in others]
    yield "false entropy_collapse in all other tasks", "entropy_collapse/false", "≤1", wrong


def _turned_sure(history: TaskHistory) -> int | None:
    """The second of two probes at which the answers have at most a quarter of their entropy."""
    own, before = entropy(history.q).mean(axis=1), entropy(history.candidates.b).mean()
    sure = own <= before / 4
    both = sure[1:] & sure[:-1]
    return int(np.argmax(both)) + 1 if both.any() else None


def _leap_lines(folders: list[Path]) -> Iterator[Line]:
    """`free_energy_jump`: planted where one step was taken at a much larger learning rate."""
    found, timely, null, other = [], [], [], []
    for folder in folders:
        truth = json.loads((folder / "truth.json").read_text())
        burst = truth["kind"].startswith("burst")
        for number, stage in enumerate(truth["stages"]):
            run = read_run(folder / stage["folder"])
            steps, kl = (values.tolist() for values in run.series("free_energy"))
            raised = [s for n, s in enumerate(steps, 1) if leap(steps[:n], kl[:n]) is not None]
            if burst and number == len(truth["stages"]) - 1:
                planted = next(step for step in steps if step >= stage["burst"])
                found.append(any(step >= planted for step in raised))
                timely.append(planted in raised)
                raised = [step for step in raised if step < planted]
            (null if truth["kind"].startswith("null") else other).append(bool(raised))
    yield "planted leaps of KL found", "free_energy_jump", "≥95", found
    yield "… at the first probe after", "free_energy_jump/timely", "", timely
    yield "false free_energy_jump in null stages", "free_energy_jump/false", "≤1", null
    yield "… in all other stages", "free_energy_jump/other", "≤1", other
