"""The predictions as a forest plot: each effect with its interval, on an axis of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.predictions.judgements import (
    CONTRADICTED,
    SUPPORTED,
    UNDETERMINED,
    Prediction,
)
from crystalmon.report.palette import GREEN, GREY, VERMILION
from crystalmon.report.style import LARGE, SMALL, TEXT, WIDTH

VERDICT_COLOURS = {SUPPORTED: GREEN, CONTRADICTED: VERMILION, UNDETERMINED: GREY}
_ROW = 0.62
_LEFT, _RIGHT = 0.42, 0.60


def predictions_figure(predictions: Sequence[Prediction]) -> Figure:
    """A row a prediction; right of the line is what was predicted.

    Effects have units of their own, so every row is scaled to its own interval and 0.
    """
    height = 1.1 + _ROW * max(len(predictions), 1)
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.02, 1 - 0.35 / height, "Predictions", fontsize=LARGE, fontweight="bold")
    for row, each in enumerate(predictions):
        bottom = 1 - (0.75 + _ROW * (row + 0.85)) / height
        ax = figure.add_axes((_LEFT, bottom, _RIGHT - _LEFT, _ROW * 0.7 / height))
        _draw_effect(ax, each)
        middle = bottom + 0.35 * _ROW / height
        figure.text(0.02, middle, each.claim, fontsize=TEXT, va="center")
        figure.text(0.615, middle, _effect(each), fontsize=SMALL, va="center")
        colour = VERDICT_COLOURS[each.verdict]
        figure.text(
            0.90, middle, each.verdict, fontsize=TEXT, va="center", color=colour, fontweight="bold"
        )
    figure.text(
        _LEFT,
        0.18 / height,
        "line: no effect; to its right: as predicted; each row on its own scale",
        fontsize=SMALL,
    )
    return figure


def _draw_effect(ax: Axes, prediction: Prediction) -> None:
    effect, colour = prediction.effect, VERDICT_COLOURS[prediction.verdict]
    ends = [end for end in (effect.low, effect.value, effect.high) if math.isfinite(end)]
    reach = 1.25 * max([abs(end) for end in ends] or [1.0]) or 1.0
    ax.axvline(0, color=GREY, linewidth=1.0)
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        ax.plot([effect.low, effect.high], [0, 0], color=colour, linewidth=2.4)
    if math.isfinite(effect.value):
        ax.plot(effect.value, 0, "o", color=colour, markersize=7)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-1, 1)
    ax.set_axis_off()


def _effect(prediction: Prediction) -> str:
    if math.isnan(prediction.effect.value):
        return prediction.reason if prediction.n == 0 else prediction.measure
    return f"{prediction.measure}\n{prediction.effect}, n = {prediction.n}"
