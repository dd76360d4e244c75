"""What the matplotlib figures share beside the palette: sizes, and how wide a text is."""

from __future__ import annotations

from matplotlib.textpath import TextPath

WIDTH = 14.0
"""Of every figure, in inches."""
SMALL, TEXT, LARGE = 9.5, 10.5, 12.5
"""Font sizes, in points."""


def text_inches(text: str, size: float) -> float:
    """The width of a text at a font size in points, in inches."""
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0
