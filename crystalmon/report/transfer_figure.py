"""One family's seeds in another's stages: how near they are, beside prompts drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.analysis.transfer import StageTransfer
from crystalmon.report.palette import BLUE, GREY
from crystalmon.report.scan_data import StageBand
from crystalmon.report.scan_figures import draw_band, set_limits
from crystalmon.report.style import SMALL, TEXT, WIDTH, clipped, new_figure, stage_axis

NULL_DRAWS = 4000
"""How often a prompt is drawn for each task, to make the null."""
_RIGHT, _AXES = 6.2, 5.4


def transfer_figure(a: str, b: str, stages: Sequence[StageTransfer]) -> Figure:
    """The distance of A's seeds from B's answers by stage with its null, and every task's p-value.

    Left, means over tasks in nats: the seeds, and A's base at another prompt, one drawn at random
    for each task, with the range that holds 95% of such draws. Right, task by task, the rank
    p-value of the seed among A's prompts; over each column, `all`, the joint one.

    Args:
        a, b: the names of the families.
        stages: from `transfer.find_transfer`.
    """
    tasks = list(dict.fromkeys(name for stage in stages for name in stage.tasks))
    figure = new_figure(max(4.2, 1.5 + 0.24 * len(tasks)))
    left, right = figure.subplots(1, 2, width_ratios=(WIDTH - _RIGHT, _RIGHT))
    a, b = clipped(a, 30), clipped(b, 30)
    title = f"How far the answers of {b} are from the seeds of {a}"
    _draw_distances(left, stages, a)
    _draw_p_values(right, stages, tasks)
    for ax, words in ((left, title), (right, f"Is {a}'s seed nearer than its other wordings? (p)")):
        ax.set_title(words, fontsize=TEXT, pad=22, parse_math=False)
        ax.set_xlabel(f"stage of {b}", fontsize=TEXT, parse_math=False)
    return figure


def _draw_distances(ax: Axes, stages: Sequence[StageTransfer], a: str) -> None:
    stage_axis(ax, [stage.name for stage in stages], WIDTH - _RIGHT - 1.0)
    null = null_band(stages)
    found = [[task.distance for task in stage.tasks.values()] for stage in stages]
    means = np.array([np.mean(each) if each else np.nan for each in found])
    x = np.arange(len(stages))
    band = ax.fill_between(x, null.low, null.high, color=GREY, alpha=0.25, linewidth=0)
    (middle,) = ax.plot(x, null.value, color=GREY, linestyle="--", marker="s", markersize=4)
    seeds = draw_band(ax, StageBand(means, means, means), BLUE)
    set_limits(ax)
    ax.set_ylabel("Jensen–Shannon divergence [nats]", fontsize=TEXT)
    labels = [f"the seeds of {a}", "its other wordings, one a task", "95% of such choices"]
    ax.legend([seeds, middle, band], labels, frameon=False, fontsize=TEXT)


def null_band(stages: Sequence[StageTransfer]) -> StageBand:
    """By stage, the mean over tasks of the distance of a prompt drawn at random, not the seed."""
    rng = np.random.default_rng(0)
    rows = []
    for stage in stages:
        drawn = [
            rng.choice(task.others, NULL_DRAWS) for task in stage.tasks.values() if task.others
        ]
        means = np.mean(drawn, axis=0) if drawn else np.full(NULL_DRAWS, np.nan)
        rows.append([means.mean(), *np.percentile(means, [2.5, 97.5])])
    return StageBand(*np.array(rows).T)


def _draw_p_values(ax: Axes, stages: Sequence[StageTransfer], tasks: Sequence[str]) -> None:
    chances = np.full((len(tasks), len(stages)), np.nan)
    for column, stage in enumerate(stages):
        for row, task in enumerate(tasks):
            if task in stage.tasks:
                chances[row, column] = stage.tasks[task].p_value
    ax.imshow(np.log10(chances), aspect="auto", cmap="Blues_r", vmin=-1.6, vmax=0.6)
    stage_axis(ax, [stage.name for stage in stages], _AXES)
    ax.set_xlim(-0.5, len(stages) - 0.5)
    ax.spines[:].set_visible(False)
    ax.set_yticks(range(len(tasks)), [clipped(task) for task in tasks], parse_math=False)
    centred = {"ha": "center", "size": SMALL}
    for (row, column), chance in np.ndenumerate(chances):
        if np.isfinite(chance):
            colour = "white" if chance < 0.15 else "black"
            ax.text(column, row, f"{chance:.2f}", va="center", color=colour, **centred)
    for column, stage in enumerate(stages):
        joint = f"all {'≤ ' if stage.at_bound else ''}{stage.p_value:.2g}"
        above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(joint, (column, 1.0), (0, 3), fontweight="bold", **above, **centred)
