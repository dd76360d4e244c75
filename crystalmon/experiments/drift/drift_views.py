"""Drift as a table and as a picture."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystalmon.experiments.landscape.landscape_views import aligned, band, dots, error_bar, frame
from crystalmon.report.palette import BLUE, GREY, SHADE, VERMILION
from crystalmon.report.style import SMALL, TEXT
from crystalmon.runs.results import Result

_WORDS = {
    "slope": "slope, nats per token",
    "level": "mean D after the burn-in, nats",
    "slope_repeated": "slope with the instruction repeated midway",
    "slope_change": "the repeated one's slope less the plain one's",
    "repeat_effect": "D in the second half, repeated less plain, nats",
}


def table(result: Result) -> str:
    """The slopes, the level, and what the repetition changes."""
    rows = [
        (words, str(result.estimates[k])) for k, words in _WORDS.items() if k in result.estimates
    ]
    detail, settings = result.detail, result.settings
    lines = aligned([("quantity", "mean over instructions, 95% interval"), *rows])
    lines += [
        "",
        f"{len(detail['by_instruction'])} instructions, {settings['tokens']} tokens each, "
        f"every {settings['every']}; the first {detail['burn_in']} after each start left out",
    ]
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """D(t) with its interval, with and without the repetition; the slope of every instruction."""
    drawn = Figure(figsize=(12.0, 4.6), dpi=100, facecolor="white", layout="tight")
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
    _profile(left, result)
    _slopes(right, result)
    return drawn


def _profile(ax: Axes, result: Result) -> None:
    detail = result.detail
    burn_in, half = detail["burn_in"], detail["half"]
    ax.axvspan(0, burn_in, color=SHADE, linewidth=0, zorder=0, label="left out")
    plain = [{"t": 0, "value": 0.0, "low": 0.0, "high": 0.0}, *detail["profile"]]
    band(ax, [row["t"] for row in plain], plain, BLUE, "instruction once")
    if "repeated" in detail:
        ax.axvspan(half, half + burn_in, color=SHADE, linewidth=0, zorder=0)
        ax.axvline(half, color=GREY, linewidth=1.0, zorder=1)
        rows = detail["repeated"]
        band(ax, [row["t"] for row in rows], rows, VERMILION, "repeated midway")
    ax.set_xlim(0, plain[-1]["t"])
    ax.set_ylim(bottom=0)
    ax.set_ylabel("D(t) in nats", fontsize=TEXT)
    ax.legend(fontsize=SMALL, frameon=False, loc="lower right")
    frame(ax, "from the instruction alone", "tokens generated, t")


def _slopes(ax: Axes, result: Result) -> None:
    kinds = {"slope": "once", "slope_repeated": "repeated", "slope_change": "change"}
    kinds = {key: name for key, name in kinds.items() if key in result.estimates}
    rows = result.detail["by_instruction"].values()
    for y, key in enumerate(reversed(kinds)):
        own = [row[key] for row in rows]
        dots(ax, own, y)
        error_bar(ax, result.estimates[key], y)
    ax.axvline(0, color=GREY, linewidth=1.0, zorder=1)
    ax.set_yticks(range(len(kinds)), [kinds[key] for key in reversed(kinds)])
    ax.set_ylim(-0.6, len(kinds) - 0.4)
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    frame(ax, "slopes", "nats per token; a dot is an instruction")
