"""What the matplotlib figures share: colours, sizes, and how wide a text is."""

from __future__ import annotations

from matplotlib.textpath import TextPath

from crystalmon.report.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PHASE_COLOURS,
    PURPLE,
    SHADE,
    SKY,
    VERMILION,
    YELLOW,
)

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "LARGE",
    "ORANGE",
    "PHASE_COLOURS",
    "PURPLE",
    "SHADE",
    "SKY",
    "SMALL",
    "TEXT",
    "VERMILION",
    "WIDTH",
    "YELLOW",
    "text_inches",
]

WIDTH = 14.0
"""Of every figure, in inches."""
SMALL, TEXT, LARGE = 9.5, 10.5, 12.5
"""Font sizes, in points."""


def text_inches(text: str, size: float) -> float:
    """The width of a text at a font size in points, in inches."""
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0
