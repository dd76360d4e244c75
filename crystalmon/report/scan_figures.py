"""The paper's measurements of a scan as figures: variety, seed, proxy seed, answers, by stage.

Built on matplotlib's object-oriented interface, without pyplot. Names come from whoever made the
run: none of them is read as a formula.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crystalmon.report.answer_figures import answers_figure, variety_figure
from crystalmon.report.palette import BLUE, GREY, ORANGE
from crystalmon.report.scan_data import (
    Band,
    Measure,
    ScanStages,
    mean_band,
    proxy_mass,
    proxy_mse,
    read_stages,
    seed_mass,
    seed_mse,
    task_band,
    variety,
)
from crystalmon.report.style import LARGE, SMALL, TEXT, WIDTH, clipped, stage_axis
from crystalmon.runs.reader import Run

FORMATS = ("png", "svg")
COLUMNS = 5
_LEFT, _RIGHT, _GAP = 0.75, 0.15, 0.62

Line = tuple[str, Measure, str]
"""Label, measure and colour."""


class ScanFigure(NamedTuple):
    """One figure: `name` of its file, `title`, and in `words` what it shows."""

    name: str
    title: str
    words: str
    figure: Figure


def scan_figures(run: Run, found: Mapping[str, Any]) -> list[ScanFigure]:
    """Every figure of a scan, in the order of the paper's argument.

    Args:
        run: the scan's.
        found: the content of its `scan.json`.

    Raises:
        ValueError: if the two do not belong together.
    """
    stages = read_stages(run, found)
    sft = stages.proxy_stage or "the last stage"
    return [
        ScanFigure(
            "variety",
            "Variety of answers",
            f"A line is a prompt, a column a choice: the base beside {sft}, and the mean distance "
            "between two prompts' answers in nats.",
            variety_figure(stages),
        ),
        ScanFigure(
            "seed",
            "On the way to the seed",
            "Means over tasks with 95% intervals over prompts. The seed of a task is the base "
            "prompt that has won; tasks without one are left out of its two panels.",
            seed_figure(stages),
        ),
        ScanFigure(
            "seed_mse_tasks",
            "MSE to the seed, task by task",
            "Mean squared difference of the answers from the base's at the prompt that has won.",
            tasks_figure(stages, seed_mse, "MSE", None),
        ),
        ScanFigure(
            "seed_mass_tasks",
            "ProbMass, task by task",
            "Probability on the smallest set of choices that holds 90% of the seed.",
            tasks_figure(stages, seed_mass, "ProbMass", (0.0, 1.03)),
        ),
        ScanFigure(
            "proxy",
            "The mean SFT distribution as seed",
            f"The same with another seed: the answers at {sft}, averaged over prompts.",
            proxy_figure(stages),
        ),
        ScanFigure(
            "answers",
            "Answers by stage",
            "Each task's answers averaged over prompts: the base as bars, the stages as marks.",
            answers_figure(stages),
        ),
    ]


def write_scan_figures(run: Run, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure of a scan as PNG and SVG; the files, in order.

    Raises:
        OSError: if they cannot be written.
        ValueError: see `scan_figures`.
    """
    return [
        path
        for each in scan_figures(run, found)
        for path in write_figure(each.figure, folder / each.name)
    ]


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem.png` and `stem.svg`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS)
    figure.savefig(png)
    svg.write_text(figure_svg(figure), encoding="utf-8")
    return [png, svg]


def figure_svg(figure: Figure) -> str:
    """A figure as SVG with transparent ground, its letters as outlines; the same every time."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "crystalmon", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def seed_figure(stages: ScanStages) -> Figure:
    """Variety of the answers, MSE to the winning seed and ProbMass of it: means over tasks."""
    return _means_figure(
        stages,
        [
            ("variety between prompts [nats]", [("", variety, BLUE)], None),
            ("MSE to the seed", [("", seed_mse, BLUE)], None),
            ("ProbMass of the seed", [("", seed_mass, BLUE)], (0.0, 1.03)),
        ],
    )


def proxy_figure(stages: ScanStages) -> Figure:
    """MSE and ProbMass with the proxy seed, beside the winning seed's."""
    proxy, seed = "proxy seed", "seed"
    return _means_figure(
        stages,
        [
            ("MSE", [(seed, seed_mse, GREY), (proxy, proxy_mse, ORANGE)], None),
            ("ProbMass", [(seed, seed_mass, GREY), (proxy, proxy_mass, ORANGE)], (0.0, 1.03)),
        ],
    )


def _means_figure(
    stages: ScanStages, panels: Sequence[tuple[str, Sequence[Line], tuple[float, float] | None]]
) -> Figure:
    """One panel a quantity: (what its axis says, its lines, the axis' limits)."""
    figure = Figure(figsize=(WIDTH, 4.0), dpi=100, facecolor="white", layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (says, lines, limits) in zip(grid, panels, strict=True):
        stage_axis(ax, stages.names, WIDTH / len(panels) - _GAP)
        drawn = [_draw_mean(ax, stages, line, place) for place, line in enumerate(lines)]
        ax.set_ylabel(says, fontsize=TEXT)
        set_limits(ax, limits)
        handles, labels = zip(*drawn, strict=True)
        if len(drawn) == 1:
            ax.set_title(labels[0], fontsize=SMALL)
        else:
            ax.legend(handles, labels, frameon=False, fontsize=TEXT)
    return figure


def _draw_mean(ax: Axes, stages: ScanStages, line: Line, place: int) -> tuple[Line2D, str]:
    """Draw one line; it, and what it is over how many tasks."""
    label, measure, colour = line
    found = mean_band(stages, measure)
    if found is None:
        return ax.plot([], [], color=colour)[0], f"{label} (no task)".strip()
    band, count = found
    style = "--" if place == 0 and label else "-"
    drawn = draw_band(ax, band, colour, shift=0.06 * place, style=style)
    return drawn, f"{label} ({count} of {len(stages.tasks)} tasks)".strip()


def draw_band(ax: Axes, band: Band, colour: str, shift: float = 0.0, style: str = "-") -> Line2D:
    """Values joined by a line, each with its interval; the line."""
    x = [place + shift for place in range(len(band.value))]
    ax.vlines(x, band.low, band.high, color=colour, linewidth=2.4, alpha=0.55)
    (line,) = ax.plot(
        x,
        band.value,
        color=colour,
        marker="o",
        markersize=5,
        linewidth=1.8,
        linestyle=style,
    )
    return line


def set_limits(ax: Axes, limits: tuple[float, float] | None) -> None:
    """The given limits of y; else from 0 to a little above what is drawn."""
    if limits is None:
        limits = (0.0, max(ax.get_ylim()[1], 1e-6))
    ax.set_ylim(*limits)
    ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)


def tasks_figure(
    stages: ScanStages, measure: Measure, says: str, limits: tuple[float, float] | None
) -> Figure:
    """One panel a task: a measure by stage with its 95% interval over prompts.

    Args:
        stages: of a scan.
        measure: from `scan_data`.
        says: its name, for the axes.
        limits: of y, the same in every panel; None for those of each.
    """
    rows = -(-len(stages.tasks) // COLUMNS)
    figure = Figure(
        figsize=(WIDTH, 0.5 + 2.0 * rows), dpi=100, facecolor="white", layout="constrained"
    )
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for place, ax in enumerate(grid.flat):
        if place >= len(stages.tasks):
            ax.set_axis_off()
            continue
        name, task = list(stages.tasks.items())[place]
        lowest = place + COLUMNS >= len(stages.tasks)
        stage_axis(ax, stages.names, WIDTH / COLUMNS - _GAP, labels=lowest)
        ax.set_title(clipped(name), fontsize=LARGE, fontweight="bold", loc="left", parse_math=False)
        band = task_band(task, measure)
        if band is None:
            ax.text(0.5, 0.5, "no seed", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_yticks([])
            continue
        draw_band(ax, band, BLUE)
        set_limits(ax, limits)
        if place % COLUMNS == 0:
            ax.set_ylabel(says, fontsize=TEXT)
    return figure
