"""A running training in a terminal, for those on ssh."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crystalmon.metrics.catalogue import BRIEF, brief_value
from crystalmon.phases.in_words import phase_words
from crystalmon.report.live.feed import News, RunFeed
from crystalmon.report.palette import PHASE_COLOURS, PHASE_WORDS
from crystalmon.runs.places import told
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.wordings import TaskTexts, end_words, task_texts

REFRESH_SECONDS = 1.0
EVENTS_SHOWN = 6
_LEVELS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40


def watch_terminal(feed: RunFeed, console: Console | None = None) -> None:
    """Show the runs until Ctrl-C; in a pipe or file, print them once per new probe."""
    console = console or Console()
    try:
        if console.is_terminal:
            console.print("(Ctrl-C ends it)")
            with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
                for news in _changes(feed, lambda news: news.mark):
                    live.update(screen(news), refresh=True)
        else:
            # a probe's events are on file a moment after it: if they come late, they show once more
            for news in _changes(feed, _lengths):
                console.print(screen(news))
    except KeyboardInterrupt:
        console.print("stopped watching; the training is not affected")


def _changes(feed: RunFeed, key: Callable[[News], Any]) -> Iterator[News]:
    """The news whenever their key has changed, without end."""
    shown = None
    while True:
        news = feed.news()
        if key(news) != shown:
            yield news
            shown = key(news)
        time.sleep(REFRESH_SECONDS)


def _lengths(news: News) -> tuple[Any, ...]:
    return news.message, *((len(run.records), len(run.events)) for run in news.runs)


def screen(news: News) -> RenderableType:
    """The last run of the news as text: phase, curves, tasks, events."""
    parts: list[RenderableType] = [Text(news.message)] if news.message else []
    if news.runs:
        run = news.runs[-1]
        if run.records:
            texts, _ = task_texts(run)
            parts += [_head(run), _curves(run), _tasks(run.records[-1], texts), _events(run)]
        else:
            parts.append(Text(f"{run.name} has no probe yet."))
    return Group(*parts)


def _phase(record: ProbeRecord, task: str | None = None) -> Text:
    phase = record.phase if task is None else record.tasks[task].phase
    return Text(phase_words(record, task), style=f"bold {PHASE_COLOURS[phase]}")


def _head(run: Run) -> Text:
    record = run.records[-1]
    end = run.info.get("max_steps")
    of = f" of {end}" if end and not run.stages else ""
    place = f"{run.name}  {run.place(record.step)}{of}"
    shown = _phase(record)
    words = f"  {PHASE_WORDS[record.phase]}" if shown.plain == record.phase else ""
    return Text.assemble((place, "bold"), "  ", shown, words, "\n")


def _curves(run: Run) -> Table:
    table = Table.grid(padding=(0, 2))
    for metric in BRIEF:
        _, values = run.series(metric.key)
        if np.isfinite(values).any() and np.isfinite(brief_value(metric, run.records[-1].metrics)):
            top = float(np.nanmax(values)) if metric.unit else 1.0
            line = Text(sparkline(values, top), style=PHASE_COLOURS["liquid"])
            table.add_row(metric.label, line, f"{values[-1]:.3f} {metric.unit}")
    return table


def sparkline(values: np.ndarray, top: float) -> str:
    """A curve in one line of text, from 0 to `top`; a blank where it is not finite.

    Of many values, `CURVE_WIDTH` are picked evenly, the last one among them.

    Args:
        values: [S] in time.
        top: what the highest mark stands for.

    >>> sparkline(np.array([0.0, 0.5, 1.0]), top=1.0)
    '▁▅█'
    """
    picked = np.linspace(0, len(values) - 1, min(CURVE_WIDTH, len(values))).round().astype(int)
    scaled = np.clip(values[picked] / (top or 1.0), 0.0, 1.0)
    marks = (len(_LEVELS) - 1) * scaled
    return "".join(_LEVELS[round(float(m))] if np.isfinite(m) else " " for m in marks)


def _tasks(record: ProbeRecord, texts: dict[str, TaskTexts]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("task")
    table.add_column("phase")
    table.add_column("order", justify="right")
    begun = any(task.seed_set for task in record.tasks.values())
    if begun:
        table.add_column("may end on")
    table.add_column("leading answers", no_wrap=True, overflow="ellipsis")
    for name, task in record.tasks.items():
        shares = zip(task.q.mean(axis=0).tolist(), texts[name].choices, strict=True)
        ranked = sorted(shares, reverse=True)[:3]
        top = ", ".join(f"{text} {share:.0%}" for share, text in ranked if np.isfinite(share))
        order = task.metrics.get("order", np.nan)
        shown = f"{order:.2f}" if np.isfinite(order) else "–"
        ends = [end_words(task.seed_set)] if begun else []
        table.add_row(Text(name), _phase(record, name), shown, *ends, Text(top))
    return table


def _events(run: Run) -> Text:
    text = Text("\n")
    for event in run.events[-EVENTS_SHOWN:]:
        text.append(f"{run.place(event.step)} ", "dim")
        text.append(f"{event.kind.replace('_', ' ')} ({event.task or 'suite'})  ")
        text.append(f"{told(event.message, run.stages)}\n", "dim")
    return text
