"""The context experiment as a picture: curves and loops, α_c, hysteresis."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.context.compliance import array, compliance
from crystalmon.report.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SHADE, VERMILION
from crystalmon.report.style import LARGE, SMALL, TEXT, WIDTH
from crystalmon.runs.results import Estimate, Result

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK)
_MARKERS = "osD^vP"


def context_figure(result: Result) -> Figure:
    """Compliance against α; α_c and hysteresis by instruction, an adversary a mark."""
    names = list(result.detail["by_instruction"])
    height = max(5.2, 1.9 + 0.28 * len(names))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(1.25, 1, 1))
    curves, middles, areas = (figure.add_subplot(grid[0, column]) for column in range(3))
    _draw_curves(curves, result)
    pairs = result.detail["pairs"]
    _draw_by_instruction(middles, pairs, names, "alpha_c", result.estimates["alpha_c"])
    middles.set_xlim(-0.03, 1.03)
    middles.set_xlabel("α_c, where compliance is 1/2", fontsize=TEXT)
    _draw_by_instruction(areas, pairs, names, "hysteresis", result.estimates["hysteresis"])
    areas.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    areas.set_xlabel("hysteresis area, in compliance × α", fontsize=TEXT)
    areas.set_yticklabels([])
    handles, labels = middles.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    legend = figure.legend(
        unique.values(),
        unique.keys(),
        loc="outside lower right",
        ncols=len(unique),
        frameon=False,
        fontsize=SMALL,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    model = result.models.get("model") or "the model"
    title = f"Compliance against adversarial context: {model}"
    figure.suptitle(title, fontsize=LARGE, parse_math=False)
    return figure


def _draw_curves(ax: Axes, result: Result) -> None:
    """Every pair in grey; the means without a history and on the two loops."""
    pairs = result.detail["pairs"]
    for pair in pairs:
        ax.plot(pair["alpha"], pair["compliance"], color=GREY, alpha=0.3, linewidth=0.8)
    grid = np.linspace(0, 1, 101)
    told: tuple[tuple[str, str, str, str], ...] = (
        ("up", "up, from α = 0", BLUE, "-"),
        ("down", "down again", BLUE, "--"),
        ("reversed_down", "down, from α = 1", VERMILION, "-"),
        ("reversed_up", "up again", VERMILION, "--"),
    )
    alone = [np.interp(grid, pair["alpha"], array(pair["compliance"])) for pair in pairs]
    ax.plot(grid, np.mean(alone, axis=0), color=BLACK, linewidth=2.4, label="without a history")
    for key, label, colour, style in told:
        found = [np.interp(grid, p["alpha"], compliance(array(p[key]))) for p in pairs]
        ax.plot(grid, np.mean(found, axis=0), style, color=colour, linewidth=1.8, label=label)
    ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=1)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("α, the adversarial share of the block's tokens", fontsize=TEXT)
    ax.set_ylabel("compliance", fontsize=TEXT)
    ax.legend(
        frameon=False, fontsize=SMALL, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3
    )


def _draw_by_instruction(
    ax: Axes, pairs: list[dict[str, Any]], names: list[str], key: str, mean: Estimate
) -> None:
    adversaries = list(dict.fromkeys(pair["adversary"] for pair in pairs))
    for number, adversary in enumerate(adversaries):
        mine = [p for p in pairs if p["adversary"] == adversary]
        known = [(p[key], names.index(p["instruction"])) for p in mine if p[key] is not None]
        ax.plot(
            [value for value, _ in known],
            [row for _, row in known],
            _MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=5.5,
            alpha=0.8,
            label=adversary,
        )
    if np.isfinite([mean.low, mean.high]).all():
        ax.axvspan(mean.low, mean.high, color=SHADE, zorder=0)
    if np.isfinite(mean.value):
        ax.axvline(mean.value, color=BLACK, linewidth=1.0, zorder=1)
    ax.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color=GREY, alpha=0.4)
