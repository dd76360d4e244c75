"""What the matplotlib figures share beside the palette: sizes, widths of texts, axes of stages."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.textpath import TextPath

WIDTH = 14.0
"""Of every figure, in inches."""
SMALL, TEXT, LARGE = 9.5, 10.5, 12.5
"""Font sizes, in points."""
MOST_TICKS = 12
_LONGEST = 22


def text_inches(text: str, size: float) -> float:
    """The width of a text at a font size in points, in inches."""
    if not text.strip():
        return 0.0
    plain = text.replace("$", r"\$")  # else it may be read as a formula
    return TextPath((0, 0), plain, size=size).get_extents().width / 72


def clipped(text: str, length: int = _LONGEST) -> str:
    """A text of at most so many characters, its middle left out: ends tell names apart."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def stage_axis(ax: Axes, names: Sequence[str], inches: float, *, labels: bool = True) -> None:
    """Stages along x, at 0, 1, …: their names, upright where they would run into each other.

    Args:
        ax: whose x axis it is.
        names: [S] of the stages.
        inches: the width of the axes.
        labels: whether the names are written.
    """
    step = -(-len(names) // MOST_TICKS)
    shown = [clipped(name) for name in names[::step]]
    room = inches / max(len(names), 1) * step
    tight = any(text_inches(name, SMALL) + 0.06 > room for name in shown)
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_xticks(range(0, len(names), step))
    ax.set_xticklabels(shown if labels else [], rotation=90 if tight else 0, parse_math=False)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
