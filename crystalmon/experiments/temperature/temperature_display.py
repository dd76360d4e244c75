"""The temperature sweep as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from crystalmon.experiments.common import display_parts as draw
from crystalmon.report.palette import BLACK, BLUE, GREEN, GREY, VERMILION
from crystalmon.report.style import SMALL, new_figure
from crystalmon.runs.results import Estimate, Result

PANELS = {
    "entropy": ("entropy S(T), nats", BLUE),
    "heat_capacity": ("heat capacity C(T)", VERMILION),
    "reliability": ("reliability R(T)", BLUE),
    "objective": ("objective L(T)", GREEN),
}
_AT_ONE = ("entropy", "heat_capacity", "reliability")


def table(result: Result) -> str:
    """A line per task, their mean, and the two temperatures with their intervals."""
    detail, found = result.detail, result.estimates
    log_t = np.log(detail["temperatures"])
    rows: list[tuple[str, ...]] = [("task", "S(1)", "C(1)", "R(1)", "peak of C", "at T")]
    for name, curves in detail["tasks"].items():
        ones = [float(np.interp(0.0, log_t, curves[k], np.nan, np.nan)) for k in _AT_ONE]
        rows.append(_row(name, ones, detail["peaks"][name]))
    rows.append(_row("mean", [found[key].value for key in _AT_ONE], detail["peak"]))
    lines = [
        *draw.aligned(rows),
        "",
        f"C(T) peaks at T = {_place(found['peak_temperature'], detail['peak'])}, "
        f"at {found['peak_heat_capacity']}",
        f"L(T) = R − {result.settings['weight']:g} · Var S is highest at T = "
        f"{_place(found['optimal_temperature'], detail['optimum'])}, "
        f"at {found['optimal_objective']}",
    ]
    return "\n".join(lines)


def _row(name: str, ones: Sequence[float], peak: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{value:.3f}" for value in (*ones, peak["value"], peak["temperature"])]
    return (name, *numbers[:-1], numbers[-1] + "*" * peak["edge"])


def _place(estimate: Estimate, peak: dict[str, Any]) -> str:
    return f"{estimate}{' (an end of the grid)' if peak['edge'] else ''}"


def figure(result: Result) -> Figure:
    """S, C, R and L against T: each task in grey, the mean with its 95% interval."""
    drawn = new_figure(7.0)
    axes = drawn.subplots(2, 2, sharex=True)
    for ax, key in zip(axes.flat, PANELS, strict=True):
        _draw(ax, result.detail, key)
    for ax, key, word in (
        (axes[0, 1], "peak_temperature", "peak"),
        (axes[1, 1], "optimal_temperature", "best"),
    ):
        found = result.estimates[key]
        draw.upright(ax, found, BLACK)
        if np.isfinite(found.value):
            ax.set_title(f"{word} at T = {found}", fontsize=SMALL, loc="right")
    return drawn


def _draw(ax: Axes, detail: Any, key: str) -> None:
    label, colour = PANELS[key]
    temperatures = detail["temperatures"]
    for curves in detail["tasks"].values():
        if key in curves:
            ax.plot(temperatures, curves[key], color=GREY, linewidth=0.7, alpha=0.6)
    draw.band(ax, temperatures, detail["mean"][key], colour)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    draw.frame(ax, "sampling temperature T", label)
