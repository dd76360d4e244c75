"""One family's seeds in another's stages: how near they are, beside prompts drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.report.palette import BLUE, GREY
from crystalmon.report.scan_data import Band
from crystalmon.report.scan_figures import draw_band, set_limits
from crystalmon.report.style import SMALL, TEXT, WIDTH, clipped, stage_axis

if TYPE_CHECKING:
    from crystalmon.analysis.transfer import StageTransfer

DRAWS = 4000
"""Draws of a prompt for each task, of which the null is made."""
_RIGHT, _AXES = 6.2, 5.4


def transfer_figure(a: str, b: str, stages: Sequence[StageTransfer]) -> Figure:
    """The distance of A's seeds from B's answers by stage with its null, and every task's p-value.

    Left, means over tasks in nats: the seeds, and A's base at another prompt, one drawn at random
    for each task, with the range that holds 95% of such draws. Right, task by task, the rank
    p-value of the seed among A's prompts; over each column stands the joint one.

    Args:
        a, b: the names of the families.
        stages: from `transfer.find_transfer`.
    """
    names = list(dict.fromkeys(name for stage in stages for name in stage.tasks))
    height = max(4.2, 1.5 + 0.24 * len(names))
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(WIDTH - _RIGHT, _RIGHT))
    _draw_distances(left, a, b, stages)
    _draw_p_values(right, stages, names)
    return figure


def _draw_distances(ax: Axes, a: str, b: str, stages: Sequence[StageTransfer]) -> None:
    names = [stage.name for stage in stages]
    stage_axis(ax, names, WIDTH - _RIGHT - 1.0)
    null = null_band(stages)
    found = [[task.distance for task in stage.tasks.values()] for stage in stages]
    means = np.array([np.mean(each) if each else np.nan for each in found])
    x = np.arange(len(stages))
    band = ax.fill_between(x, null.low, null.high, color=GREY, alpha=0.25, linewidth=0)
    (middle,) = ax.plot(x, null.value, color=GREY, linestyle="--", marker="s", markersize=4)
    seeds = draw_band(ax, Band(means, means, means), BLUE)
    set_limits(ax, None)
    ax.set_ylabel("distance from the answers [nats]", fontsize=TEXT)
    ax.set_title(f"{clipped(a, 30)} in {clipped(b, 30)}", fontsize=TEXT, parse_math=False)
    labels = ["its seeds", "another of its base prompts, mean", "95% of draws"]
    ax.legend([seeds, middle, band], labels, frameon=False, fontsize=TEXT)


def null_band(stages: Sequence[StageTransfer]) -> Band:
    """By stage, the mean over tasks of the distance of a prompt drawn at random, not the seed."""
    rng = np.random.default_rng(0)
    rows = []
    for stage in stages:
        drawn = [rng.choice(task.others, DRAWS) for task in stage.tasks.values() if task.others]
        means = np.mean(drawn, axis=0) if drawn else np.full(DRAWS, np.nan)
        rows.append([means.mean(), *np.percentile(means, [2.5, 97.5])])
    return Band(*np.array(rows).T)


def _draw_p_values(ax: Axes, stages: Sequence[StageTransfer], names: Sequence[str]) -> None:
    chances = np.array(
        [
            [stage.tasks[n].p_value if n in stage.tasks else np.nan for stage in stages]
            for n in names
        ]
    ).reshape(len(names), len(stages))
    ax.imshow(np.log10(chances), aspect="auto", cmap="Blues_r", vmin=-1.6, vmax=0.6)
    stage_axis(ax, [stage.name for stage in stages], _AXES)
    ax.set_xlim(-0.5, len(stages) - 0.5)
    ax.spines[:].set_visible(False)
    ax.set_yticks(range(len(names)), [clipped(name) for name in names], parse_math=False)
    for (row, column), chance in np.ndenumerate(chances):
        if np.isfinite(chance):
            colour = "white" if chance < 0.15 else "black"
            ax.text(
                column, row, f"{chance:.2f}", ha="center", va="center", color=colour, size=SMALL
            )
    joint = [f"{'≤ ' if stage.at_bound else ''}{stage.p_value:.2g}" for stage in stages]
    for column, text in enumerate(joint):
        ax.annotate(
            text,
            (column, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            fontweight="bold",
        )
    ax.set_title("p-value, task by task; on top the joint one", fontsize=TEXT, pad=20)
