"""A chain of runs as a table: where each stage left the model."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from crystalmon.runs.reader import Run
from crystalmon.runs.records import ProbeRecord

BASE, START = "base", "start"
SAME = 1e-3
"""Free energy in nats up to which a chain's first probe is taken for one of the base itself."""
_COLUMNS = (
    "step",
    "phase",
    "order",
    "crystallinity",
    "seed mass",
    "free energy [nats]",
    "seeds locked",
    "probing's share",
)
_WIDTH = 1000


@dataclass(frozen=True)
class StageRow:
    """One stage, by its last probe.

    Args:
        name: the name of the stage's output folder; for where the chain begins see `begin_name`.
        step: the probe's step within the stage.
        phase: the suite's phase.
        order, crystallinity, seed_mass, free_energy: suite-level metrics, the last one in nats;
            NaN where the probe does not have them.
        share: the share of the stage's wall time that probing took; None where it begins.
        seeds: the number of tasks with a locked seed.
        tasks: the number of tasks.
    """

    name: str
    step: int
    phase: str
    order: float
    crystallinity: float
    seed_mass: float
    free_energy: float
    share: float | None
    seeds: int
    tasks: int


def stage_table(runs: Sequence[Run]) -> list[StageRow]:
    """One row per run, from its last probe, after a row from the first probe of the first.

    Args:
        runs: the stages of one chain, in the order of training.

    Raises:
        ValueError: if there is no run, or one without a probe.
    """
    check_probed(runs)
    rows = [stage_row(begin_name(runs[0]), runs[0].records[0], share=None)]
    for run in runs:
        record = run.records[-1]
        rows.append(stage_row(run.name, record, share=record.share))
    return rows


def begin_name(run: Run) -> str:
    """`base` where a run's first probe is of the base itself, `start` where it is of a later one.

    A stage whose model was trained before is compared with the base of that training.
    """
    drift = run.records[0].metrics.get("free_energy", 0.0)
    return START if drift > SAME else BASE


def check_probed(runs: Sequence[Run]) -> None:
    """Refuse an empty list, and a run without any probe.

    Raises:
        ValueError: naming the folder.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none.")
    for run in runs:
        if not run.records:
            raise ValueError(
                f"the run in {run.folder} must hold at least one probe, got none. "
                "Train with the CrystalCallback until its first probe, or leave the run out."
            )


def stage_row(name: str, record: ProbeRecord, share: float | None) -> StageRow:
    """One row of the table, from a probe."""
    return StageRow(
        name=name,
        step=record.step,
        phase=record.phase,
        order=record.metrics.get("order", math.nan),
        crystallinity=record.metrics.get("crystallinity", math.nan),
        seed_mass=record.metrics.get("seed_mass", math.nan),
        free_energy=record.metrics.get("free_energy", math.nan),
        share=share,
        seeds=sum(task.seed is not None for task in record.tasks.values()),
        tasks=len(record.tasks),
    )


def format_stage_table(rows: Sequence[StageRow]) -> str:
    """The rows as plain text, one line each, under a header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "phase" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(line for line in lines if line)


def _cells(row: StageRow) -> list[str]:
    numbers = (row.order, row.crystallinity, row.seed_mass, row.free_energy)
    share = "–" if row.share is None else f"{row.share:.1%}"
    shown = ["–" if math.isnan(number) else f"{number:.3f}" for number in numbers]
    return [row.name, str(row.step), row.phase, *shown, f"{row.seeds}/{row.tasks}", share]
