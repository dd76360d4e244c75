"""Figures over run folders: a chain of stages on one step axis, and tasks as they crystallize.

Built on matplotlib's object-oriented interface, without pyplot: nothing global changes, and no
display is needed. Colours are those of Okabe and Ito (2008), which colour-blind readers tell
apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from crystalmon.records import EVENT_KINDS, PHASES, Event, ProbeRecord
from crystalmon.report.summary import BASE, check_probed
from crystalmon.store import Run

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, SHADE = "#8A8A8A", "#F3F3F3"

PHASE_COLOURS: dict[str, str] = dict(
    zip(PHASES, (SKY, YELLOW, BLUE, GREEN, VERMILION, GREY), strict=True)
)
_COLOUR_MAP = "magma"
_WHITE_TEXT = {BLUE, GREEN, VERMILION, GREY}

_WIDTH, _LEFT, _RIGHT = 14.0, 0.95, 2.1
_AXES_WIDTH = _WIDTH - _LEFT - _RIGHT
_BOTTOM, _GAP = 0.5, 0.14
_ROW, _NAME_ROW = 0.21, 0.24
_SMALL, _TEXT, _LARGE = 9.5, 10.5, 12.5


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
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    axes: dict[str, Axes] = {}
    top = height - top
    for name, inches in heights.items():
        box = (_LEFT / _WIDTH, (top - inches) / height, _AXES_WIDTH / _WIDTH, inches / height)
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
    ax.tick_params(labelsize=_SMALL, labelbottom=last, bottom=last)
    if last:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("optimizer steps, stages laid end to end", fontsize=_TEXT)


def _stage_names(stages: Sequence[_Stage]) -> list[_Label]:
    """Each stage's name over its middle, in the first row where it runs into no other."""
    low, high = _span(stages)
    scale = _AXES_WIDTH / (high - low)
    ends: list[float] = []
    labels: list[_Label] = []
    for stage in stages:
        half = 0.55 * _text_inches(stage.run.name, _LARGE)
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
            fontsize=_LARGE,
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
            if _text_inches(phase, _TEXT) + 0.1 < _inches(stages, stop) - _inches(stages, start):
                text_colour = "white" if colour in _WHITE_TEXT else "black"
                middle = 0.5 * (start + stop)
                ax.text(
                    middle, 0.5, phase, ha="center", va="center", color=text_colour, fontsize=_TEXT
                )
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_ylabel("suite", fontsize=_TEXT, rotation=0, ha="right", va="center")


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
        left, width = _inches(stages, x), _text_inches(text, _SMALL) + 0.12
        align = "left" if left + width <= _AXES_WIDTH else "right"
        left = left if align == "left" else left - width
        labels.append(_Label(text, x, _free_row(ends, left, left + width), align))
    return labels


def _text_inches(text: str, size: float) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


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
            fontsize=_SMALL,
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
    ax.set_ylabel("suite mean", fontsize=_TEXT)
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
        fontsize=_TEXT,
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
    ax.set_ylabel("tasks", fontsize=_TEXT)
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
            fontsize=_SMALL,
            annotation_clip=False,
        )
    ax.spines[:].set_visible(False)
    ax.set_ylabel("task\nevents", fontsize=_TEXT, rotation=0, ha="right", va="center")


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
    ax.set_ylabel("KL from base [nats]", fontsize=_TEXT)
    _legend(ax, reverse=True)


def _draw_coverage(ax: Axes, stages: Sequence[_Stage]) -> None:
    for stage in stages:
        _line(ax, stage, "coverage", "coverage", VERMILION)
    ax.set_ylim(0, 1.04)
    ax.set_ylabel("probability", fontsize=_TEXT)
    _legend(ax)


def task_figure(
    runs: Run | Sequence[Run],
    names: Sequence[str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Tasks as they crystallize: each prompt's choice distribution, probe by probe.

    One row a task, one column a probe; in each panel a line is a prompt and a column a choice.
    A liquid task shows a different line for every prompt, a crystallized one the same line
    throughout. Prompts keep their line: they are sorted by their likeliest choice at first.
    A triangle marks the base prompt that is locked as the seed, in the first column the one that
    is locked last.

    Args:
        runs: one run, shown at its first, middle and last probe; or the stages of a chain, shown
            at the first probe and at the end of each stage.
        names: the tasks; by default the first four.
        choices: the choices' texts by task, to write below its panels.

    Raises:
        ValueError: if there is no run, one without a probe, or a task that was not probed.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    check_probed(runs)
    columns = _columns(runs)
    names = _check_names(names, columns[0][1])
    # a row holds room for its labels, the figure for its titles and the colour bar
    figure = Figure(figsize=(_WIDTH, 0.75 + 2.35 * len(names)), dpi=100, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for axes, name in zip(grid, names, strict=True):
        ranks = _prompt_order(columns[0][1].tasks[name].q)
        seeds = [record.tasks[name].seed for _, record in columns]
        winner = next((seed for seed in reversed(seeds) if seed is not None), None)
        for ax, (title, record) in zip(axes, columns, strict=True):
            _draw_task(ax, record, name, ranks, norm)
            _mark_seed(ax, winner if ax is axes[0] else record.tasks[name].seed, ranks)
            _label_choices(ax, (choices or {}).get(name))
            if ax in grid[0]:
                ax.set_title(title, fontsize=_fitting(title, len(columns)), fontweight="bold")
        axes[0].set_ylabel(f"{name}\nprompts", fontsize=_TEXT, labelpad=12)
    figure.supxlabel(
        "a line is a prompt, a column is a choice; "
        "the triangle points at the seed, the base prompt whose answers win",
        fontsize=_SMALL,
    )
    bar = figure.colorbar(
        ScalarMappable(norm, _COLOUR_MAP),
        ax=grid,
        shrink=0.9,
        aspect=40,
        pad=0.01,
        ticks=[0, 0.1, 0.3, 0.6, 1],
    )
    bar.set_label("probability of the choice", fontsize=_TEXT)
    bar.ax.tick_params(labelsize=_SMALL)
    return figure


def _fitting(title: str, columns: int) -> float:
    """The font size at which a title fits over its column."""
    room = 0.8 * (_WIDTH - 1.5) / columns
    return max(_LARGE * min(1.0, room / _text_inches(title, _LARGE)), 6.0)


def _columns(runs: Sequence[Run]) -> list[tuple[str, ProbeRecord]]:
    """(title, probe) of each column."""
    if len(runs) > 1:
        ends = [(f"after {run.name}", run.records[-1]) for run in runs]
        return [(BASE, runs[0].records[0]), *ends]
    records = runs[0].records
    picked = sorted({0, len(records) // 2, len(records) - 1})
    return [(f"step {records[index].step}", records[index]) for index in picked]


def _check_names(names: Sequence[str] | None, record: ProbeRecord) -> list[str]:
    known = list(record.tasks)
    chosen = known[:4] if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"names must be among the probed tasks {known}, got {unknown or chosen}.")
    return chosen


def _prompt_order(q: np.ndarray) -> np.ndarray:
    """Prompts by their likeliest choice, and among these by how likely it is."""
    best = np.nan_to_num(q).argmax(axis=1)
    return np.lexsort((-q[np.arange(len(q)), best], best))


def _draw_task(
    ax: Axes, record: ProbeRecord, name: str, ranks: np.ndarray, norm: PowerNorm
) -> None:
    task = record.tasks[name]
    ax.imshow(task.q[ranks], aspect="auto", cmap=_COLOUR_MAP, norm=norm, interpolation="nearest")
    colour = PHASE_COLOURS[task.phase]
    ax.set_xlabel(task.phase, fontsize=_TEXT, labelpad=3)
    ax.spines[:].set(edgecolor=colour, linewidth=2.5)
    ax.tick_params(length=0, labelsize=_SMALL)
    ax.set_yticks([])


def _mark_seed(ax: Axes, seed: int | None, ranks: np.ndarray) -> None:
    if seed is not None:
        line = int(np.flatnonzero(ranks == seed)[0])
        ax.plot(
            -0.018,
            line,
            ">",
            color=VERMILION,
            markersize=8,
            clip_on=False,
            transform=ax.get_yaxis_transform(),
        )


def _label_choices(ax: Axes, texts: Sequence[str] | None) -> None:
    """The choices' texts, if they fit side by side or upright; else none."""
    if texts is None or len(texts) > 40:
        ax.set_xticks([])
        return
    upright = sum(map(len, texts)) + len(texts) > 45
    ax.set_xticks(range(len(texts)), texts, rotation=90 if upright else 0, fontsize=_SMALL)
