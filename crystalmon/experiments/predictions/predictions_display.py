"""The predictions as a table and as a forest plot: each effect with its interval and verdict."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.common import display_parts as draw
from crystalmon.experiments.common.statistics import CONTRADICTED, SUPPORTED, UNDETERMINED
from crystalmon.experiments.predictions.judgements import Prediction
from crystalmon.report.palette import GREEN, GREY, VERMILION
from crystalmon.report.style import LARGE, SMALL, TEXT, new_figure
from crystalmon.runs.results import Estimate, Result

VERDICT_COLOURS = {SUPPORTED: GREEN, CONTRADICTED: VERMILION, UNDETERMINED: GREY}
_ROW = 0.62
_LEFT, _RIGHT = 0.42, 0.60


def _predictions(result: Result) -> list[Prediction]:
    found = result.detail["predictions"]
    return [Prediction(**{**each, "effect": Estimate(**each["effect"])}) for each in found]


def table(result: Result) -> str:
    """A line each: claim, verdict, n, effect with interval; under it the reason."""
    predictions = _predictions(result)
    width = max(len(each.claim) for each in predictions)
    measure = max(len(each.measure) for each in predictions)
    lines = []
    for each in predictions:
        effect = "–" if math.isnan(each.effect.value) else str(each.effect)
        lines.append(
            f"{each.claim:<{width}}  {each.verdict:<12}  n {each.n:>3}  "
            f"{each.measure:<{measure}}  {effect}"
        )
        lines.append(f"    {each.reason}")
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """A row a prediction; right of the line is what was predicted.

    Effects have units of their own, so every row is scaled to its own interval and 0.
    """
    predictions = _predictions(result)
    height = 1.1 + _ROW * len(predictions)
    drawn = new_figure(height, None)
    drawn.text(0.02, 1 - 0.35 / height, "Predictions", fontsize=LARGE, fontweight="bold")
    for row, each in enumerate(predictions):
        bottom = 1 - (0.75 + _ROW * (row + 0.85)) / height
        ax = drawn.add_axes((_LEFT, bottom, _RIGHT - _LEFT, _ROW * 0.7 / height))
        colour = VERDICT_COLOURS[each.verdict]
        _draw_effect(ax, each.effect, colour)
        middle = bottom + 0.35 * _ROW / height
        drawn.text(0.02, middle, each.claim, fontsize=TEXT, va="center")
        drawn.text(0.615, middle, _words(each), fontsize=SMALL, va="center")
        verdict = drawn.text(0.90, middle, each.verdict, fontsize=TEXT, va="center")
        verdict.set(color=colour, fontweight="bold")
    below = "line: no effect; to its right: as predicted; each row on its own scale"
    drawn.text(_LEFT, 0.18 / height, below, fontsize=SMALL)
    return drawn


def _draw_effect(ax: Axes, effect: Estimate, colour: str) -> None:
    ends = [abs(end) for end in (effect.low, effect.value, effect.high) if math.isfinite(end)]
    reach = 1.25 * max(ends, default=1.0) or 1.0
    ax.axvline(0, color=GREY, linewidth=1.0)
    if draw.has_interval(effect):
        ax.plot([effect.low, effect.high], [0, 0], color=colour, linewidth=2.4)
    if math.isfinite(effect.value):
        ax.plot(effect.value, 0, "o", color=colour, markersize=7)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-1, 1)
    ax.set_axis_off()


def _words(prediction: Prediction) -> str:
    if math.isnan(prediction.effect.value):
        return prediction.reason if prediction.n == 0 else prediction.measure
    return f"{prediction.measure}\n{prediction.effect}, n = {prediction.n}"
