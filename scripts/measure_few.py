"""How well a few wordings of each task tell the `order` of all, from runs that asked all of them.

    python scripts/measure_few.py          # the demo's SFT
    python scripts/measure_few.py RUN ...  # run folders

By run and number of wordings: how far the suite's `order` is off, on average and in the root mean
square, how often its 95% interval holds that by all, and how far its `entropy` is off (RMS, nats).
`a task's` is 1.48 times the median error
of a single task, which is the standard error but for outliers: a task with hardly any liquidity in
the base may be off by a lot. `over √` is the same over √(1/p − 1/P), of p out of P wordings.
`phases/partial.py` knows the least and the largest of it. A run's first probe is left out, and of
many others twenty are looked at.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crystalmon import Run, read_run
from crystalmon.metrics.bootstrap import (
    REPLICATES,
    bootstrap_interval,
    bootstrap_weights,
    expansion,
    uniform_weights,
)
from crystalmon.metrics.measurement import mean_over_tasks, measure_task
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.phases.partial import ROBUST
from crystalmon.runs.compared_answers import read_base_answers, read_in_view
from crystalmon.runs.run import names_of

DEMO = Path("runs/demo/1-sft")
SIZES = (2, 4, 8)
"""Wordings of a task that a partial probe may ask."""
PROBES = 20
"""Of a run, evenly spaced: neighbours tell much the same."""


@dataclass(frozen=True)
class Few:
    """What a few wordings tell at one probe.

    Args:
        error: of the suite's `order`.
        held: whether its interval holds the `order` by all.
        entropy: the error of the suite's `entropy`, nats.
        tasks: the tasks' errors, each with its √(1/p − 1/P).
    """

    error: float
    held: bool
    entropy: float
    tasks: Sequence[tuple[float, float]]


def by_few(run: Run, size: int) -> list[Few]:
    """What so few wordings tell at each probe but the first, of tasks that have more of them."""
    base = read_base_answers(run.folder, run.records[0].tasks)
    base = {name: b for name, b in base.items() if len(b) > size}
    in_view = read_in_view(run.folder)
    rng = np.random.default_rng(0)
    weights = {name: bootstrap_weights(size, REPLICATES, rng) for name in base}
    asked = {name: nested_subsets(b, SIZES)[size] for name, b in base.items()}
    found = []
    chosen = np.linspace(1, len(run.records) - 1, PROBES).round().astype(int)
    for record in (run.records[index] for index in sorted(set(chosen))):
        whole, part, scales = [], [], []
        for name, b in base.items():
            task, rows, plain = record.tasks[name], asked[name], in_view.get(name)
            if math.isfinite(task.metrics["order"]):  # else it was not measurable
                weight = uniform_weights(len(b))[None]
                whole.append(measure_task(task.q, b, {}, weight, in_view=plain))
                q = task.q[rows]
                part.append(measure_task(q, b, {}, weights[name], asked=rows, in_view=plain))
                scales.append((1 / size - 1 / len(b)) ** 0.5)
        if not whole:
            continue
        true, _ = mean_over_tasks(whole, "order")
        value, replicates = mean_over_tasks(part, "order")
        low, high = bootstrap_interval(value, replicates, expansion([size] * len(part)))
        errors = [p.metrics["order"] - w.metrics["order"] for p, w in zip(part, whole, strict=True)]
        held = bool(low <= true <= high)
        entropy = mean_over_tasks(part, "entropy")[0] - mean_over_tasks(whole, "entropy")[0]
        found.append(Few(value - true, held, entropy, list(zip(errors, scales, strict=True))))
    return found


def format_few(runs: Mapping[str, Sequence[Run]]) -> str:
    """A row for each group of runs and number of wordings."""
    heads = ("wordings", "probes", "mean", "RMS", "in interval", "entropy", "a task's", "over √")
    width = max(10, *(len(name) + 2 for name in runs))
    lines = [" " * width + "".join(f"{head:>13}" for head in heads)]
    for name, group in runs.items():
        for size in SIZES:
            found = [few for run in group for few in by_few(run, size)]
            if not found:
                continue
            errors = np.array([few.error for few in found])
            tasks, scale = np.array([pair for few in found for pair in few.tasks]).T
            shown = [size, len(found), f"{round(errors.mean(), 3) + 0.0:.3f}"]
            shown += [f"{np.sqrt(np.mean(errors**2)):.3f}"]
            shown += [f"{np.mean([few.held for few in found]):.0%}"]
            shown += [f"{np.sqrt(np.mean([few.entropy**2 for few in found])):.3f}"]
            shown += [f"{_typical(tasks):.3f}", f"{_typical(tasks / scale):.2f}"]
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>13}" for cell in shown))
    return "\n".join(lines)


def _typical(errors: np.ndarray) -> float:
    return ROBUST * float(np.median(np.abs(errors)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[DEMO])
    args = parser.parse_args()
    if args.runs == [DEMO] and not DEMO.exists():
        raise SystemExit(f"{DEMO} is not there: run make demo, or name run folders.")
    try:
        runs = [read_run(folder) for folder in args.runs]
        if len({run.folder.resolve() for run in runs}) < len(runs):
            raise ValueError("a run is named twice. Name each run once.")
        for run in runs:
            if len(run.records) < 2 or any(record.wordings for record in run.records):
                raise ValueError(
                    f"{run.folder} must hold two probes of all wordings or more: train it with "
                    "max_overhead=None."
                )
        print(format_few({name: [run] for name, run in zip(names_of(runs), runs, strict=True)}))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
