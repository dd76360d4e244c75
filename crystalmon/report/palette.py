"""The colours that every figure and page shares; no plotting library is needed to know them.

They are those of Okabe and Ito (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

from crystalmon.runs.records import PHASES

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, SHADE = "#8A8A8A", "#F3F3F3"

STAGE_COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, BLACK)
"""Of the stages of a scan, the base's first."""

PHASE_COLOURS: dict[str, str] = dict(
    zip(PHASES, (SKY, YELLOW, BLUE, GREEN, VERMILION, GREY), strict=True)
)

PHASE_WORDS: dict[str, str] = dict(
    zip(
        PHASES,
        (
            "each wording still gets its own answers",
            "the wordings have begun to answer alike",
            "every wording gets nearly the same answers",
            "the answers still move, within what the winning prompt allows",
            "the wordings answer differently again",
            "the base answered alike from the start, so there was nothing to lose",
        ),
        strict=True,
    )
)
"""Each phase in plain words."""
