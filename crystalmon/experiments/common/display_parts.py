"""What the experiments' tables and figures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from crystalmon.report.palette import BLUE, GREY, ORANGE, SHADE
from crystalmon.report.style import LARGE, TEXT, open_frame
from crystalmon.runs.results import Estimate

MOST_MARKERS = 40
"""Points of a curve that are still marked one by one."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: the first to the left, numbers to the right, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return lines


def number(value: float | None) -> str:
    """A number in a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def frame(ax: Axes, x_label: str, y_label: str = "", title: str = "") -> None:
    """What every panel shares."""
    ax.set_title(title, fontsize=LARGE, loc="left")
    ax.set_xlabel(x_label, fontsize=TEXT)
    ax.set_ylabel(y_label, fontsize=TEXT)
    open_frame(ax)


def band(
    ax: Axes, x: Sequence[float], curve: Mapping[str, Sequence[Any]], colour: str, label: str = ""
) -> None:
    """A curve with its interval as a band: `value`, `low` and `high` at each x."""
    value, low, high = (np.array(curve[key], dtype=float) for key in ("value", "low", "high"))
    marker = "o" if len(x) <= MOST_MARKERS else None
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    ax.plot(x, value, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table's columns by name, from rows with the same keys."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def has_interval(found: Estimate) -> bool:
    """Whether an estimate has an interval that can be drawn."""
    return math.isfinite(found.low) and math.isfinite(found.high)


def upright(ax: Axes, found: Estimate, colour: str = GREY) -> None:
    """An estimate as a line across the panel, its interval as a ground; nothing where it is NaN."""
    if has_interval(found):
        ax.axvspan(found.low, found.high, color=SHADE, linewidth=0, zorder=0)
    if math.isfinite(found.value):
        ax.axvline(found.value, color=colour, linewidth=1.0, zorder=1)


def row_of_estimate(ax: Axes, y: float, found: Estimate, values: Sequence[float]) -> None:
    """An estimate with its interval along a row, and under it the single values behind it."""
    below = [y - 0.22] * len(values)
    ax.plot(values, below, "o", color=BLUE, alpha=0.4, markersize=4, linewidth=0, zorder=2)
    if has_interval(found):
        ax.plot([found.low, found.high], [y, y], color=ORANGE, linewidth=2.5, zorder=3)
    ax.plot([found.value], [y], "D", color=ORANGE, markersize=6, markeredgecolor="black", zorder=4)
