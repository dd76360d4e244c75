"""Sharpness against the KL penalty, as a table and as a figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from crystalmon.experiments.common import display_parts as draw
from crystalmon.experiments.sharpness.kl_penalty import IN_TREND
from crystalmon.report.palette import BLUE, GREY, VERMILION
from crystalmon.report.style import SMALL, new_figure
from crystalmon.runs.plurals import counted
from crystalmon.runs.results import Estimate, Result

LABELS = {
    "width": "transition width, steps",
    "heat_capacity": "heat capacity at the end",
    "susceptibility": "susceptibility in it",
}


def table(result: Result) -> str:
    """A line per run and one per trend, with its verdict on the essay's expectation."""
    runs, found = result.detail["runs"], result.estimates
    rows = [("run", "beta", "seed", "heat capacity", "susceptibility", "width, steps")]
    for run in runs:
        seed = "–" if run["seed"] is None else str(run["seed"])
        numbers = (f"{run['heat_capacity']:.3f}", f"{run['susceptibility']:.3f}")
        rows.append((run["name"], f"{run['beta']:g}", seed, *numbers, _width(run)))
    trends = [("against beta", "Spearman ρ", "slope per factor e", "p", "verdict")]
    for key, label in LABELS.items():
        trend = result.detail["trends"][key]
        numbers = (str(found[f"{key}_correlation"]), str(found[f"{key}_slope"]))
        verdict = f"{trend['verdict']} ({counted(trend['runs'], 'run')})"
        trends.append((label, *numbers, f"{trend['p_value']:.3g}", verdict))
    lines = [*draw.aligned(rows), "", *draw.aligned(trends)]
    lines.append("expected at a lower beta: narrower, a higher heat capacity, more susceptible")
    if left_out := [run["name"] for run in runs if run["transition"] not in IN_TREND]:
        lines.append(f"no width in the trend: {', '.join(left_out)}")
    return "\n".join(lines)


def _width(run: dict[str, Any]) -> str:
    if run["transition"] == "none":
        return "no transition"
    shown = str(Estimate(run["width"], *run["width_interval"]))
    return shown if run["transition"] == "fitted" else f"{shown} ({run['transition']})"


def figure(result: Result) -> Figure:
    """A panel per measure, a mark per run against beta, and each beta's mean."""
    drawn = new_figure(4.2)
    for ax, key in zip(drawn.subplots(1, len(LABELS)), LABELS, strict=True):
        _draw(ax, result, key)
    return drawn


def _draw(ax: Axes, result: Result, key: str) -> None:
    runs = result.detail["runs"]
    beta, values = np.array([(run["beta"], run[key]) for run in runs]).T
    counted = np.array([key != "width" or run["transition"] in IN_TREND for run in runs])
    if key == "width":
        ends = np.array([run["width_interval"] for run in runs])
        reach = np.abs(ends - values[:, None]).T
        ax.errorbar(beta, values, reach, fmt="none", ecolor=GREY, elinewidth=1)
    ax.plot(beta[counted], values[counted], "o", color=BLUE, markersize=5)
    ax.plot(beta[~counted], values[~counted], "o", color=BLUE, markersize=5, mfc="none")
    levels = np.unique(beta)
    known = [level for level in levels if np.isfinite(values[beta == level]).any()]
    means = [np.nanmean(values[beta == level]) for level in known]
    ax.plot(known, means, color=VERMILION, linewidth=1.5)
    if levels[0] == 0:  # a penalty of 0 has a place too
        ax.set_xscale("symlog", linthresh=float(levels[1]))
    else:
        ax.set_xscale("log")
    ax.set_xticks(levels, [f"{level:g}" for level in levels])
    ax.xaxis.set_minor_formatter(NullFormatter())
    draw.frame(ax, "KL penalty beta", LABELS[key])
    ax.set_title(_title(result, key), fontsize=SMALL, loc="left")


def _title(result: Result, key: str) -> str:
    found = result.estimates[f"{key}_correlation"]
    if math.isnan(found.value):
        return "no trend can be told"
    return f"ρ = {found}: {result.detail['trends'][key]['verdict']}"
