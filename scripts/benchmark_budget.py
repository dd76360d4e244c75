"""What a limit on monitoring costs: the onset's delay, the error of `order`, the seeds not found.

Runs of `liquid-tiny`, of which every step is probed with all prompts, are trained once and kept.
From their stored answers each schedule is replayed by the callback's own `Schedule` and detector,
on a clock that only counts: a step takes 1, and a probe's tokens as much as on SmolLM2-135M. The
truth is what the detector says if it sees every step. The last line is JSON.

    python scripts/benchmark_budget.py --figure budget.png
    python scripts/benchmark_budget.py --live 400   # trains SmolLM2-135M as well: some two hours
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from budget_live import live_rows
from trained_bank import LONG, prepare_environment

from crystalmon import Run, read_run
from crystalmon.metrics.answers import order
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.monitor.asked import PARTIAL
from crystalmon.monitor.budget import Budget
from crystalmon.monitor.schedule import Schedule, probe_steps
from crystalmon.phases import SuiteDetector
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.records import Event, ProbeRecord

SHARES = (None, 0.005, 0.01, 0.02, 0.05)
"""Limits that are tried. Without one, about 100 planned steps are probed with all prompts."""
WHOLE = 6.5
"""Steps of training that take as long as a probe of all prompts: 13 s to 2 s on SmolLM2-135M."""
TOKENS = {2: 561, 4: 1156, 8: 2247, 24: 6722}
"""Unique tokens of a probe of so many prompts of each task, on SmolLM2-135M."""
QUIET = 0.1
"""`order` that a task must pass at some step, or an onset in it is false."""


@dataclass
class Watched:
    """What a schedule has seen of a run.

    Args:
        orders: the suite's `order` by step.
        events: raised.
        spent: share of the run's time.
    """

    orders: dict[int, float]
    events: list[Event]
    spent: float = 0.0

    @property
    def onsets(self) -> dict[str, int]:
        """By task, and by `suite`, the step at which the first onset was told."""
        found = [event for event in self.events if event.kind == "nucleation_onset"]
        return {event.task or "suite": event.step for event in reversed(found)}

    @property
    def seeds(self) -> dict[str | None, int]:
        """By task, the seed that was locked last."""
        kinds = ("seed_locked", "recrystallization")
        found = [event for event in self.events if event.kind in kinds]
        return {event.task: event.evidence["candidate"] for event in found}


class Bench:
    """A stored run of which every step was probed, and what is seen of it by looking less."""

    def __init__(self, run: Run) -> None:
        self._base = dict(read_base_answers(run.folder, run.records[0].tasks))
        self._records = {record.step: record for record in run.records}
        self.last = run.records[-1].step
        chosen = {name: nested_subsets(b, PARTIAL) for name, b in self._base.items()}
        self._asked = {
            size: {n: found[size].tolist() for n, found in chosen.items()} for size in PARTIAL
        }
        tasks = self._records[0].tasks
        self.highest = {
            name: max(record.tasks[name].metrics["order"] for record in run.records)
            for name in tasks
        }
        self._detector, self._course = SuiteDetector(self._base), Watched({}, [])
        for step in self._records:
            self._look(step)
        self.truth = self._course

    def watch(self, share: float | None, remembered: bool) -> Watched:
        """What the callback's schedule sees under a limit.

        Args:
            share: of the run's time, or None for no limit.
            remembered: the base's answers cost nothing.
        """
        now = 0.0
        budget = Budget(share or 1.0, lambda: now)
        schedule = Schedule(probe_steps(self.last), None if share is None else budget)
        schedule.tokens = TOKENS
        self._detector, self._course = SuiteDetector(self._base), Watched({}, [])
        budget.expect(TOKENS[24], WHOLE)
        with budget.spending():
            now += 0.0 if remembered else WHOLE
        schedule.taken()
        schedule.probed(self._look(0))
        schedule.begin(0)
        for step in range(1, self.last + 1):
            now += 1.0
            if size := schedule.wants(step, step == self.last):
                with budget.spending():
                    now += WHOLE * TOKENS[size] / TOKENS[24]
                schedule.taken()
                schedule.probed(self._look(step, size))
        self._course.spent = budget.spent_share
        return self._course

    def _look(self, step: int, size: int = 24) -> ProbeRecord:
        """Show a step to the detector; what the schedule hears of it."""
        asked, tasks = self._asked.get(size), self._records[step].tasks
        q = {name: task.q if asked is None else task.q[asked[name]] for name, task in tasks.items()}
        coverage = {name: task.metrics["coverage"] for name, task in tasks.items()}
        detector = self._detector
        self._course.events += detector.update(step, q, coverage, asked)
        base = self._base if asked is None else {n: b[asked[n]] for n, b in self._base.items()}
        part = detector.taking_part
        orders = [float(order(q[n], base[n], uniform_weights(len(q[n])))) for n in part]
        mean = float(np.average(orders, weights=[detector.tasks[n].liquidity for n in part]))
        self._course.orders[step] = mean
        return ProbeRecord(step, None, 0, 0, 0, detector.phase, {"order": mean}, {}, {})


def compared(benches: Sequence[Bench], share: float | None, remembered: bool) -> dict[str, Any]:
    """One row of the table: a schedule over all runs."""
    courses = [bench.watch(share, remembered) for bench in benches]
    delays, errors, seeds, missed, false = [], [], [], 0, 0
    for bench, course in zip(benches, courses, strict=True):
        truth, onsets = bench.truth, course.onsets
        if "suite" in truth.onsets:
            found = onsets.get("suite", bench.last)
            delays.append((found - truth.onsets["suite"]) / bench.last)
        missed += len(truth.onsets.keys() - onsets.keys())
        false += sum(bench.highest.get(name, 1.0) < QUIET for name in onsets)
        errors += [abs(own - truth.orders[step]) for step, own in course.orders.items()]
        seeds += [course.seeds.get(task) == seed for task, seed in truth.seeds.items()]
    return {
        "limit": share,
        "base": "remembered" if remembered else "scored",
        "spent": float(np.mean([course.spent for course in courses])),
        "probes": float(np.mean([len(course.orders) for course in courses])),
        "delay": float(np.mean(delays)) if delays else None,
        "longest_delay": max(delays, default=None),
        "missed": missed,
        "false": false,
        "order_error": float(np.sqrt(np.mean(np.square(errors)))),
        "seeds": [sum(seeds), len(seeds)],
    }


def show(rows: Iterable[dict[str, Any]]) -> None:
    """Print the table, as Markdown."""
    heads = "limit|base|share spent|probes|delay of the suite's onset, mean (longest)|onsets missed"
    heads += "|false onsets|error of order, rms|seeds as at every step"
    print(f"| {heads.replace('|', ' | ')} |\n|{' --- |' * (heads.count('|') + 1)}")
    for row in rows:
        limit = "none" if row["limit"] is None else f"{100 * row['limit']:g}%"
        delay = "–"
        if row["delay"] is not None:
            delay = f"{100 * row['delay']:.1f}% ({100 * row['longest_delay']:.1f}%) of the run"
        cells = (limit, row["base"], f"{100 * row['spent']:.1f}%", f"{row['probes']:.0f}", delay)
        cells += (row["missed"], row["false"], f"{row['order_error']:.3f}")
        print("|", *(f"{cell} |" for cell in (*cells, "{} of {}".format(*row["seeds"]))))


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """The frontier: the onset's delay against the share of the run's time."""
    from crystalmon.report import style

    figure = style.new_figure(5.0)
    ax = figure.subplots()
    for base, mark in (("scored", "o"), ("remembered", "s")):
        some = sorted((r for r in rows if r["base"] == base), key=lambda row: row["spent"])
        x, y = (np.array([100 * row[key] for row in some]) for key in ("spent", "delay"))
        ax.plot(x, y, marker=mark, label=f"the base was {base}")
    ax.set_xscale("log")
    shares = (0.5, 1, 2, 5, 10, 20, 60)
    ax.set_xticks(shares, [f"{share:g}%" for share in shares])
    ax.minorticks_off()
    ax.set_xlabel("share of the run's time that monitoring took")
    ax.set_ylabel("delay of the suite's onset, % of the run")
    ax.legend()
    figure.savefig(file)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a limit on monitoring costs.")
    parser.add_argument("--count", type=int, help="stored runs, at most; all if not given")
    parser.add_argument("--live", type=int, default=0, help="steps of SmolLM2-135M; 0 for none")
    parser.add_argument("--figure", type=Path, help="where to draw it")
    args = parser.parse_args()
    prepare_environment()
    folders = LONG.train(args.count)
    benches = [Bench(read_run(folder / "0-sft")) for folder in folders]
    print(f"{len(benches)} runs of {benches[0].last} steps; a probe of all takes {WHOLE:g} steps\n")
    rows = [compared(benches, share, kept) for share in SHARES for kept in (False, True)]
    show(rows)
    for folder, bench in zip(folders, benches, strict=True):
        onset, later = (
            course.onsets.get("suite") for course in (bench.truth, bench.watch(0.02, True))
        )
        print(f"{folder.name}: onset told at step {onset}, at 2% with a remembered base {later}")
    if args.figure is not None:
        draw(rows, args.figure)
    live = live_rows(args.live) if args.live else []
    print(json.dumps({"stored": rows, "live": live}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
