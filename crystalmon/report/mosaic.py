"""One probe as one picture: every task's prompts × choices, small, side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from crystalmon.report.palette import PHASE_COLOURS
from crystalmon.runs.records import ProbeRecord

_COLUMNS = 5
_MAX_LABELS = 12


def mosaic_figure(
    record: ProbeRecord,
    choices: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """All tasks of one probe; a row is a prompt, a column a choice, dark is likely.

    Args:
        record: the probe.
        choices: the choices' texts by task, written below a task that has few.
        names: the tasks; by default all.
    """
    names = list(record.tasks) if names is None else list(names)
    columns = max(1, min(_COLUMNS, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    figure = Figure(figsize=(2.5 * columns, 1.75 * rows + 0.35), dpi=80, facecolor="white")
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for ax, name in zip(grid, names, strict=False):
        task = record.tasks[name]
        ax.imshow(task.q, aspect="auto", cmap="Blues", norm=norm, interpolation="nearest")
        # a name between dollars is a name, no formula
        ax.set_title(f"{name}: {task.phase}", fontsize=8.5, loc="left", parse_math=False)
        ax.spines[:].set(edgecolor=PHASE_COLOURS[task.phase], linewidth=2)
        texts = list((choices or {}).get(name, ()))
        few = 0 < len(texts) <= _MAX_LABELS
        ax.set_xticks(range(len(texts)) if few else [])
        if few:
            upright = sum(map(len, texts)) > 22
            ax.set_xticklabels(texts, fontsize=6.5, rotation=90 if upright else 0, parse_math=False)
        ax.set_yticks([])
        ax.tick_params(length=0, pad=2)
    for ax in grid[len(names) :]:
        ax.set_visible(False)
    figure.suptitle(f"step {record.step}: {record.phase}", fontsize=10, fontweight="bold")
    return figure


def mosaic_image(
    record: ProbeRecord, choices: Mapping[str, Sequence[str]] | None = None
) -> np.ndarray:
    """The figure as pixels [height, width, 3], uint8."""
    canvas = FigureCanvasAgg(mosaic_figure(record, choices))
    with warnings.catch_warnings():
        # a choice in a script that matplotlib's own font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def distribution_rows(
    record: ProbeRecord, choices: Mapping[str, Sequence[str]] | None = None
) -> list[list[str | float | int]]:
    """(step, task, phase, choice, share of all answers), a row per task and choice."""
    rows: list[list[str | float | int]] = []
    for name, task in record.tasks.items():
        texts = (choices or {}).get(name) or [str(index) for index in range(task.q.shape[1])]
        rows += [
            [record.step, name, task.phase, text, round(float(share), 6)]
            for text, share in zip(texts, task.q.mean(axis=0), strict=True)
        ]
    return rows


DISTRIBUTION_COLUMNS = ("step", "task", "phase", "choice", "share")
