"""What a monitored run says in the terminal: a line per kind of event and change of phase."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from crystalmon.metrics.catalogue import BY_KEY, NOT_MEASURABLE
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.schedule import LEAST
from crystalmon.report.caveats import unmeasurable
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.suites.checks import harmless

logger = logging.getLogger(__name__)
LIBRARY = logging.getLogger("crystalmon")
"""The logger by which a user sets how much the package says."""


def announce(
    record: ProbeRecord,
    events: Iterable[Event],
    before: ProbeRecord | None,
    name: str = DEFAULT_NAME,
) -> None:
    """One line per kind of event, and one when the suite's phase is another than before.

    Args:
        record, events: of this probe.
        before: the one before it, or None.
        name: of the run folder.
    """
    tasks: dict[str, list[str]] = {}
    for event in events:
        if event.task is not None:
            tasks.setdefault(event.kind, []).append(event.task)
    for kind, names in tasks.items():
        say(f"step {record.step}: {kind} in {', '.join(names)}", name)
    broken = [name for name, task in record.tasks.items() if not np.isfinite(task.q).all()]
    if broken:
        told = f"no finite answers in {', '.join(broken)}; their phases are held"
        say(f"step {record.step}: {told}", name)
    if before is None or record.phase != before.phase:
        order = record.metrics.get("order")
        known = order is not None and record.phase != NOT_MEASURABLE
        shown = f" (order {order:.2f})" if known else ""
        say(f"step {record.step}: the suite is {record.phase}{shown}", name)


def costly(share: float, probe_seconds: float, step_seconds: float) -> str:
    """A sentence on the share of a run's time that monitoring will take."""
    each = f"{_seconds(probe_seconds)} a probe, {_seconds(step_seconds)} a step"
    return (
        f"by this schedule monitoring takes {share:.0%} of the run's time ({each}): max_overhead= "
        "sets a limit, every= probes less often"
    )


def _seconds(value: float) -> str:
    """Two digits or all before the point: `0.042 s`, `2.6 s`, `123 s`."""
    return f"{value:.2g} s" if value < 99 else f"{value:.0f} s"


def introduce(monitor: Monitor, folder: Path, probes: int, max_overhead: float | None) -> None:
    """Say at the start what will be probed, against which base, and where the records go."""
    suite, base = monitor.suite, monitor.reference.info.model or "this model"
    planned = f"{probes} probes"
    if max_overhead is not None and max_overhead < 1:
        planned = f"probes within {100 * max_overhead:.3g}% of the time, at least {LEAST + 1}"
    say(
        f"{suite.name}: {len(suite)} tasks, {suite.num_prompts} prompts, {planned}; "
        f"base {base}; records in {folder}",
        folder.name,
    )
    if plain := ", ".join(monitor.reference.plain):
        say(
            f"the base hardly answers {plain} in this view, so the model's answers to them will be "
            "compared with the base's answers to the plain prompts",
            folder.name,
        )
    if warning := unmeasurable(monitor.unanswered):
        say(warning, folder.name)


def conclude(record: ProbeRecord | None, folder: Path, share: float, refused: float | None) -> None:
    """Say at the end where the run stands, how to see it, and what monitoring has cost.

    Args:
        record: the last one, if there is any.
        folder: the run folder.
        share: of the run's time that monitoring took, with the base, trackers and pictures.
        refused: the `max_overhead` that the last step's probe did not fit into, or None.
    """
    if record is not None:
        said = [record.phase]
        for key, digits in (("order", 2), ("free_energy", 3)):
            value = record.metrics.get(key, np.nan)
            if np.isfinite(value):
                number = f"{round(value, digits) + 0.0:.{digits}f}"
                said.append(f"{BY_KEY[key].label} {number} {BY_KEY[key].unit}".rstrip())
        say(f"step {record.step}, the last probe: {', '.join(said)}", folder.name)
        place = shlex.quote(str(folder) if not str(folder).startswith("-") else f"./{folder}")
        say(f"to see the run: crystalmon report {place} -o {place}/report.html", folder.name)
        if refused is not None:
            say(
                f"the last step was not probed: one more probe would have taken over {refused:.2%} "
                "of the time",
                folder.name,
            )
    say(f"monitoring took {share:.2%} of the time", folder.name)


def say(line: str, name: str = DEFAULT_NAME) -> None:
    """Print a line above the progress bar; a terminal that refuses it must not stop training.

    Nothing is printed where the logger `crystalmon` has a level above INFO.

    Args:
        line: what to say.
        name: of the run folder that it is about.
    """
    if LIBRARY.level > logging.INFO:
        return
    try:
        tqdm.write(harmless(f"{name} | {line}"))
    except (OSError, ValueError):  # closed, full, or an encoding without the characters
        logger.info("%s", line)
