"""A chain of runs as a table: where each stage left the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from crystalmon.metrics.catalogue import BRIEF, brief_value
from crystalmon.phases.in_words import phase_words
from crystalmon.report.frames import base_answers
from crystalmon.report.lanes import probed_chain
from crystalmon.runs.compared_answers import read_in_view, same_answers
from crystalmon.runs.json_values import json_value
from crystalmon.runs.notebook import number
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.run import Run, names_of

SAME = 1e-3
"""Free energy in nats up to which a chain's first probe is taken for one of the base itself."""


class StageRow(NamedTuple):
    """A stage's name, the probe that stands for it, and monitoring's share of its time."""

    name: str
    record: ProbeRecord
    share: float | None = None

    @property
    def locked(self) -> int:
        """How many tasks hold a seed."""
        return sum(task.seed is not None for task in self.record.tasks.values())

    def to_json(self) -> dict[str, Any]:
        """What its line in the table says, with all metrics of the suite."""
        return json_value(
            {
                "stage": self.name,
                "step": self.record.step,
                "phase": self.record.phase,
                "looks": phase_words(self.record),
                "metrics": self.record.metrics,
                "seeds_locked": self.locked,
                "tasks": len(self.record.tasks),
                "share": self.share,
            }
        )


def stage_table(runs: Sequence[Run]) -> list[StageRow]:
    """A row for the last probe of each run, after one for the first probe of those of its base.

    That row is named `base`, or `start` if the probe differs from the base: the model of a later
    stage had been trained before. Where tasks are compared with the base's answers to the plain
    prompts, it is the base `in its view`. Of several bases each has its row, which names the run.
    A scan has a row for each of its stages.

    Args:
        runs: in the order of training; their names tell them apart, or their folders.

    Raises:
        ValueError: if there is no run, or one without a probe.
    """
    probed_chain(runs)
    bases: list[dict[str, np.ndarray]] = []
    begins: list[bool] = []
    for base in map(base_answers, runs):
        known = any(same_answers(base, other) for other in bases)
        begins.append(not known if base else not begins)  # a base that is gone is no other one
        bases += [base] if base else []
    rows: list[StageRow] = []
    for run, name, first in zip(runs, names_of(runs), begins, strict=True):
        of = f" of {name}" if sum(begins) > 1 else ""
        if first and not run.stages:
            beginning = run.records[0]
            what = "start" if beginning.metrics.get("free_energy", 0.0) > SAME else "base"
            what += " in its view" if what == "base" and read_in_view(run.folder) else ""
            rows.append(StageRow(f"{what}{of}", beginning))
        rows += _rows(run, f"{name}: " if len(runs) > 1 else "", name)
    return rows


def _rows(run: Run, scan: str, name: str) -> list[StageRow]:
    """A training's last probe, or all stages of a scan."""
    if not run.stages:
        return [StageRow(name, run.records[-1], run.share)]
    return [StageRow(f"{scan}{run.place(record.step)}", record) for record in run.records]


def format_stage_table(rows: Sequence[StageRow]) -> str:
    """The rows as plain text, one line each, under a header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    metrics = [f"{m.label} [{m.unit}]" if m.unit else m.label for m in BRIEF]
    for column in ("stage", "step", "phase", *metrics, "seeds locked", "monitoring's share"):
        table.add_column(column, justify="left" if column in ("stage", "phase") else "right")
    for row in rows:
        few = f" ({row.record.wordings} wordings)" if row.record.wordings else ""
        table.add_row(
            row.name,
            str(row.record.step),
            phase_words(row.record) + few,
            *(number(brief_value(metric, row.record.metrics)) for metric in BRIEF),
            f"{row.locked}/{len(row.record.tasks)}",
            "–" if row.share is None else f"{row.share:.1%}",
        )
    return as_text(table)


def as_text(table: Table) -> str:
    """A table as plain lines, as wide as it is."""
    console = Console(file=io.StringIO(), width=1000, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(line for line in lines if line)
