"""The temperature sweep as a table and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crystalmon.runs.results import Estimate, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("entropy", "entropy S(T), nats"),
    ("heat_capacity", "heat capacity C(T)"),
    ("reliability", "reliability R(T)"),
    ("objective", "objective L(T)"),
)


def temperature_table(result: Result) -> str:
    """A line per task, their mean, and the two temperatures with their intervals."""
    detail, found = result.detail, result.estimates
    log_t = np.log(detail["temperatures"])
    width = max(len("mean"), *map(len, detail["tasks"]))
    lines = [
        f"{'task':<{width}}  {'S(1)':>7}{'C(1)':>9}{'R(1)':>7}{'peak of C':>11}{'at T':>8}",
    ]
    for name, curves in detail["tasks"].items():
        ones = [_at_one(log_t, curves[key]) for key, _ in PANELS[:3]]
        lines.append(f"{name:<{width}}  {_cells(ones, detail['peaks'][name])}")
    means = [found[key].value for key, _ in PANELS[:3]]
    lines.append(f"{'mean':<{width}}  {_cells(means, detail['peak'])}")
    weight = result.settings["weight"]
    return "\n".join(
        [
            *lines,
            "",
            f"C(T) peaks at T = {_place(found['peak_temperature'], detail['peak'])}, "
            f"at {found['peak_heat_capacity']}",
            f"L(T) = R − {weight:g} · Var S is highest at T = "
            f"{_place(found['optimal_temperature'], detail['optimum'])}, "
            f"at {found['optimal_objective']}",
        ]
    )


def _cells(ones: list[float], peak: dict[str, Any]) -> str:
    entropy, heat_capacity, reliability = ones
    where = peak["temperature"]
    return (
        f"{entropy:7.3f}{heat_capacity:9.3f}{reliability:7.3f}{peak['value']:11.3f}"
        f"{where:7.3f}{'*' if peak['edge'] else ' '}"
    ).rstrip()


def _place(estimate: Estimate, peak: dict[str, Any]) -> str:
    return f"{estimate}{' (an end of the grid)' if peak['edge'] else ''}"


def _at_one(log_t: np.ndarray, curve: list[float]) -> float:
    inside = log_t[0] <= 0 <= log_t[-1]
    return float(np.interp(0.0, log_t, curve)) if inside else np.nan


def temperature_figure(result: Result) -> Figure:
    """S, C, R and L against T: each task in grey, the mean with its 95% interval."""
    from matplotlib.figure import Figure

    from crystalmon.report.palette import BLUE, GREEN, VERMILION
    from crystalmon.report.style import SMALL, WIDTH

    figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    colours = (BLUE, VERMILION, BLUE, GREEN)
    for ax, (key, label), colour in zip(axes.flat, PANELS, colours, strict=True):
        _draw(ax, result.detail, key, colour)
        ax.set_ylabel(label, fontsize=SMALL)
        ax.tick_params(labelsize=SMALL)
    marks = ((axes[0, 1], "peak_temperature", "peak"), (axes[1, 1], "optimal_temperature", "best"))
    for ax, key, word in marks:
        _mark(ax, result.estimates[key], word)
    for ax in axes[1]:
        ax.set_xlabel("sampling temperature T", fontsize=SMALL)
    return figure


def _draw(ax: Axes, detail: Any, key: str, colour: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    from crystalmon.report.palette import GREY

    temperatures, band = detail["temperatures"], detail["mean"][key]
    for curves in detail["tasks"].values():
        if key in curves:
            ax.plot(temperatures, curves[key], color=GREY, linewidth=0.7, alpha=0.6)
    low, high = band["low"], band["high"]
    ax.fill_between(temperatures, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(temperatures, band["value"], color=colour, linewidth=2)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.spines[["top", "right"]].set_visible(False)
    ax.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")


def _mark(ax: Axes, estimate: Estimate, word: str) -> None:
    """A line at a temperature, with its interval; nothing where there is none."""
    from crystalmon.report.palette import BLACK
    from crystalmon.report.style import SMALL

    if not np.isfinite(estimate.value):
        return
    ax.axvline(estimate.value, color=BLACK, linewidth=1.0)
    if np.isfinite([estimate.low, estimate.high]).all():
        ax.axvspan(estimate.low, estimate.high, color=BLACK, alpha=0.08, linewidth=0)
    ax.set_title(f"{word} at T = {estimate}", fontsize=SMALL, loc="right")
