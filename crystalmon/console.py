"""What a monitored run says in the terminal: a line per kind of event and change of phase."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from tqdm.auto import tqdm

from crystalmon.records import Event, ProbeRecord

logger = logging.getLogger(__name__)


def announce(record: ProbeRecord, events: Iterable[Event], phase_before: str | None) -> None:
    """One line per kind of event, and one when the suite's phase is another."""
    tasks: dict[str, list[str]] = {}
    for event in events:
        if event.task is not None:
            tasks.setdefault(event.kind, []).append(event.task)
    for kind, names in tasks.items():
        say(f"step {record.step}: {kind} in {', '.join(names)}")
    broken = [name for name, task in record.tasks.items() if not np.isfinite(task.q).all()]
    if broken:
        say(f"step {record.step}: no finite answers in {', '.join(broken)}; their phases are held")
    if record.phase != phase_before:
        order = record.metrics.get("order")
        shown = "" if order is None else f" (order {order:.2f})"
        say(f"step {record.step}: the suite is {record.phase}{shown}")


def say(line: str) -> None:
    """Print a line above the progress bar; a terminal that refuses it must not stop training."""
    try:
        tqdm.write(f"crystalmon | {line}")
    except (OSError, ValueError):  # closed, full, or an encoding without the characters
        logger.info("%s", line)
