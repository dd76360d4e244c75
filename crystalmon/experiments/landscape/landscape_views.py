"""The landscape as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crystalmon.report.palette import BLUE, GREY, ORANGE, SHADE
from crystalmon.report.style import LARGE, SMALL, TEXT
from crystalmon.runs.results import Estimate, Result


def table(result: Result) -> str:
    """By category; the overall mean; the share of the first tokens."""
    detail = result.detail
    rows = [
        (name, str(row["instructions"]), str(_estimate(row["free_energy"])))
        for name, row in detail["by_category"].items()
    ]
    count = str(len(detail["by_instruction"]))
    rows.append(("all categories", count, str(result.estimates["free_energy"])))
    share = result.estimates["early_share"]
    lines = aligned([("category", "instructions", "F in nats per token, 95% interval"), *rows])
    lines += [
        "",
        f"share of the first {detail['early']} tokens in F: {share}; were F the same at every "
        f"token: {detail['even_share']:.3g}",
        f"F = KL({result.models['model']} ‖ {result.models['base']}), along responses of the "
        f"{detail['drawn_from']}",
    ]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side, the first one to the left, numbers to the right, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, last]).rstrip())
    return lines


def figure(result: Result) -> Figure:
    """F by category with every instruction as a dot, and F by depth, with 95% intervals."""
    count = len(result.detail["by_category"])
    drawn = Figure(
        figsize=(12.0, max(3.8, 1.8 + 0.36 * count)), dpi=100, facecolor="white", layout="tight"
    )
    left, right = drawn.subplots(1, 2)
    _categories(left, result)
    _depth(right, result.detail)
    return drawn


def _categories(ax: Axes, result: Result) -> None:
    detail = result.detail
    ranked = sorted(detail["by_category"].items(), key=lambda item: item[1]["free_energy"]["value"])
    overall = result.estimates["free_energy"]
    ax.axvspan(overall.low, overall.high, color=SHADE, linewidth=0, zorder=0)
    ax.axvline(overall.value, color=GREY, linewidth=1.0, zorder=1)
    for y, (name, row) in enumerate(ranked):
        each = detail["by_instruction"].values()
        own = [one["free_energy"] for one in each if one["category"] == name]
        dots(ax, own, y)
        error_bar(ax, _estimate(row["free_energy"]), y)
    ax.set_yticks(range(len(ranked)), [name.replace("_", " ") for name, _ in ranked])
    ax.set_ylim(-0.6, len(ranked) - 0.4)
    ax.set_xlim(left=0)
    frame(ax, "by category, and their mean (grey)", "F in nats per token; a dot is an instruction")


def dots(ax: Axes, values: Sequence[float], y: float) -> None:
    """Single values, under the estimate that they belong to."""
    below = [y - 0.22] * len(values)
    ax.plot(values, below, "o", color=BLUE, alpha=0.4, markersize=4, linewidth=0, zorder=2)


def error_bar(ax: Axes, found: Estimate, y: float) -> None:
    """An estimate and its interval, lying."""
    if np.isfinite([found.low, found.high]).all():
        ax.plot([found.low, found.high], [y, y], color=ORANGE, linewidth=2.5, zorder=3)
    ax.plot([found.value], [y], "D", color=ORANGE, markersize=6, markeredgecolor="black", zorder=4)


SHOWN_SHARE = 0.2
"""Of the texts, that must be as long for an interval to set the axis."""


def _depth(ax: Axes, detail: Mapping[str, Any]) -> None:
    early, depth = detail["early"], detail["depth"]
    ax.axvspan(0.5, early + 0.5, color=SHADE, linewidth=0, zorder=0, label=f"first {early} tokens")
    band(ax, [row["token"] for row in depth], depth, BLUE, "mean")
    ax.set_xlim(0.5, len(depth) + 0.5)
    # the few texts that go on longest must not flatten the rest with their wide intervals
    most = max(row["texts"] for row in depth)
    told = [row["high"] for row in depth if row["texts"] >= SHOWN_SHARE * most]
    highest = max([*filter(np.isfinite, told), *(row["value"] for row in depth)])
    ax.set_ylim(0, 1.08 * max(highest, 1e-6))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("F in nats", fontsize=TEXT)
    ax.legend(fontsize=SMALL, frameon=False, loc="best")
    frame(ax, "by depth", "token of the response")


def band(
    ax: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], colour: str, label: str
) -> None:
    """A series of estimates with their intervals as a band."""
    value, low, high = (
        np.array([row[key] for row in rows], dtype=np.float64) for key in ("value", "low", "high")
    )
    marker = "o" if len(x) <= 40 else None
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    ax.plot(x, value, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)


def frame(ax: Axes, title: str, below: str) -> None:
    """What every panel shares."""
    ax.set_title(title, fontsize=LARGE, loc="left")
    ax.set_xlabel(below, fontsize=TEXT)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)


def _estimate(value: Mapping[str, Any]) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"])
