"""What the figures share: colours, sizes, and how wide a text is.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

from matplotlib.textpath import TextPath

from crystalmon.records import PHASES

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, SHADE = "#8A8A8A", "#F3F3F3"

PHASE_COLOURS: dict[str, str] = dict(
    zip(PHASES, (SKY, YELLOW, BLUE, GREEN, VERMILION, GREY), strict=True)
)

WIDTH = 14.0
"""Of every figure, in inches."""
SMALL, TEXT, LARGE = 9.5, 10.5, 12.5
"""Font sizes, in points."""


def text_inches(text: str, size: float) -> float:
    """The width of a text at a font size in points, in inches."""
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0
