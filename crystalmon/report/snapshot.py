"""The answers of one probe, as a tracker's media show them: a picture and a table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from crystalmon.report.palette import PHASE_COLOURS
from crystalmon.report.style import COLUMNS
from crystalmon.runs.records import ProbeRecord, TaskRecord

_MAX_LABELS = 12


@dataclass(frozen=True)
class Snapshot:
    """One probe's answers, drawn when first asked for and only once for all trackers.

    Args:
        record: the probe.
        choices: the choices' texts by task; a task without them has its choices numbered.
    """

    record: ProbeRecord
    choices: Mapping[str, Sequence[str]]

    @cached_property
    def image(self) -> np.ndarray:
        """[height, width, 3] uint8: prompts × choices of every task."""
        canvas = FigureCanvasAgg(_mosaic(self.record, self.choices))
        with warnings.catch_warnings():
            # a choice in a script that matplotlib's own font lacks is drawn as boxes
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()

    @property
    def columns(self) -> list[str]:
        """What the rows' entries are."""
        return ["step", "task", "phase", "choice", "share"]

    @cached_property
    def rows(self) -> list[list[str | float | int]]:
        """A row per task and choice; `share` is the choice's probability, mean over prompts."""
        rows: list[list[str | float | int]] = []
        for name, task in self.record.tasks.items():
            texts = self.choices.get(name) or [str(index) for index in range(task.q.shape[1])]
            rows += [
                [self.record.step, name, task.phase, text, round(float(share), 6)]
                for text, share in zip(texts, task.q.mean(axis=0), strict=True)
            ]
        return rows


def _mosaic(record: ProbeRecord, choices: Mapping[str, Sequence[str]]) -> Figure:
    """All tasks of one probe, side by side."""
    columns = max(1, min(COLUMNS, len(record.tasks)))
    rows = max(1, math.ceil(len(record.tasks) / columns))
    size = (2.5 * columns, 1.75 * rows + 0.35)
    figure = Figure(figsize=size, dpi=80, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, task) in zip(grid, record.tasks.items(), strict=False):
        _draw_task(ax, name, task, choices.get(name, ()))
    for ax in grid[len(record.tasks) :]:
        ax.set_visible(False)
    figure.suptitle(f"step {record.step}: {record.phase}", fontsize=10, fontweight="bold")
    return figure


def _draw_task(ax: Axes, name: str, task: TaskRecord, choices: Sequence[str]) -> None:
    """A row is a prompt, a column a choice, dark is likely; a few choices are named below."""
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    ax.imshow(task.q, aspect="auto", cmap="Blues", norm=norm, interpolation="nearest")
    ax.set_title(f"{name}: {task.phase}", fontsize=8.5, loc="left", parse_math=False)
    ax.spines[:].set(edgecolor=PHASE_COLOURS[task.phase], linewidth=2)
    shown = choices if len(choices) <= _MAX_LABELS else ()
    rotation = 90 if sum(map(len, shown)) > 22 else 0
    ax.set_xticks(range(len(shown)), shown, fontsize=6.5, rotation=rotation, parse_math=False)
    ax.set_yticks([])
    ax.tick_params(length=0, pad=2)
