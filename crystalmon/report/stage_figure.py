"""A chain of stages on one step axis, as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from crystalmon.metrics.catalogue import BY_KEY, DISTANCE, Metric, panels
from crystalmon.report import palette, stage_labels
from crystalmon.report.lanes import Lane, probed_chain
from crystalmon.report.palette import BLUE, GREEN, GREY, SHADE, VERMILION
from crystalmon.report.stage_labels import EVENT_LINE, NAME_ROW, StepAxis
from crystalmon.report.style import (
    TEXT,
    WIDTH,
    new_figure,
    open_frame,
    stage_axis,
    strip,
    text_inches,
    upright_inches,
)
from crystalmon.runs.records import PHASES
from crystalmon.runs.run import Run

_WHITE_TEXT = {BLUE, GREEN, VERMILION, GREY}
_LEFT, _RIGHT = 0.95, 2.1
_AXES_WIDTH = WIDTH - _LEFT - _RIGHT
_BOTTOM, _GAP = 0.5, 0.14
_ROW = 0.21
_SLIVER = 0.008
"""Share of a stage that its last probe takes up at the least."""


def stage_figure(runs: Sequence[Run]) -> Figure:
    """The stages of a chain laid end to end on one step axis.

    From the top: the suite's phase and events over how alike the wordings answer, with 95%
    intervals; the number of tasks in each phase; the KL from the base and its parts. The axis of
    scans has the names of their stages.

    Args:
        runs: the stages of one chain, in the order of training.

    Returns:
        A figure 1400 pixels wide at 100 dpi; write it with `figure.savefig(path)`.

    Raises:
        ValueError: if there is no run, or one without a probe.
    """
    lane = probed_chain(runs)
    end, margin = lane.starts[-1], 0.004 * lane.starts[-1]
    axis = StepAxis(-margin, end + margin, _AXES_WIDTH)
    events = [(start + event.step, event) for run, start, _ in lane.spans for event in run.events]
    suite = [(x, event) for x, event in events if event.task is None]
    labels = stage_labels.event_names(suite, axis)
    names = stage_labels.stage_names(lane, axis)
    rows = 1 + max((label.row for label in labels), default=-1)
    below = _BOTTOM + upright_inches(lane.stage_names, _AXES_WIDTH)
    heights = {"phase": 0.36, "events": rows * _ROW, "alike": 2.6, "tasks": 1.3, "kl": 1.9}
    top = 0.15 + NAME_ROW * (1 + max(name.row for name in names))
    shown = {name: inches for name, inches in heights.items() if inches}
    figure, axes = _stacked_axes(shown, top, below)
    for name, ax in axes.items():
        _draw_stages(ax, lane, axis, last=name == list(axes)[-1])
    _draw_phase_strip(axes["phase"], lane, axis)
    stage_labels.draw_stage_names(axes["phase"], names)
    if labels:
        stage_labels.draw_event_names(axes["events"], labels, rows)
    _draw_alike(axes["alike"], lane, [label.x for label in labels])
    _draw_tasks_by_phase(axes["tasks"], lane)
    _draw_distance(axes["kl"], lane)
    return figure


def _stacked_axes(
    heights: Mapping[str, float], top: float, below: float
) -> tuple[Figure, dict[str, Axes]]:
    """Axes of the given heights in inches, one below the other, sharing x."""
    height = top + below + sum(heights.values()) + _GAP * len(heights)
    figure = new_figure(height, layout=None)
    axes: dict[str, Axes] = {}
    top = height - top
    for name, inches in heights.items():
        box = (_LEFT / WIDTH, (top - inches) / height, _AXES_WIDTH / WIDTH, inches / height)
        axes[name] = figure.add_axes(box, sharex=axes.get("phase"), label=name)
        # no gap below the events: their lines go on into the next panel
        top -= inches + (0.0 if name == "events" else _GAP)
    return figure, axes


def _draw_stages(ax: Axes, lane: Lane, axis: StepAxis, *, last: bool) -> None:
    """What every panel shares: the shading of every other stage, the frame, the step axis."""
    for index, (_, start, stop) in enumerate(lane.spans):
        if index % 2 == 1:
            ax.axvspan(start, stop, color=SHADE, linewidth=0, zorder=0)
        if index > 0:
            ax.axvline(start, color=GREY, linewidth=0.8, zorder=1)
    words = "stages of the scan"
    if last and lane.stage_names:
        stage_axis(ax, lane.stage_names, _AXES_WIDTH)
    elif last:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]))
        words = "optimizer steps, stages laid end to end"
    ax.set_xlim(axis.low, axis.high)
    open_frame(ax)
    ax.tick_params(labelbottom=last, bottom=last)
    if last:
        ax.set_xlabel(words, fontsize=TEXT)


def _draw_phase_strip(ax: Axes, lane: Lane, axis: StepAxis) -> None:
    for start, stop, phase in _phase_blocks(lane):
        colour = palette.PHASE_COLOURS[phase]
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "label": phase}
        ax.add_patch(Rectangle((start, 0), stop - start, 1, **style))
        if text_inches(phase, TEXT) + 0.1 < axis.inches(stop) - axis.inches(start):
            on_it = "white" if colour in _WHITE_TEXT else "black"
            style = {"color": on_it, "fontsize": TEXT, "ha": "center", "va": "center"}
            ax.text(0.5 * (start + stop), 0.5, phase, **style)
    ax.set_ylim(0, 1)
    strip(ax, "suite")


def _phase_blocks(lane: Lane) -> list[tuple[float, float, str]]:
    """(start, stop, phase): what each probe has told, and where on the axis."""
    blocks: list[tuple[float, float, str]] = []
    for run, start, stop in lane.spans:
        edges = _edges(run, start, stop)
        for record, left, right in zip(run.records, edges[:-1], edges[1:], strict=True):
            if left > start and blocks[-1][2] == record.phase:
                left = blocks.pop()[0]
            blocks.append((float(left), float(right), record.phase))
    return blocks


def _edges(run: Run, start: int, stop: int) -> np.ndarray:
    """[S + 1] where each probe's stretch of the axis begins and ends.

    It lasts until the next probe; of a scan each stage has as much room on either side.
    """
    steps = start + np.array([record.step for record in run.records], dtype=np.float64)
    seen = np.maximum(stop - _SLIVER * (stop - start), steps[:-1])
    begins = 0.5 * (steps[:-1] + steps[1:]) if run.stages else np.minimum(steps[1:], seen)
    return np.concatenate([[start], begins, [stop]])


def _draw_alike(ax: Axes, lane: Lane, events: Iterable[float]) -> None:
    for key, width in (("crystallinity", 1.8), ("order", 2.4)):
        _draw_curve(ax, lane, BY_KEY[key], BY_KEY[key].label, linewidth=width)
    for x in events:
        ax.axvline(x, zorder=2, **EVENT_LINE)
    low, high = ax.get_ylim()
    ax.set_ylim(max(min(low, -0.04), -0.5), min(max(high, 1.04), 1.5))
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    ax.set_ylabel("do the wordings\nanswer alike?", fontsize=TEXT)
    _legend(ax, reverse=True)


def _draw_curve(ax: Axes, lane: Lane, metric: Metric, label: str, **line: Any) -> None:
    """One metric, stage by stage, with its 95% interval as a band."""
    colour = palette.CURVE_COLOURS[metric.key]
    line = {"color": colour, "linewidth": 1.8, "markersize": 3.5, "zorder": 4} | line
    band = {"color": colour, "alpha": 0.18, "linewidth": 0, "zorder": 3}
    for run, start, _ in lane.spans:
        steps, values = run.series(metric.key)
        low, high = run.intervals(metric.key)
        ax.fill_between(start + steps, low, high, **band)
        marker = "o" if len(steps) <= 12 else None
        ax.plot(start + steps, values, label=label, marker=marker, **line)


def _legend(ax: Axes, *, reverse: bool = False) -> None:
    """One entry a label, outside on the right, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    names = list(unique)[::-1] if reverse else list(unique)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.005, 1.04), "borderaxespad": 0.0}
    size = {"frameon": False, "fontsize": TEXT, "handlelength": 1.5, "labelspacing": 0.35}
    ax.legend([unique[name] for name in names], names, **beside, **size)


def _draw_tasks_by_phase(ax: Axes, lane: Lane) -> None:
    """The number of tasks in each phase, stacked: where the suite is of two minds."""
    phases = [[task.phase for task in record.tasks.values()] for record in lane.records]
    present = {phase for each in phases for phase in each}
    for index, (run, start, stop) in enumerate(lane.spans):
        below = np.zeros(len(run.records))
        own = [each for each, stage in zip(phases, lane.stages, strict=True) if stage == index]
        for phase in (phase for phase in PHASES if phase in present):
            above = below + np.array([each.count(phase) for each in own])
            style = {"fill": True, "color": palette.PHASE_COLOURS[phase], "label": phase}
            ax.stairs(above, _edges(run, start, stop), baseline=below, **style)
            below = above
    ax.set_ylim(0, max(1, *map(len, phases)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.set_ylabel("tasks in\neach phase", fontsize=TEXT)
    _legend(ax)


def _draw_distance(ax: Axes, lane: Lane) -> None:
    """The KL from the base; its parts add up to the whole, so they are stacked under its line."""
    metrics = next(iter(panels()[DISTANCE].values()))
    for run, start, _ in lane.spans:
        below = 0.0
        for metric in filter(palette.is_part, metrics):
            steps, values = run.series(metric.key)
            style = {"color": palette.CURVE_COLOURS[metric.key], "alpha": 0.5, "linewidth": 0}
            ax.fill_between(start + steps, below, below + values, label=metric.label, **style)
            below = below + values
    for metric in itertools.filterfalse(palette.is_part, metrics):
        _draw_curve(ax, lane, metric, metric.label)
    ax.set_ylim(0, None)
    ax.set_ylabel("KL from the\nbase [nats]", fontsize=TEXT)
    _legend(ax, reverse=True)
