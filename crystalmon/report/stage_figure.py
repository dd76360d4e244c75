"""A chain of stages on one step axis.

Built on matplotlib's object-oriented interface, without pyplot: nothing global changes, and no
display is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from crystalmon.report.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PHASE_COLOURS,
    PURPLE,
    SHADE,
    SKY,
    VERMILION,
    YELLOW,
)
from crystalmon.report.style import LARGE, SMALL, TEXT, WIDTH, text_inches
from crystalmon.report.summary import check_probed
from crystalmon.runs.reader import Run
from crystalmon.runs.records import EVENT_KINDS, PHASES, Event, ProbeRecord

_WHITE_TEXT = {BLUE, GREEN, VERMILION, GREY}
_LEFT, _RIGHT = 0.95, 2.1
_AXES_WIDTH = WIDTH - _LEFT - _RIGHT
_BOTTOM, _GAP = 0.5, 0.14
_ROW, _NAME_ROW = 0.21, 0.24


@dataclass(frozen=True)
class _Stage:
    """One run on the common axis: its own step s lies at start + s."""

    run: Run
    start: float
    stop: float


@dataclass(frozen=True)
class _Label:
    """A text beside a mark: at `x`, in row `row`, to the right of the mark or to its left."""

    text: str
    x: float
    row: int
    align: str


def stage_figure(runs: Sequence[Run]) -> Figure:
    """The stages of a chain laid end to end on one step axis.

    From the top: the suite's phase; its events; order, crystallinity, seed mass and liquidity
    relative to the reference, with 95% intervals; the number of tasks in each phase; the tasks'
    events; free energy and its two parts, in nats; coverage.

    Args:
        runs: the stages of one chain, in the order of training.

    Returns:
        A figure 1400 pixels wide at 100 dpi; write it with `figure.savefig(path)`.

    Raises:
        ValueError: if there is no run, or one without a probe.
    """
    check_probed(runs)
    stages = _lay_end_to_end(runs)
    events = [(stage, event) for stage in stages for event in stage.run.events]
    labels = _place_labels(stages, [(s, event) for s, event in events if event.task is None])
    kinds = [k for k in EVENT_KINDS if any(e.task is not None and e.kind == k for _, e in events)]
    rows = 1 + max((label.row for label in labels), default=-1)
    heights = {"phase": 0.36, "events": rows * _ROW, "order": 3.1, "tasks": 1.15}
    heights |= {"marks": len(kinds) * _ROW, "energy": 1.9, "coverage": 1.15}
    names = _stage_names(stages)
    top = 0.15 + _NAME_ROW * (1 + max(name.row for name in names))
    shown = {name: inches for name, inches in heights.items() if inches}
    figure, axes = _stacked_axes(shown, top)
    for name, ax in axes.items():
        _draw_stages(ax, stages, last=name == "coverage")
    _draw_phase_strip(axes["phase"], stages)
    _draw_stage_names(axes["phase"], names)
    if labels:
        _draw_event_labels(axes["events"], labels, rows)
    _draw_order(axes["order"], stages, [label.x for label in labels])
    _draw_tasks_by_phase(axes["tasks"], stages)
    if kinds:
        _draw_task_events(axes["marks"], events, kinds)
    _draw_energy(axes["energy"], stages)
    _draw_coverage(axes["coverage"], stages)
    return figure


def _lay_end_to_end(runs: Sequence[Run]) -> list[_Stage]:
    stages: list[_Stage] = []
    start = 0.0
    for run in runs:
        stop = start + max(run.records[-1].step, 1)
        stages.append(_Stage(run, start, stop))
        start = stop
    return stages


def _span(stages: Sequence[_Stage]) -> tuple[float, float]:
    """Where the common axis begins and ends: a little beyond the first and the last probe."""
    start, stop = stages[0].start, stages[-1].stop
    margin = 0.004 * (stop - start)
    return start - margin, stop + margin


def _inches(stages: Sequence[_Stage], x: float) -> float:
    """How far right of the axes' left edge the step x lies on paper."""
    low, high = _span(stages)
    return (x - low) / (high - low) * _AXES_WIDTH


def _stacked_axes(heights: Mapping[str, float], top: float) -> tuple[Figure, dict[str, Axes]]:
    """Axes of the given heights in inches, one below the other, sharing x."""
    height = top + _BOTTOM + sum(heights.values()) + _GAP * len(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    axes: dict[str, Axes] = {}
    top = height - top
    for name, inches in heights.items():
        box = (_LEFT / WIDTH, (top - inches) / height, _AXES_WIDTH / WIDTH, inches / height)
        axes[name] = figure.add_axes(box, sharex=axes.get("phase"), label=name)
        # no gap below the events: their lines go on into the next panel
        top -= inches + (0.0 if name == "events" else _GAP)
    return figure, axes


def _draw_stages(ax: Axes, stages: Sequence[_Stage], *, last: bool) -> None:
    """What every panel shares: the shading of every other stage, the frame, the step axis."""
    for index, stage in enumerate(stages):
        if index % 2 == 1:
            ax.axvspan(stage.start, stage.stop, color=SHADE, linewidth=0, zorder=0)
        if index > 0:
            ax.axvline(stage.start, color=GREY, linewidth=0.8, zorder=1)
    ax.set_xlim(*_span(stages))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL, labelbottom=last, bottom=last)
    if last:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("optimizer steps, stages laid end to end", fontsize=TEXT)


def _stage_names(stages: Sequence[_Stage]) -> list[_Label]:
    """Each stage's name over its middle, in the first row where it runs into no other."""
    low, high = _span(stages)
    scale = _AXES_WIDTH / (high - low)
    ends: list[float] = []
    labels: list[_Label] = []
    for stage in stages:
        half = 0.55 * text_inches(stage.run.name, LARGE)
        middle = _inches(stages, 0.5 * (stage.start + stage.stop))
        middle = min(max(middle, half), max(_AXES_WIDTH - half, half))
        row = _free_row(ends, middle - half, middle + half + 0.1)
        labels.append(_Label(stage.run.name, low + middle / scale, row, "center"))
    return labels


def _free_row(ends: list[float], left: float, right: float) -> int:
    """The first row whose texts all end before `left`; notes that it is now taken to `right`."""
    row = next((index for index, end in enumerate(ends) if left >= end), len(ends))
    ends[row : row + 1] = [right]
    return row


def _draw_stage_names(ax: Axes, labels: Sequence[_Label]) -> None:
    for label in labels:
        ax.annotate(
            label.text,
            (label.x, 1.0),
            xytext=(0, 4 + 72 * _NAME_ROW * label.row),
            textcoords="offset points",
            ha=label.align,
            va="bottom",
            fontsize=LARGE,
            fontweight="bold",
            annotation_clip=False,
        )


def _draw_phase_strip(ax: Axes, stages: Sequence[_Stage]) -> None:
    for stage in stages:
        for start, stop, phase in _phase_blocks(stage):
            colour = PHASE_COLOURS[phase]
            ax.add_patch(
                Rectangle(
                    (start, 0), stop - start, 1, facecolor=colour, edgecolor="white", label=phase
                )
            )
            if text_inches(phase, TEXT) + 0.1 < _inches(stages, stop) - _inches(stages, start):
                text_colour = "white" if colour in _WHITE_TEXT else "black"
                middle = 0.5 * (start + stop)
                ax.text(
                    middle, 0.5, phase, ha="center", va="center", color=text_colour, fontsize=TEXT
                )
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_ylabel("suite", fontsize=TEXT, rotation=0, ha="right", va="center")


def _phase_blocks(stage: _Stage) -> list[tuple[float, float, str]]:
    """(start, stop, phase), a probe standing for the steps nearer to it than to another."""
    edges = _edges(stage)
    blocks: list[tuple[float, float, str]] = []
    for record, start, stop in zip(stage.run.records, edges[:-1], edges[1:], strict=True):
        if blocks and blocks[-1][2] == record.phase:
            start = blocks.pop()[0]
        blocks.append((float(start), float(stop), record.phase))
    return blocks


def _edges(stage: _Stage) -> np.ndarray:
    """[S + 1] where each probe's stretch of the axis begins and ends."""
    steps = _steps(stage)
    return np.concatenate([[stage.start], 0.5 * (steps[:-1] + steps[1:]), [stage.stop]])


def _steps(stage: _Stage) -> np.ndarray:
    return stage.start + np.array([record.step for record in stage.run.records], dtype=np.float64)


def _place_labels(stages: Sequence[_Stage], events: Iterable[tuple[_Stage, Event]]) -> list[_Label]:
    """Each event's label beside its line, in the first row where it runs into no other."""
    ends: list[float] = []
    labels: list[_Label] = []
    for stage, event in events:
        text = event.kind.replace("_", " ")
        x = stage.start + event.step
        left, width = _inches(stages, x), text_inches(text, SMALL) + 0.12
        align = "left" if left + width <= _AXES_WIDTH else "right"
        left = left if align == "left" else left - width
        labels.append(_Label(text, x, _free_row(ends, left, left + width), align))
    return labels


def _draw_event_labels(ax: Axes, labels: Sequence[_Label], rows: int) -> None:
    for label in labels:
        middle = rows - label.row - 0.5
        ax.plot([label.x, label.x], [0, middle], color=BLACK, linewidth=1.0, linestyle=(0, (4, 2)))
        offset = 4 if label.align == "left" else -4
        ax.annotate(
            label.text,
            (label.x, middle),
            xytext=(offset, 0),
            textcoords="offset points",
            ha=label.align,
            va="center",
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )
    ax.set_ylim(0, rows)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _draw_order(ax: Axes, stages: Sequence[_Stage], events: Iterable[float]) -> None:
    reference = _reference_liquidity(stages)
    for stage in stages:
        _line(ax, stage, "liquidity", "liquidity / reference", SKY, scale=1 / reference, style="--")
        _line(ax, stage, "seed_mass", "seed mass", ORANGE)
        _line(ax, stage, "crystallinity", "crystallinity", PURPLE)
        _line(ax, stage, "order", "order", BLUE, width=2.4)
    for x in events:
        ax.axvline(x, color=BLACK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=2)
    low, high = ax.get_ylim()
    ax.set_ylim(max(min(low, -0.04), -0.5), min(max(high, 1.04), 1.5))
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    ax.set_ylabel("suite mean", fontsize=TEXT)
    _legend(ax, reverse=True)


def _reference_liquidity(stages: Sequence[_Stage]) -> float:
    """The suite's liquidity in the reference, in nats.

    A task's is liquidity / (1 − order) at any probe; the probe with the lowest order tells it
    best. NaN where no probe has an order.
    """
    records = [record for stage in stages for record in stage.run.records]
    record = min(records, key=lambda r: _finite(r.metrics.get("order", np.nan), np.inf))
    now = {name: task.metrics for name, task in record.tasks.items()}
    pairs = [(m.get("liquidity", np.nan), m.get("order", np.nan)) for m in now.values()]
    pairs = [(value, order) for value, order in pairs if np.isfinite(value) and order < 1]
    before = sum(value / (1 - order) for value, order in pairs)
    share = sum(value for value, _ in pairs) / before if before > 0 else np.nan
    return record.metrics.get("liquidity", np.nan) / share if share > 0 else np.nan


def _finite(value: float, otherwise: float) -> float:
    return value if np.isfinite(value) else otherwise


def _line(
    ax: Axes,
    stage: _Stage,
    key: str,
    label: str,
    colour: str,
    *,
    scale: float = 1.0,
    width: float = 1.8,
    style: str = "-",
) -> None:
    """One metric over one stage, with its 95% interval as a band."""
    x, (_, values) = _steps(stage), stage.run.series(key)
    low, high = stage.run.intervals(key)
    marker = "o" if len(x) <= 12 else None
    ax.fill_between(x, low * scale, high * scale, color=colour, alpha=0.18, linewidth=0, zorder=3)
    ax.plot(
        x,
        values * scale,
        color=colour,
        label=label,
        linewidth=width,
        linestyle=style,
        marker=marker,
        markersize=3.5,
        zorder=4,
    )


def _legend(ax: Axes, *, reverse: bool = False) -> None:
    """One entry a label, outside on the right, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    names = list(unique)[::-1] if reverse else list(unique)
    ax.legend(
        [unique[name] for name in names],
        names,
        loc="upper left",
        bbox_to_anchor=(1.005, 1.04),
        frameon=False,
        fontsize=TEXT,
        handlelength=1.5,
        borderaxespad=0.0,
        labelspacing=0.35,
    )


def _draw_tasks_by_phase(ax: Axes, stages: Sequence[_Stage]) -> None:
    """The number of tasks in each phase, stacked: where the suite is of two minds."""
    present = {t.phase for s in stages for r in s.run.records for t in r.tasks.values()}
    for stage in stages:
        edges, below = _edges(stage), np.zeros(len(stage.run.records))
        for phase in (phase for phase in PHASES if phase in present):
            counts = np.array([_count(record, phase) for record in stage.run.records])
            ax.stairs(
                below + counts,
                edges,
                baseline=below,
                fill=True,
                color=PHASE_COLOURS[phase],
                label=phase,
            )
            below = below + counts
    total = max(len(record.tasks) for stage in stages for record in stage.run.records)
    ax.set_ylim(0, max(total, 1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.set_ylabel("tasks", fontsize=TEXT)
    _legend(ax)


def _count(record: ProbeRecord, phase: str) -> int:
    return sum(task.phase == phase for task in record.tasks.values())


def _draw_task_events(
    ax: Axes, events: Iterable[tuple[_Stage, Event]], kinds: Sequence[str]
) -> None:
    """One row a kind, one tick a task's event."""
    for stage, event in events:
        if event.task is not None:
            row = len(kinds) - 1 - kinds.index(event.kind)
            ax.plot(stage.start + event.step, row, "|", color=BLACK, markersize=9, alpha=0.7)
    ax.set_ylim(-0.6, len(kinds) - 0.4)
    ax.set_yticks([])
    for row, kind in enumerate(reversed(kinds)):
        ax.axhline(row, color=GREY, linewidth=0.4, zorder=1)
        name = kind.replace("_", " ")
        ax.annotate(
            name,
            (1.005, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
            annotation_clip=False,
        )
    ax.spines[:].set_visible(False)
    ax.set_ylabel("task\nevents", fontsize=TEXT, rotation=0, ha="right", va="center")


def _draw_energy(ax: Axes, stages: Sequence[_Stage]) -> None:
    """The parts add up to the whole, so they are stacked under its line."""
    for stage in stages:
        x, (_, choice) = _steps(stage), stage.run.series("free_energy_choice")
        _, form = stage.run.series("free_energy_format")
        ax.fill_between(x, 0, choice, color=GREEN, alpha=0.45, linewidth=0, label="within choices")
        ax.fill_between(
            x, choice, choice + form, color=YELLOW, alpha=0.55, linewidth=0, label="format"
        )
        _line(ax, stage, "free_energy", "free energy", BLACK)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("KL from base [nats]", fontsize=TEXT)
    _legend(ax, reverse=True)


def _draw_coverage(ax: Axes, stages: Sequence[_Stage]) -> None:
    for stage in stages:
        _line(ax, stage, "coverage", "coverage", VERMILION)
    ax.set_ylim(0, 1.04)
    ax.set_ylabel("probability", fontsize=TEXT)
    _legend(ax)
