"""What the matplotlib figures share beside the palette: sizes, frames, names, axes, files.

Figures use matplotlib's object-oriented interface, without pyplot: nothing global changes, and no
display is needed. Names come from whoever made the run, so none is read as a formula.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.names import FIGURE_KINDS

WIDTH = 14.0
"""Of every figure, in inches."""
SMALL, TEXT, LARGE = 9.5, 10.5, 12.5
"""Font sizes, in points."""
TITLE: dict[str, Any] = {"fontsize": LARGE, "fontweight": "bold", "parse_math": False}
"""How a task's name stands over its panel."""
COLUMNS = 5
"""Tasks side by side, where each has a panel."""
MOST_TICKS = 12


def new_figure(height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure of the common width and so many inches high."""
    return Figure(figsize=(WIDTH, height), dpi=100, facecolor="white", layout=layout)  # pyright: ignore[reportArgumentType]


def row_count(panels: int) -> int:
    """How many rows of `COLUMNS` so many panels fill."""
    return -(-panels // COLUMNS)


def task_axes(
    figure: Figure, names: Sequence[str], heights: Sequence[float] | None = None
) -> list[Axes]:
    """One panel a task, under its name, in rows of `COLUMNS` and of these relative heights."""
    grid = figure.subplots(row_count(len(names)), COLUMNS, squeeze=False, height_ratios=heights)
    panels = list(grid.flat)
    for ax, name in zip(panels, names, strict=False):
        ax.set_title(clipped(name), loc="left", **TITLE)
        open_frame(ax)
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    return panels[: len(names)]


def open_frame(ax: Axes) -> None:
    """Axes without the lines at the top and on the right, and with small labels."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)


def strip(ax: Axes, name: str = "") -> None:
    """Axes without a frame and a scale of y, with a name on the left."""
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_ylabel(name, fontsize=TEXT, rotation=0, ha="right", va="center")


def text_inches(text: str, size: float) -> float:
    """The width of a text at a font size in points, in inches."""
    if not text.strip():
        return 0.0
    plain = text.replace("$", r"\$")  # else it may be read as a formula
    return TextPath((0, 0), plain, size=size).get_extents().width / 72


def clipped(text: str, length: int = 22) -> str:
    """A text of at most so many characters, its middle left out: ends tell names apart."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def stage_axis(ax: Axes, names: Sequence[str], inches: float, *, labels: bool = True) -> None:
    """Stages along x, at 0, 1, …; names upright where they would not fit side by side in `inches`.

    Of many stages only some are named; with `labels` false, none.
    """
    step, shown = _shown(names)
    upright = upright_inches(names, inches) > 0
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_xticks(range(0, len(names), step))
    ax.set_xticklabels(shown if labels else [], rotation=90 if upright else 0, parse_math=False)
    open_frame(ax)


def upright_inches(names: Sequence[str], inches: float) -> float:
    """How high the names of a `stage_axis` are, where they stand upright; else 0."""
    step, shown = _shown(names)
    longest = max((text_inches(name, SMALL) for name in shown), default=0.0)
    return longest if longest + 0.06 > inches / max(len(names), 1) * step else 0.0


def _shown(names: Sequence[str]) -> tuple[int, list[str]]:
    """Every how many stages one is named, and those names."""
    step = -(-len(names) // MOST_TICKS) or 1
    return step, [clipped(name) for name in names[::step]]


def figure_svg(figure: Figure) -> str:
    """A figure as transparent SVG, its letters as outlines; the same every time."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "crystalmon", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem.svg`, which is transparent, and `stem.png`; the files.

    Raises:
        RunFolderError: if the folder cannot take them.
    """
    png = io.BytesIO()
    figure.savefig(png, format="png")
    blocks = figure_svg(figure).encode(), png.getvalue()
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in FIGURE_KINDS]
    with explained(stem.parent, "take the figures"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, block in zip(files, blocks, strict=True):
            write_whole(file, block)
    return files
