"""The colours of every figure and page: those of Okabe and Ito (2008), safe for the colour-blind.

This module does not load matplotlib.
"""

from __future__ import annotations

from itertools import cycle

from crystalmon.metrics.catalogue import METRICS, NOT_MEASURABLE, PHASES, Metric

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, SHADE = "#8A8A8A", "#F3F3F3"

STAGE_COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, BLACK)
"""Of the stages of a scan; the first is the base's."""

_OF_PHASES = (SKY, YELLOW, BLUE, GREEN, VERMILION, GREY, SHADE)
PHASE_COLOURS: dict[str, str] = dict(zip(PHASES, _OF_PHASES, strict=True))
PHASE_WORDS = {
    "liquid": "each wording still gets its own answers",
    "nucleating": "the wordings have begun to answer alike",
    "crystallized": "every wording gets nearly the same answers",
    "settling": "the answers still move, within what the winning prompt allows",
    "melting": "the wordings answer differently again",
    "ordered": "the base answered alike from the start, so there was nothing to lose",
    NOT_MEASURABLE: "the listed answers are too rarely given, now or in the base, to tell",
}
"""Each phase in plain words."""

CURVES: tuple[Metric, ...] = tuple(
    m for m in METRICS if m.panel is not None and m.level == "both" and m.key != "phase"
)
"""The metrics that are drawn as curves: those with a panel. The phase is drawn as a strip."""

_CYCLE = (BLUE, PURPLE, ORANGE, SKY, GREY, SHADE, BLACK, GREEN, YELLOW, VERMILION)
CURVE_COLOURS = {m.key: colour for m, colour in zip(CURVES, cycle(_CYCLE), strict=False)}


def is_part(metric: Metric) -> bool:
    """Whether a metric is a part of another one on its panel, whose key its own begins with.

    >>> [metric.key for metric in CURVES if is_part(metric)]
    ['free_energy_choice', 'free_energy_format']
    """
    return any(metric.panel == m.panel and metric.key.startswith(f"{m.key}_") for m in CURVES)
