"""Records, events, and whole runs with a planted collapse, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crystalmon.runs.reader import read_run
from crystalmon.runs.records import Event, ProbeRecord, TaskRecord
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.runs.trainer_log import LogRow


def make_task(seed: int = 0, phase: str = "liquid", locked: int | None = None) -> TaskRecord:
    q = np.random.default_rng(seed).dirichlet(np.ones(3), size=4)
    order = {"liquid": 0.1, "crystallized": 0.9}.get(phase, 0.5)
    return TaskRecord(q, {"order": order}, {"order": (order - 0.1, order)}, phase, locked, "raw")


def make_record(step: int, **changes: object) -> ProbeRecord:
    values = {
        "step": step,
        "epoch": step / 10,
        "time": 1000.0 + step,
        "seconds": 0.25,
        "share": 0.02,
        "phase": "liquid",
        "metrics": {"order": step / 100, "free_energy": float("nan")},
        "ci": {"order": (step / 100 - 0.1, step / 100 + 0.1)},
        "tasks": {"coin": make_task(step)},
    }
    return ProbeRecord(**(values | changes))  # pyright: ignore[reportArgumentType]


def make_event(step: int, kind: str = "nucleation_onset", task: str | None = "coin") -> Event:
    return Event(kind, step, task, {"order": 0.3}, "order passed 0.2 — between\u2028two probes")


def write_log(store: RunStore, rows: Mapping[int, Mapping[str, float]]) -> None:
    """A trainer's log, by step."""
    for step, values in rows.items():
        store.append_log(LogRow(step, step / 10, values))


def planted_chain(
    root: Path,
    stages: Sequence[tuple[str, Sequence[float], int]],
    tasks: int = 6,
    prompts: int = 12,
    choices: int = 10,
) -> list[Run]:
    """Stages (name, progress of the collapse at each probe, steps between probes), read back.

    At progress g a prompt's answers lie g of the way, in log-probability, to those of the seed.
    Phases and events follow `order` by a bare threshold, not the detector.
    """
    rng = np.random.default_rng(1)
    base = {
        f"task-{t}": rng.dirichlet(np.full(choices, 0.4), size=prompts) * 0.98 + 0.02 / choices
        for t in range(tasks)
    }
    runs = []
    for name, progress, spacing in stages:
        store = RunStore.open(root / name / "crystalmon", {"suite": "planted"}, resume_step=None)
        last: ProbeRecord | None = None
        for probe, g in enumerate(progress):
            record = _probe(probe * spacing, g, base, rng)
            store.append(record, _events(last, record))
            last = record
        runs.append(read_run(store.folder))
    return runs


def _probe(
    step: int, g: float, base: dict[str, np.ndarray], rng: np.random.Generator
) -> ProbeRecord:
    tasks: dict[str, TaskRecord] = {}
    for index, (name, b) in enumerate(base.items()):
        own, seed = min(1.0, g * (0.7 + 0.12 * (index % 6))), index % len(b)
        q = _collapsed(b, own, seed, rng)
        metrics = _metrics(q, b, own, rng)
        locked = seed if metrics["order"] > 0.8 else None
        tasks[name] = TaskRecord(q, metrics, _ci(metrics), _phase(metrics["order"]), locked, "raw")
    keys = next(iter(tasks.values())).metrics
    suite = {key: float(np.mean([task.metrics[key] for task in tasks.values()])) for key in keys}
    return ProbeRecord(
        step, None, 0.0, 0.1, 0.013, _phase(suite["order"]), suite, _ci(suite), tasks
    )


def _collapsed(b: np.ndarray, g: float, seed: int, rng: np.random.Generator) -> np.ndarray:
    log_q = (1 - g) * np.log(b) + g * np.log(b[seed]) + 0.08 * rng.normal(size=b.shape)
    q = np.exp(log_q)
    return q / q.sum(axis=1, keepdims=True)


def _metrics(q: np.ndarray, b: np.ndarray, g: float, rng: np.random.Generator) -> dict[str, float]:
    before, now = _liquidity(b), _liquidity(q)
    energy = {
        "free_energy_choice": 1.4 * g * (1 + 0.1 * rng.random()),
        "free_energy_format": 0.5 * g**0.5 * (1 + 0.1 * rng.random()),
    }
    return {
        "order": 1 - now / before,
        "liquidity": now,
        "crystallinity": 0.97 * (1 - now / before) ** 1.2 if now < before else 0.0,
        "seed_mass": 0.68 + 0.24 * g,
        "coverage": 0.9 - 0.2 * g * rng.random(),
        "free_energy": sum(energy.values()),
        **energy,
    }


def _liquidity(q: np.ndarray) -> float:
    mean = q.mean(axis=0)
    return float(-np.sum(mean * np.log(mean)) + np.sum(q * np.log(q), axis=1).mean())


def _ci(metrics: dict[str, float]) -> dict[str, tuple[float, float]]:
    return {key: (value - 0.04, value + 0.06) for key, value in metrics.items()}


def _phase(order: float) -> str:
    return "liquid" if order < 0.2 else "nucleating" if order < 0.8 else "crystallized"


def _events(last: ProbeRecord | None, record: ProbeRecord) -> list[Event]:
    if last is None:
        return []
    pairs = [(name, last.tasks[name].phase, task.phase) for name, task in record.tasks.items()]
    kinds = {"liquid": "melting", "nucleating": "nucleation_onset"}
    return [
        make_event(record.step, kinds.get(now, "nucleation_complete"), name)
        for name, before, now in [*pairs, (None, last.phase, record.phase)]
        if before != now
    ]
