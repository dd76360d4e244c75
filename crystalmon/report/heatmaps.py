"""Tasks as they crystallize: prompts × choices, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from crystalmon.records import ProbeRecord
from crystalmon.report.palette import (
    PHASE_COLOURS,
    VERMILION,
)
from crystalmon.report.style import LARGE, SMALL, TEXT, WIDTH, text_inches
from crystalmon.report.summary import begin_name, check_probed
from crystalmon.store import Run

_COLOUR_MAP = "magma"


def task_figure(
    runs: Run | Sequence[Run],
    names: Sequence[str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Tasks as they crystallize: each prompt's choice distribution, probe by probe.

    One row a task, one column a probe; in each panel a line is a prompt and a column a choice.
    A liquid task shows a different line for every prompt, a crystallized one the same line
    throughout. Prompts keep their line: they are sorted by their likeliest choice at first.
    A triangle marks the base prompt that is locked as the seed, in the first column the one that
    is locked last.

    Args:
        runs: one run, shown at its first, middle and last probe; or the stages of a chain, shown
            at the first probe and at the end of each stage.
        names: the tasks; by default the first four.
        choices: the choices' texts by task, to write below its panels.

    Raises:
        ValueError: if there is no run, one without a probe, or a task that was not probed.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    check_probed(runs)
    columns = _columns(runs)
    names = _check_names(names, columns[0][1])
    # a row holds room for its labels, the figure for its titles and the colour bar
    figure = Figure(figsize=(WIDTH, 0.75 + 2.35 * len(names)), dpi=100, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for axes, name in zip(grid, names, strict=True):
        ranks = _prompt_order(columns[0][1].tasks[name].q)
        seeds = [record.tasks[name].seed for _, record in columns]
        winner = next((seed for seed in reversed(seeds) if seed is not None), None)
        for ax, (title, record) in zip(axes, columns, strict=True):
            _draw_task(ax, record, name, ranks, norm)
            _mark_seed(ax, winner if ax is axes[0] else record.tasks[name].seed, ranks)
            _label_choices(ax, (choices or {}).get(name))
            if ax in grid[0]:
                ax.set_title(title, fontsize=_fitting(title, len(columns)), fontweight="bold")
        axes[0].set_ylabel(f"{name}\nprompts", fontsize=TEXT, labelpad=12)
    figure.supxlabel(
        "a line is a prompt, a column is a choice; "
        "the triangle points at the seed, the base prompt whose answers win",
        fontsize=SMALL,
    )
    bar = figure.colorbar(
        ScalarMappable(norm, _COLOUR_MAP),
        ax=grid,
        shrink=0.9,
        aspect=40,
        pad=0.01,
        ticks=[0, 0.1, 0.3, 0.6, 1],
    )
    bar.set_label("probability of the choice", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _fitting(title: str, columns: int) -> float:
    """The font size at which a title fits over its column."""
    room = 0.8 * (WIDTH - 1.5) / columns
    return max(LARGE * min(1.0, room / text_inches(title, LARGE)), 6.0)


def _columns(runs: Sequence[Run]) -> list[tuple[str, ProbeRecord]]:
    """(title, probe) of each column."""
    if len(runs) > 1:
        ends = [(f"after {run.name}", run.records[-1]) for run in runs]
        return [(begin_name(runs[0]), runs[0].records[0]), *ends]
    records = runs[0].records
    picked = sorted({0, len(records) // 2, len(records) - 1})
    return [(f"step {records[index].step}", records[index]) for index in picked]


def _check_names(names: Sequence[str] | None, record: ProbeRecord) -> list[str]:
    known = list(record.tasks)
    chosen = known[:4] if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"names must be among the probed tasks {known}, got {unknown or chosen}.")
    return chosen


def _prompt_order(q: np.ndarray) -> np.ndarray:
    """Prompts by their likeliest choice, and among these by how likely it is."""
    best = np.nan_to_num(q).argmax(axis=1)
    return np.lexsort((-q[np.arange(len(q)), best], best))


def _draw_task(
    ax: Axes, record: ProbeRecord, name: str, ranks: np.ndarray, norm: PowerNorm
) -> None:
    task = record.tasks[name]
    ax.imshow(task.q[ranks], aspect="auto", cmap=_COLOUR_MAP, norm=norm, interpolation="nearest")
    colour = PHASE_COLOURS[task.phase]
    ax.set_xlabel(task.phase, fontsize=TEXT, labelpad=3)
    ax.spines[:].set(edgecolor=colour, linewidth=2.5)
    ax.tick_params(length=0, labelsize=SMALL)
    ax.set_yticks([])


def _mark_seed(ax: Axes, seed: int | None, ranks: np.ndarray) -> None:
    if seed is not None:
        line = int(np.flatnonzero(ranks == seed)[0])
        ax.plot(
            -0.018,
            line,
            ">",
            color=VERMILION,
            markersize=8,
            clip_on=False,
            transform=ax.get_yaxis_transform(),
        )


def _label_choices(ax: Axes, texts: Sequence[str] | None) -> None:
    """The choices' texts, if they fit side by side or upright; else none."""
    if texts is None or len(texts) > 40:
        ax.set_xticks([])
        return
    upright = sum(map(len, texts)) + len(texts) > 45
    ax.set_xticks(range(len(texts)), texts, rotation=90 if upright else 0, fontsize=SMALL)
