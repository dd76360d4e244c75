"""Small HTML for notebooks: a table with a curve, from plain numbers and texts, all escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

_STYLE = "border-collapse:collapse;font-size:90%"
_CELL = "padding:.15em .8em .15em 0;text-align:left"


def table_html(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A small table of texts; no text can become markup.

    Args:
        title: above the table.
        head: the columns' names.
        rows: their cells. A cell made by `curve_svg` is drawn, every other one is text.
    """
    top = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_cell(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div><p style="margin:.2em 0"><b>{html.escape(title)}</b></p>'
        f'<table style="{_STYLE}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


class Markup(str):
    """Text that is HTML already."""


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Markup) else html.escape(cell)


def number(value: float | None) -> str:
    """Three digits, or a dash for what is missing or not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def curve_svg(values: Sequence[float]) -> Markup:
    """A curve without axes, scaled to its own range; nothing for fewer than two finite values."""
    points = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    if len(points) < 2:
        return Markup("")
    width, height = 120, 18
    low, high = min(v for _, v in points), max(v for _, v in points)
    across, up = (width - 4) / (len(values) - 1), (height - 4) / ((high - low) or 1.0)
    path = " ".join(f"{2 + i * across:.1f},{height - 2 - (v - low) * up:.1f}" for i, v in points)
    return Markup(
        f'<svg width="{width}" height="{height}" role="img" '
        f'aria-label="from {points[0][1]:.3g} to {points[-1][1]:.3g}">'
        f'<polyline points="{path}" fill="none" stroke="#0072B2" stroke-width="1.8"/></svg>'
    )
