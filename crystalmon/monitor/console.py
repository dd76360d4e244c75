"""What a monitored run says in the terminal: a line per kind of event and change of phase."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from tqdm.auto import tqdm

from crystalmon.metrics.catalogue import NOT_MEASURABLE, PHASES
from crystalmon.monitor.actions import Action
from crystalmon.monitor.probe import Monitor
from crystalmon.phases.in_words import main_numbers, phase_words, shared_leader, tasks_by_phase
from crystalmon.report.caveats import unmeasurable
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.files import saved_checkpoints
from crystalmon.runs.names import DEFAULT_NAME, REFERENCE_FOLDER, model_title
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import EVENT_KINDS, PHASE_EVENT_KINDS, Event, ProbeRecord
from crystalmon.runs.shares import LEAST, over_limit
from crystalmon.runs.wordings import end_words
from crystalmon.suites.checks import harmless
from crystalmon.trackers.make import ALERTING

logger = logging.getLogger(__name__)
LIBRARY = logging.getLogger("crystalmon")
"""The logger by which a user sets how much the package says."""


@dataclass(frozen=True)
class Console:
    """Says what happens in one run.

    Args:
        name: of the run folder, before each line.
        verbose: whether to say anything.
    """

    name: str = DEFAULT_NAME
    verbose: bool = True

    def say(self, line: str) -> None:
        """Print a line above the progress bar; a terminal that refuses it must not stop training.

        Nothing is printed where the logger `crystalmon` has a level above INFO.
        """
        if not self.verbose or LIBRARY.level > logging.INFO:
            return
        try:
            tqdm.write(harmless(f"{self.name} | {line}"))
        except (OSError, ValueError):  # closed, full, or an encoding without the characters
            logger.info("%s", line)

    def introduce(
        self,
        monitor: Monitor,
        folder: Path,
        probes: int,
        max_overhead: float | None,
        found: Path | None = None,
    ) -> None:
        """Say at the start what will be probed, against which base, and where the records go.

        Args:
            monitor: of this run.
            folder: the run's.
            probes: planned.
            max_overhead: the callback's.
            found: the reference folder that the base was read from, if it was.
        """
        suite, base = monitor.suite, model_title(monitor.reference.info.model) or "this model"
        if found is not None and found.parent.resolve() != folder.resolve():
            base += f", read from {found}"
        planned = counted(probes, "probe")
        if max_overhead is not None:
            least = min(LEAST + 1, probes)
            planned = f"probes within {100 * max_overhead:.3g}% of the time, at least {least}"
        self.say(
            f"{suite.name}: {counted(len(suite), 'task')}, "
            f"{counted(suite.num_prompts, 'prompt')}, {planned}; base {base}; records in {folder}"
        )
        if plain := list(monitor.reference.plain):
            named = "any task" if len(plain) == len(suite) else ", ".join(plain)
            self.say(
                f"the base hardly answers {named} in this view. There the model is compared with "
                "the base's answers to the plain prompts too: order is 0 while liquidity lies "
                "between the base's two values"
            )
        if warning := unmeasurable(monitor.unanswered, monitor.unanswered, len(suite)):
            self.say(warning)

    def warn_of(self, actions: Mapping[str, tuple[Action, ...]], args: Any, folder: Path) -> None:
        """Say what of the trainer's settings will surprise: alerts to nobody, a large upload."""
        alerts = any("alert" in chosen for chosen in actions.values())
        if alerts and not set(args.report_to or ()) & set(ALERTING):
            others = " or ".join(ALERTING)
            self.say(f"the action alert will reach nobody: report_to has no {others}")
        if args.push_to_hub:
            size = decimal(
                sum(file.stat().st_size for file in (folder / REFERENCE_FOLDER).iterdir())
            )
            self.say(
                f"push_to_hub uploads {folder} too, with the base's answers ({size}). To keep them "
                f"out, write the line {folder.name}/{REFERENCE_FOLDER}* to "
                f"{folder.parent / '.gitignore'}"
            )

    def announce(
        self, record: ProbeRecord, events: Iterable[Event], before: ProbeRecord | None
    ) -> None:
        """One line per kind of event, and one when the suite's phase is another than before.

        Args:
            record, events: of this probe.
            before: the one before it, or None.
        """
        tasks: dict[str, list[str]] = {}
        for event in events:
            if event.task is not None:
                tasks.setdefault(event.kind, []).append(event.task)
            elif event.kind not in PHASE_EVENT_KINDS:
                self.say(f"step {record.step}: {event.message}")
        for kind, names in sorted(tasks.items(), key=lambda item: EVENT_KINDS.index(item[0])):
            self.say(f"step {record.step}: {kind} in {', '.join(names)}")
        broken = [name for name, task in record.tasks.items() if not np.isfinite(task.q).all()]
        if broken:
            told = f"no finite answers in {', '.join(broken)}; their phases are held"
            self.say(f"step {record.step}: {told}")
        if before is None or record.phase != before.phase:
            phases = Counter(task.phase for task in record.tasks.values())
            mixed = [f"{phases[phase]} {phase}" for phase in PHASES if phase in phases]
            said = [", ".join(mixed)] if len(mixed) > 1 else []
            order = record.metrics.get("order")
            if order is not None and record.phase != NOT_MEASURABLE:
                said.append(f"order {order:.2f}")
            shown = f" ({'; '.join(said)})" if said else ""
            asked = f", {counted(record.wordings, 'wording')} a task" if record.wordings else ""
            self.say(f"step {record.step}{asked}: the suite is {record.phase}{shown}")

    def conclude(self, end: Snapshot, folder: Path, advice: Mapping[str, str]) -> None:
        """Say at the end where the run stands, what to do about it, and what to look at.

        Args:
            end: the last probe.
            folder: the run folder.
            advice: by kind of event that was raised, what to do.
        """
        last, choices = end.record, end.choices
        asked = f" of {counted(last.wordings, 'wording')} a task" if last.wordings else ""
        told = ", ".join(filter(None, (phase_words(last), main_numbers(last))))
        self.say(f"step {last.step}, the last probe{asked}: {told}")
        if _tells_more(last):
            self.say(f"tasks: {tasks_by_phase(last)}")
        if choices:
            leading = [f"{name} {task.leading(choices[name])}" for name, task in last.tasks.items()]
            told, same = ", ".join(leading), shared_leader(last, choices)
            few = f" to these {last.wordings}" if last.wordings else ""
            self.say(f"likeliest answers{few}: {told}{same and f'; {same}'}")
        if ends := _open_ends(last):
            self.say(f"wordings whose answers may win, at 95%: {ends}")
        for kind, words in advice.items():
            self.say(f"{kind}: {words}")
        place = _typed(folder)
        self.say(f"what happened, with its evidence: crystalmon detect {place}")
        self.say(f"the run as a page: crystalmon report {place} -o {place}/report.html")
        if last.wordings:
            saved = last.step in saved_checkpoints(folder.parent)
            model = _typed(folder.parent / f"checkpoint-{last.step}") if saved else "<its folder>"
            once = "" if saved else ", once the model is saved"
            self.say(f"all wordings{once}: crystalmon probe {model} --base {place}")

    def spent(self, probes: int, share: float, limit: float | None) -> None:
        """Say what share of the run's time the base, probes, trackers and pictures have taken.

        Args:
            probes: how many the run has.
            share: what they have taken.
            limit: what they were to take at most, or None.
        """
        over = over_limit(share, limit, probes)
        took = f"monitoring took {share:.2%} of the time{over and f', {over}'}"
        self.say(f"{counted(probes, 'probe')}; {took}")

    def unobserved(self, after: int, end: int, limit: float) -> None:
        """Say that a run's last steps were not probed.

        Args:
            after: the step of the last probe.
            end: the step where training ended.
            limit: the `max_overhead` that a probe there did not fit into.
        """
        steps = f"steps {after + 1} to {end} were" if end > after + 1 else f"step {end} was"
        self.say(f"{steps} not observed: one more probe would have taken over {limit:.2%}")


def _typed(folder: Path) -> str:
    """A folder as it is typed in a command."""
    return shlex.quote(str(folder) if not str(folder).startswith("-") else f"./{folder}")


def _tells_more(record: ProbeRecord) -> bool:
    """Whether the tasks' phases say what the suite's does not; those of a single task may not."""
    if len(record.tasks) != 1:
        return bool(record.tasks)
    ((name, task),) = record.tasks.items()
    return task.seed is not None or phase_words(record, name) != phase_words(record)


def _open_ends(record: ProbeRecord) -> str:
    """Of the tasks without a seed, what may win: `coin: 2 wordings; die: none of the base`."""
    return "; ".join(
        f"{name}: {end_words(task.seed_set)}"
        for name, task in record.tasks.items()
        if task.seed_set and task.seed is None
    )


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
