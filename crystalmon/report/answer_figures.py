"""The answers themselves, task by task: each prompt's in two stages, the mean at every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.report import style
from crystalmon.report.palette import SHADE, STAGE_COLOURS
from crystalmon.report.scan_data import ScanStages, TaskStages, measure
from crystalmon.report.style import COLUMNS, SMALL, TEXT, clipped

MOST_CHOICES = 16
MOST_STAGES = 6
_MARKS = "osD^vPX*"
_RAMP = ((0.0, "#F4F7FA"), (0.3, "#B9DCF2"), (0.6, "#3F93CC"), (0.85, "#0A5590"), (1.0, "#062F57"))
"""The page's own, from no probability to certainty."""


def variety_figure(stages: ScanStages) -> Figure:
    """Every prompt's answers in the base beside those in the stage that stands for SFT.

    Lines are prompts, sorted by what they answer most in the base, the same on both sides; columns
    are choices. Over each map stands its `variety`. Without such a stage, the last is shown.
    """
    late = len(stages.names) - 1
    if stages.proxy_stage is not None:
        late = stages.names.index(stages.proxy_stage)
    places = (0, late) if late else (0,)
    rows = style.row_count(len(stages.tasks))
    figure = style.new_figure(0.7 + 2.3 * rows)
    parts = figure.subfigures(rows, COLUMNS, squeeze=False)
    shades = LinearSegmentedColormap.from_list("answers", list(_RAMP))
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for part, (name, task) in zip(parts.flat, stages.tasks.items(), strict=False):
        part.suptitle(clipped(name), **style.TITLE)
        ranks = np.argsort(task.q[0].argmax(axis=1), kind="stable")
        varieties = measure(task, "variety", uniform_weights(task.q.shape[1])[None])
        axes = part.subplots(1, len(places), squeeze=False)[0]
        for ax, place in zip(axes, places, strict=True):
            ax.imshow(task.q[place][ranks], aspect="auto", cmap=shades, norm=norm)
            ax.set(xticks=[], yticks=[])
            number = "" if varieties is None else f"\n{varieties[0, place]:.3f}"
            title = f"{clipped(stages.names[place], 14)}{number}"
            ax.set_title(title, fontsize=SMALL, parse_math=False)
    return figure


def answers_figure(stages: ScanStages) -> Figure:
    """Each task's answers, averaged over prompts: the base as bars, the later stages as marks.

    Of many stages, the first, the last and some at even distances between are shown; of many
    choices the most probable ones, and the rest as one.
    """
    shown = pick_stages(len(stages.names))
    tables = {name: histogram(task, shown) for name, task in stages.tasks.items()}
    counts = [len(labels) for labels, _ in tables.values()]
    rows = [counts[start : start + COLUMNS] for start in range(0, len(counts), COLUMNS)]
    heights = [0.75 + 0.19 * max(row) for row in rows]
    figure = style.new_figure(0.5 + sum(heights))
    panels = style.task_axes(figure, list(tables), heights)
    drawn = [_draw_answers(ax, *each) for ax, each in zip(panels, tables.values(), strict=True)]
    legend = figure.legend(
        drawn[0],
        [clipped(stages.names[place]) for place in shown],
        loc="outside upper center",
        ncols=len(shown),
        frameon=False,
        fontsize=TEXT,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def pick_stages(count: int) -> list[int]:
    """At most `MOST_STAGES` of so many, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_STAGES))})


def histogram(task: TaskStages, shown: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """(labels, [stages shown, labels]) of a task's mean answers, at most `MOST_CHOICES` labels."""
    means = task.q[list(shown)].mean(axis=1)
    labels = [clipped(choice, 14) for choice in task.choices]
    if len(labels) <= MOST_CHOICES:
        return labels, means
    kept = np.sort(np.argsort(-np.nan_to_num(means).max(axis=0), kind="stable")[: MOST_CHOICES - 1])
    rest = 1.0 - means[:, kept].sum(axis=1, keepdims=True)
    names = [*(labels[choice] for choice in kept), f"{len(labels) - len(kept)} others"]
    return names, np.concatenate([means[:, kept], rest], axis=1)


def _draw_answers(ax: Axes, labels: Sequence[str], means: np.ndarray) -> list[Artist]:
    """One task's panel; what stands for each stage in a legend."""
    y = np.arange(len(labels))
    bars = ax.barh(y, means[0], color=STAGE_COLOURS[0], alpha=0.45, height=0.8)
    drawn: list[Artist] = [bars.patches[0]]
    for mark, colour, row in zip(_MARKS, STAGE_COLOURS[1:], means[1:], strict=False):
        drawn += ax.plot(row, y, mark, color=colour, markersize=5.5, alpha=0.9)
    ax.set_yticks(y, labels, fontsize=SMALL, parse_math=False)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(0, None)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=SHADE, linewidth=0.8)
    return drawn
