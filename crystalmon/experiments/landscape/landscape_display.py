"""The landscape as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crystalmon.experiments.common import display_parts as draw
from crystalmon.report.palette import BLUE, SHADE
from crystalmon.report.style import SMALL, new_figure
from crystalmon.runs.results import Estimate, Result

SHOWN_SHARE = 0.2
"""Share of the texts that must be as long for an interval to set the axis."""


def table(result: Result) -> str:
    """By category; the overall mean; the share of the first tokens."""
    detail, found = result.detail, result.estimates
    rows = [
        (name, str(row["instructions"]), str(Estimate(**row["free_energy"])))
        for name, row in detail["by_category"].items()
    ]
    rows.append(("all categories", str(len(detail["by_instruction"])), str(found["free_energy"])))
    lines = [
        *draw.aligned([("category", "instructions", "F in nats per token, 95% interval"), *rows]),
        "",
        f"share of the first {detail['early']} tokens in F: {found['early_share']}; were F the "
        f"same at every token: {detail['even_share']:.3g}",
        f"F = KL({result.models['model']} ‖ {result.models['base']}), along responses of the "
        f"{detail['drawn_from']}",
    ]
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """F by category with every instruction as a dot, and F by depth, with 95% intervals."""
    drawn = new_figure(max(3.8, 1.8 + 0.36 * len(result.detail["by_category"])))
    left, right = drawn.subplots(1, 2)
    _draw_categories(left, result)
    _draw_depth(right, result.detail)
    return drawn


def _draw_categories(ax: Axes, result: Result) -> None:
    detail = result.detail
    ranked = sorted(detail["by_category"].items(), key=lambda item: item[1]["free_energy"]["value"])
    draw.upright(ax, result.estimates["free_energy"])
    for y, (name, row) in enumerate(ranked):
        each = detail["by_instruction"].values()
        own = [one["free_energy"] for one in each if one["category"] == name]
        draw.row_of_estimate(ax, y, Estimate(**row["free_energy"]), own)
    ax.set_yticks(range(len(ranked)), [name.replace("_", " ") for name, _ in ranked])
    ax.set_ylim(-0.6, len(ranked) - 0.4)
    ax.set_xlim(left=0)
    below = "F in nats per token; a dot is an instruction"
    draw.frame(ax, below, title="by category, and their mean (grey)")


def _draw_depth(ax: Axes, detail: Mapping[str, Any]) -> None:
    early, depth = detail["early"], draw.columns(detail["depth"])
    ax.axvspan(0.5, early + 0.5, color=SHADE, linewidth=0, zorder=0, label=f"first {early} tokens")
    draw.band(ax, depth["token"], depth, BLUE, "mean")
    ax.set_xlim(0.5, len(depth["token"]) + 0.5)
    # the few texts that go on longest must not flatten the rest with their wide intervals
    least = SHOWN_SHARE * max(depth["texts"])
    told = [h for h, texts in zip(depth["high"], depth["texts"], strict=True) if texts >= least]
    highest = max([*filter(np.isfinite, told), *depth["value"]])
    ax.set_ylim(0, 1.08 * max(highest, 1e-6))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=SMALL, frameon=False, loc="best")
    draw.frame(ax, "token of the response", "F in nats", "by depth")
