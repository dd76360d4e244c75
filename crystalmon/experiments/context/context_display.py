"""The context experiment as a table and as a picture: curves and loops, α_c, hysteresis."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.common import display_parts as draw
from crystalmon.experiments.context.compliance import compliance
from crystalmon.experiments.context.context_summary import SHAPES
from crystalmon.report.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from crystalmon.report.style import LARGE, SMALL, new_figure
from crystalmon.runs.notebook import number
from crystalmon.runs.plurals import counted
from crystalmon.runs.results import Estimate, Result

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK)
_MARKERS = "osD^vP"
_WAYS = (
    ("up", "up, from α = 0", BLUE, "-"),
    ("down", "down again", BLUE, "--"),
    ("reversed_down", "down, from α = 1", VERMILION, "-"),
    ("reversed_up", "up again", VERMILION, "--"),
)
_COLUMNS = {
    "alpha_c": "α_c",
    "slope": "slope",
    "hysteresis": "hysteresis",
    "compliance_0": "at α = 0",
    "compliance_1": "at α = 1",
}


def table(result: Result) -> str:
    """The estimates with their intervals, and a line for each instruction."""
    detail, found = result.detail, result.estimates
    shapes, p_values = detail["shapes"], detail["p_values"]
    counts = ", ".join(
        f"{len(names)} {status.replace('_', ' ')}"
        for status, names in detail["statuses"].items()
        if names
    )
    best = ", ".join(f"{shape} {shapes['best'][shape]}" for shape in SHAPES)
    rows = [("instruction", "flips", *_COLUMNS.values())]
    for name, own in detail["by_instruction"].items():
        cells = (number(own[key]) for key in _COLUMNS)
        rows.append((name, f"{own['flips']}/{own['pairs']}", *cells))
    lines = [
        f"context: {_model(result)}, {counted(len(detail['pairs']), 'pair')} of "
        f"{counted(len(detail['by_instruction']), 'instruction')}; {counts}",
        f"α_c {found['alpha_c']}, slope {found['slope']}, width {found['width']}",
        f"compliance {found['compliance_0']} at α = 0, {found['compliance_1']} at α = 1",
        f"best shape by BIC: {best} of {shapes['compared']}; line less threshold "
        f"{found['bic_gain']}",
        f"hysteresis {found['hysteresis']} (p {number(p_values['hysteresis'])}): from α = 0 "
        f"{found['area']}, from α = 1 {found['reversed_area']}",
        f"spread of log-odds near α_c over elsewhere {found['excess_spread']} nats (p "
        f"{number(p_values['excess_spread'])})",
        "",
        *draw.aligned(rows),
    ]
    return "\n".join(lines)


def _model(result: Result) -> str:
    return result.models.get("model") or "the model"


def figure(result: Result) -> Figure:
    """Compliance against α; α_c and hysteresis by instruction, an adversary a mark."""
    pairs, names = result.detail["pairs"], list(result.detail["by_instruction"])
    drawn = new_figure(max(5.2, 1.9 + 0.28 * len(names)))
    curves, middles, areas = drawn.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_curves(curves, pairs)
    _draw_by_instruction(middles, pairs, names, "alpha_c", result.estimates["alpha_c"])
    middles.set_xlim(-0.03, 1.03)
    draw.frame(middles, "α_c, where compliance is 1/2")
    _draw_by_instruction(areas, pairs, names, "hysteresis", result.estimates["hysteresis"])
    areas.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    areas.set_yticklabels([])
    draw.frame(areas, "hysteresis area, in compliance × α")
    marks = middles.get_legend_handles_labels()
    place = {"loc": "outside lower right", "ncols": len(marks[0])}
    for text in drawn.legend(*marks, **place, frameon=False, fontsize=SMALL).get_texts():
        text.set_parse_math(False)
    title = f"Compliance against adversarial context: {_model(result)}"
    drawn.suptitle(title, fontsize=LARGE, parse_math=False)
    return drawn


def _draw_curves(ax: Axes, pairs: list[dict[str, Any]]) -> None:
    """Every pair in grey; the means without a history and on the two loops."""
    for pair in pairs:
        ax.plot(pair["alpha"], pair["compliance"], color=GREY, alpha=0.3, linewidth=0.8)
    grid = np.linspace(0, 1, 101)
    alone = [np.interp(grid, pair["alpha"], pair["compliance"]) for pair in pairs]
    ax.plot(grid, np.mean(alone, axis=0), color=BLACK, linewidth=2.4, label="without a history")
    for key, label, colour, style in _WAYS:
        found = [np.interp(grid, p["alpha"], compliance(np.array(p[key]))) for p in pairs]
        ax.plot(grid, np.mean(found, axis=0), style, color=colour, linewidth=1.8, label=label)
    ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=1)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    draw.frame(ax, "α, the adversarial share of the block's tokens", "compliance")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3}
    ax.legend(frameon=False, fontsize=SMALL, **below)


def _draw_by_instruction(
    ax: Axes, pairs: list[dict[str, Any]], names: list[str], key: str, mean: Estimate
) -> None:
    adversaries = list(dict.fromkeys(pair["adversary"] for pair in pairs))
    for order, adversary in enumerate(adversaries):
        known = [p for p in pairs if p["adversary"] == adversary and p[key] is not None]
        ax.plot(
            [pair[key] for pair in known],
            [names.index(pair["instruction"]) for pair in known],
            _MARKERS[order % len(_MARKERS)],
            color=_COLOURS[order % len(_COLOURS)],
            markersize=5.5,
            alpha=0.8,
            label=adversary,
        )
    draw.upright(ax, mean, BLACK)
    ax.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color=GREY, alpha=0.4)
