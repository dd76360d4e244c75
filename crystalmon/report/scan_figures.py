"""The paper's measurements of a scan as figures: variety, seed, proxy seed, answers, by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crystalmon.analysis import stage_measures as by_stage
from crystalmon.analysis.stage_measures import Measure
from crystalmon.report import scan_data, style
from crystalmon.report.answer_figures import answers_figure, variety_figure
from crystalmon.report.palette import BLUE, GREY, ORANGE
from crystalmon.report.scan_data import ScanStages, StageBand
from crystalmon.report.style import COLUMNS, SMALL, TEXT, WIDTH
from crystalmon.runs.plurals import counted
from crystalmon.runs.run import Run

_GAP = 0.62
_SHARE = (0.0, 1.03)
"""The limits of an axis of probabilities."""

Range = tuple[float, float] | None
"""Of y; None for 0 to a little above what is drawn."""
Line = tuple[str, Measure, str]
"""Label, measure and colour."""
MeansPanel = tuple[str, Sequence[Line], Range]
"""The label of the axis, the lines, the limits."""

_ON_THE_WAY: tuple[MeansPanel, ...] = (
    ("variety between prompts [nats]", [("", by_stage.variety, BLUE)], None),
    ("MSE to the seed", [("", by_stage.seed_mse, BLUE)], None),
    ("ProbMass of the seed", [("", by_stage.seed_mass, BLUE)], _SHARE),
)
_BESIDE_THE_PROXY: tuple[MeansPanel, ...] = (
    (
        "MSE",
        [("seed", by_stage.seed_mse, GREY), ("proxy seed", by_stage.proxy_mse, ORANGE)],
        None,
    ),
    (
        "ProbMass",
        [("seed", by_stage.seed_mass, GREY), ("proxy seed", by_stage.proxy_mass, ORANGE)],
        _SHARE,
    ),
)


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
    stages = scan_data.read_stages(run, found)
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
            _means_figure(stages, _ON_THE_WAY),
        ),
        ScanFigure(
            "seed_mse_tasks",
            "MSE to the seed, task by task",
            "Mean squared difference of the answers from the base's at the prompt that has won.",
            _tasks_figure(stages, by_stage.seed_mse, "MSE", None),
        ),
        ScanFigure(
            "seed_mass_tasks",
            "ProbMass, task by task",
            "Probability on the smallest set of choices that holds 90% of the seed.",
            _tasks_figure(stages, by_stage.seed_mass, "ProbMass", _SHARE),
        ),
        ScanFigure(
            "proxy",
            "The mean SFT distribution as seed",
            f"The same with another seed: the answers at {sft}, averaged over prompts.",
            _means_figure(stages, _BESIDE_THE_PROXY),
        ),
        ScanFigure(
            "answers",
            "Answers by stage",
            "Each task's answers averaged over prompts: the base as bars, the stages as marks.",
            answers_figure(stages),
        ),
    ]


def write_scan_figures(run: Run, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure of a scan as PNG and SVG; the files, in order. See `scan_figures`."""
    return [
        path
        for each in scan_figures(run, found)
        for path in style.write_figure(each.figure, folder / each.name)
    ]


def _means_figure(stages: ScanStages, panels: Sequence[MeansPanel]) -> Figure:
    """Means over tasks, one panel a quantity."""
    figure = style.new_figure(4.0)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (says, lines, limits) in zip(grid, panels, strict=True):
        style.stage_axis(ax, stages.names, WIDTH / len(panels) - _GAP)
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
    found = scan_data.mean_band(stages.tasks.values(), measure)
    if found is None:
        return ax.plot([], [], color=colour)[0], f"{label} (no task)".strip()
    band, count = found
    dashes = "--" if place == 0 and label else "-"
    drawn = draw_band(ax, band, colour, shift=0.06 * place, dashes=dashes)
    return drawn, f"{label} ({count} of {counted(len(stages.tasks), 'task')})".strip()


def draw_band(
    ax: Axes, band: StageBand, colour: str, shift: float = 0.0, dashes: str = "-"
) -> Line2D:
    """Values joined by a line, each with its interval; the line."""
    x = [place + shift for place in range(len(band.value))]
    ax.vlines(x, band.low, band.high, color=colour, linewidth=2.4, alpha=0.55)
    looks = {"color": colour, "linewidth": 1.8, "linestyle": dashes, "marker": "o", "markersize": 5}
    return ax.plot(x, band.value, **looks)[0]


def set_limits(ax: Axes, limits: Range = None) -> None:
    """Set the limits of y, and draw faint lines at its ticks."""
    ax.set_ylim(*(limits or (0.0, max(ax.get_ylim()[1], 1e-6))))
    ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)


def _tasks_figure(stages: ScanStages, measure: Measure, says: str, limits: Range) -> Figure:
    """A measure by stage with its 95% interval, one panel a task; `says` labels the axes."""
    figure = style.new_figure(0.5 + 2.0 * style.row_count(len(stages.tasks)))
    panels = style.task_axes(figure, list(stages.tasks))
    for place, (ax, task) in enumerate(zip(panels, stages.tasks.values(), strict=True)):
        lowest = place + COLUMNS >= len(panels)
        style.stage_axis(ax, stages.names, WIDTH / COLUMNS - _GAP, labels=lowest)
        found = scan_data.mean_band([task], measure)
        if found is None:
            ax.text(0.5, 0.5, "no seed", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_yticks([])
            continue
        draw_band(ax, found[0], BLUE)
        set_limits(ax, limits)
        if place % COLUMNS == 0:
            ax.set_ylabel(says, fontsize=TEXT)
    return figure
