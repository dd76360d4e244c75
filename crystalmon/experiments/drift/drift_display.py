"""The drift as a table and as a picture."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.common import display_parts as draw
from crystalmon.report.palette import BLUE, GREY, SHADE, VERMILION
from crystalmon.report.style import SMALL, new_figure
from crystalmon.runs.plurals import counted
from crystalmon.runs.results import Result

_WORDS = {
    "slope": "slope, nats per token",
    "level": "mean D after the burn-in, nats",
    "slope_repeated": "slope with the instruction repeated midway",
    "slope_change": "the repeated one's slope less the plain one's",
    "repeat_effect": "D in the second half, repeated less plain, nats",
}
_SLOPES = {"slope_change": "change", "slope_repeated": "repeated", "slope": "once"}


def table(result: Result) -> str:
    """The slopes, the level, and what the repetition changes."""
    rows = [
        (words, str(result.estimates[k])) for k, words in _WORDS.items() if k in result.estimates
    ]
    detail, settings = result.detail, result.settings
    lines = [
        *draw.aligned([("quantity", "mean over instructions, 95% interval"), *rows]),
        "",
        f"{counted(len(detail['by_instruction']), 'instruction')}, "
        f"{settings['tokens']} tokens each, every {settings['every']}; the first "
        f"{detail['burn_in']} after each start left out",
    ]
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """D(t) with its interval, with and without the repetition; the slope of every instruction."""
    drawn = new_figure(4.6)
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
    _draw_profile(left, result)
    _draw_slopes(right, result)
    return drawn


def _draw_profile(ax: Axes, result: Result) -> None:
    detail = result.detail
    burn_in, half = detail["burn_in"], detail["half"]
    ax.axvspan(0, burn_in, color=SHADE, linewidth=0, zorder=0, label="left out")
    start = {"t": 0, "value": 0.0, "low": 0.0, "high": 0.0}
    plain = draw.columns([start, *detail["profile"]])
    draw.band(ax, plain["t"], plain, BLUE, "instruction once")
    if "repeated" in detail:
        ax.axvspan(half, half + burn_in, color=SHADE, linewidth=0, zorder=0)
        ax.axvline(half, color=GREY, linewidth=1.0, zorder=1)
        repeated = draw.columns(detail["repeated"])
        draw.band(ax, repeated["t"], repeated, VERMILION, "repeated midway")
    ax.set_xlim(0, plain["t"][-1])
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=SMALL, frameon=False, loc="lower right")
    draw.frame(ax, "tokens generated, t", "D(t) in nats", "from the instruction alone")


def _draw_slopes(ax: Axes, result: Result) -> None:
    shown = {key: name for key, name in _SLOPES.items() if key in result.estimates}
    rows = result.detail["by_instruction"].values()
    for y, key in enumerate(shown):
        draw.row_of_estimate(ax, y, result.estimates[key], [row[key] for row in rows])
    ax.axvline(0, color=GREY, linewidth=1.0, zorder=1)
    ax.set_yticks(range(len(shown)), list(shown.values()))
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    draw.frame(ax, "nats per token; a dot is an instruction", title="slopes")
