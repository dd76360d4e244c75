"""Sharpness against the KL penalty, as a table and as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalmon.experiments.sharpness.kl_penalty import IN_TREND
from crystalmon.runs.results import Estimate, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "width": "transition width, steps",
    "heat_capacity": "heat capacity at the end",
    "susceptibility": "susceptibility in it",
}


def sharpness_table(result: Result) -> str:
    """A line per run and one per trend, with its verdict on the essay's expectation."""
    runs = result.detail["runs"]
    wide = max(len("run"), *(len(run["name"]) for run in runs))
    lines = [
        f"{'run':<{wide}}  {'beta':>8}{'seed':>6}{'heat capacity':>15}{'susceptibility':>16}"
        "  width, steps"
    ]
    for run in runs:
        seed = "–" if run["seed"] is None else str(run["seed"])
        lines.append(
            f"{run['name']:<{wide}}  {run['beta']:>8g}{seed:>6}{run['heat_capacity']:>15.3f}"
            f"{run['susceptibility']:>16.3f}  {_width(run)}"
        )
    lines += [
        "",
        f"{'against beta':<26}{'Spearman ρ':<26}{'slope per factor e':<28}{'p':<8}verdict",
    ]
    for key, label in LABELS.items():
        trend = result.detail["trends"][key]
        correlation, slope = (result.estimates[f"{key}_{of}"] for of in ("correlation", "slope"))
        lines.append(
            f"{label:<26}{correlation!s:<26}{slope!s:<28}{trend['p_value']:<8.3g}"
            f"{trend['verdict']} ({trend['runs']} runs)"
        )
    lines.append("expected at a lower beta: narrower, a higher heat capacity, more susceptible")
    left_out = [run["name"] for run in runs if run["transition"] not in IN_TREND]
    if left_out:
        lines.append(f"no width in the trend: {', '.join(left_out)}")
    return "\n".join(lines)


def _width(run: dict[str, Any]) -> str:
    if run["transition"] == "none":
        return "no transition"
    shown = str(Estimate(run["width"], *run["width_interval"]))
    return shown if run["transition"] == "fitted" else f"{shown} ({run['transition']})"


def sharpness_figure(result: Result) -> Figure:
    """A panel per measure, a mark per run against beta, and each beta's mean."""
    from matplotlib.figure import Figure

    from crystalmon.report.style import WIDTH

    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    for ax, key in zip(figure.subplots(1, len(LABELS)), LABELS, strict=True):
        _draw(ax, result, key)
    return figure


def _draw(ax: Axes, result: Result, key: str) -> None:
    from matplotlib.ticker import NullFormatter

    from crystalmon.report.palette import BLUE, GREY, VERMILION
    from crystalmon.report.style import SMALL

    runs = result.detail["runs"]
    beta = np.array([run["beta"] for run in runs])
    values = np.array([run[key] for run in runs])
    counted = np.array([key != "width" or run["transition"] in IN_TREND for run in runs])
    if key == "width":
        ends = np.array([run["width_interval"] for run in runs])
        spread = np.abs(ends - values[:, None]).T
        ax.errorbar(beta, values, spread, fmt="none", ecolor=GREY, elinewidth=1)
    ax.plot(beta[counted], values[counted], "o", color=BLUE, markersize=5)
    ax.plot(beta[~counted], values[~counted], "o", color=BLUE, markersize=5, mfc="none")
    levels = [level for level in sorted(set(beta)) if np.isfinite(values[beta == level]).any()]
    means = [np.nanmean(values[beta == level]) for level in levels]
    ax.plot(levels, means, color=VERMILION, linewidth=1.5)
    # a penalty of 0 has a place too
    positive = beta[beta > 0]
    linear = float(positive.min()) if len(positive) else 1.0
    if (beta == 0).any():
        ax.set_xscale("symlog", linthresh=linear)
    else:
        ax.set_xscale("log")
    ax.set_xticks(sorted(set(beta)), [f"{level:g}" for level in sorted(set(beta))])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("KL penalty beta", fontsize=SMALL)
    ax.set_ylabel(LABELS[key], fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(_title(result, key), fontsize=SMALL, loc="left")


def _title(result: Result, key: str) -> str:
    found = result.estimates[f"{key}_correlation"]
    if math.isnan(found.value):
        return "no trend can be told"
    return f"ρ = {found}: {result.detail['trends'][key]['verdict']}"
