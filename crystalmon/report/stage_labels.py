"""Where the names of stages and events stand on a step axis, so that none runs into another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from crystalmon.report.lanes import Lane
from crystalmon.report.palette import BLACK
from crystalmon.report.style import LARGE, SMALL, strip, text_inches
from crystalmon.runs.records import Event

EVENT_LINE = {"color": BLACK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
NAME_ROW = 0.24
"""The height of a row of stages' names, in inches."""


class Label(NamedTuple):
    """A text at `x` on the axis, in row `row` of the labels; `align` says on which side of x."""

    text: str
    x: float
    row: int
    align: str


@dataclass(frozen=True)
class StepAxis:
    """The common step axis on paper.

    Args:
        low, high: the steps where it begins and ends.
        width: its length in inches.
    """

    low: float
    high: float
    width: float

    def inches(self, x: float) -> float:
        """How far right of its beginning the step x lies."""
        return (x - self.low) / (self.high - self.low) * self.width


def stage_names(lane: Lane, axis: StepAxis) -> list[Label]:
    """Each stage's name over its middle, moved inward where it would leave the axis."""
    ends: list[float] = []
    labels: list[Label] = []
    for run, start, stop in lane.spans:
        half = 0.55 * text_inches(run.name, LARGE)
        middle = axis.inches(0.5 * (start + stop))
        middle = min(max(middle, half), max(axis.width - half, half))
        row = _free_row(ends, middle - half, middle + half + 0.1)
        x = axis.low + middle / axis.width * (axis.high - axis.low)
        labels.append(Label(run.name, x, row, "center"))
    return labels


def event_names(events: Iterable[tuple[float, Event]], axis: StepAxis) -> list[Label]:
    """Each event's name on the right of its line, or on the left where it would leave the axis."""
    ends: list[float] = []
    labels: list[Label] = []
    for x, event in events:
        text = event.kind.replace("_", " ")
        left, width = axis.inches(x), text_inches(text, SMALL) + 0.12
        align = "left" if left + width <= axis.width else "right"
        left = left if align == "left" else left - width
        labels.append(Label(text, x, _free_row(ends, left, left + width), align))
    return labels


def _free_row(ends: list[float], left: float, right: float) -> int:
    """The first row whose texts all end before `left`; notes that it is now taken to `right`."""
    row = next((index for index, end in enumerate(ends) if left >= end), len(ends))
    ends[row : row + 1] = [right]
    return row


def draw_stage_names(ax: Axes, labels: Sequence[Label]) -> None:
    """Write the names above the axes."""
    bold = {"va": "bottom", "fontsize": LARGE, "fontweight": "bold"}
    for label in labels:
        _write(ax, label, 1.0, (0, 4 + 72 * NAME_ROW * label.row), **bold)


def draw_event_names(ax: Axes, labels: Sequence[Label], rows: int) -> None:
    """Write the names within the axes, each beside a line that goes down to the next panel."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for label in labels:
        middle = rows - label.row - 0.5
        ax.plot([label.x, label.x], [0, middle], **EVENT_LINE)
        offset = (4 if label.align == "left" else -4, 0)
        _write(ax, label, middle, offset, va="center", fontsize=SMALL, bbox=box)
    ax.set_ylim(0, rows)
    strip(ax)


def _write(ax: Axes, label: Label, y: float, offset: tuple[float, float], **style: Any) -> None:
    style |= {"textcoords": "offset points", "ha": label.align, "annotation_clip": False}
    ax.annotate(label.text, (label.x, y), offset, parse_math=False, **style)
