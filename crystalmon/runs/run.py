"""A run as it is read back: what its folder holds, and what can be asked of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalmon.metrics.catalogue import BRIEF, BY_KEY
from crystalmon.runs.data_frames import suite_frame, task_frame
from crystalmon.runs.names import DEFAULT_NAME, OVERHEAD_KEY
from crystalmon.runs.notebook import curve_svg, number, table_html
from crystalmon.runs.places import place, told
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.trainer_log import LogRow
from crystalmon.suites.checks import harmless

if TYPE_CHECKING:
    import pandas


def names_of(runs: Sequence[Run]) -> list[str]:
    """The runs' names; their folders, if two have one name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


class NoRunError(FileNotFoundError, ValueError):
    """There is no run where one was named, or it has no probe yet."""


@dataclass(frozen=True)
class Run:
    """A run folder as read back.

    Args:
        folder: the run folder itself.
        info: the content of `run.json`.
        records: one per probe, by step.
        events: of those probes, by step, in the order in which they were raised.
        superseded: the number of probes on file that a later resume, or a later probe of the
            same step, has replaced.
        doubtful: steps whose probes may be wrong, since a later proof of how the model was run has
            failed.
        fault: a sentence on the first record that cannot be read; empty if all can.
        read_log: reads the trainer's log; see `trainer_log`.
    """

    folder: Path
    info: Mapping[str, Any]
    records: Sequence[ProbeRecord] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    superseded: int = 0
    doubtful: tuple[int, ...] = ()
    fault: str = ""
    read_log: Callable[[], tuple[LogRow, ...]] = field(default=tuple, repr=False, compare=False)

    def check_probed(self) -> None:
        """Refuse a run without a probe.

        Raises:
            NoRunError: if it has none yet.
            ValueError: if those that it has cannot be read.
        """
        if self.records:
            return
        if self.fault:
            raise ValueError(
                f"the run in {self.folder} has no probe that can be read: {self.fault}"
            )
        raise NoRunError(f"the run in {self.folder} has no probe yet. Wait for its first.")

    @property
    def name(self) -> str:
        """The output folder's name, with the view or suite of a second run: `sft (template)`.

        A scan, whose folder is its own, is `runs/olmo`.
        """
        folder = self.folder.resolve()
        name, parent = folder.name, folder.parent.name
        if name == DEFAULT_NAME:
            return harmless(parent)
        if name.startswith(f"{DEFAULT_NAME}-") and "stages" not in self.info:
            return harmless(f"{parent} ({name.removeprefix(f'{DEFAULT_NAME}-')})")
        return harmless(f"{parent}/{name}")

    @cached_property
    def trainer_log(self) -> tuple[LogRow, ...]:
        """What the trainer itself has logged, by step; read when it is first asked for.

        Empty for a scan, and for a run of a version that did not keep it.
        """
        return self.read_log()

    @property
    def share(self) -> float | None:
        """Of the run's time, what monitoring took: of the whole run, once it has ended.

        Before, and of a run that was killed, it is the `probe_share` of the last probe. That of an
        ended run lacks what came after: the probe's own pictures, the report, the rest of the
        training. None without a probe.
        """
        at_end = self.info.get(OVERHEAD_KEY)
        if isinstance(at_end, float):
            return at_end
        return self.records[-1].share if self.records else None

    @property
    def limit(self) -> float | None:
        """The largest share of the time that monitoring was to take; None without one."""
        limit = self.info.get("config", {}).get("max_overhead")
        return limit if isinstance(limit, float) else None

    @property
    def view(self) -> str | None:
        """How its prompts were sent, if it tells."""
        return self.info.get("config", {}).get("view")

    @property
    def ended(self) -> bool:
        """Whether the training has come to its end, or was stopped in order."""
        return OVERHEAD_KEY in self.info

    @property
    def unobserved(self) -> str:
        """A sentence on the steps after the last probe; empty if that was at the end."""
        end, last = self.info.get("max_steps"), self.records[-1].step if self.records else -1
        if not isinstance(end, int) or last >= end:
            return ""
        why = "it still runs, or was killed"
        if self.ended:
            why = "it was stopped early, or max_overhead left no time for another probe"
        return f"{self.name} was not observed from step {last + 1} to {end}: {why}."

    @property
    def doubt(self) -> str:
        """A sentence that names the probes that may be wrong; empty if there are none."""
        if not self.doubtful:
            return ""
        first, last = self.doubtful[0], self.doubtful[-1]
        steps = f"steps {first} to {last}"
        if first == last or self.stages:
            steps = " to ".join(dict.fromkeys((self.place(first), self.place(last))))
        return (
            f"What {self.name} found at {steps} may be wrong: the way in which it was scored was "
            "found later not to give the model's own answers."
        )

    @property
    def stages(self) -> dict[int, str]:
        """Of a scan, by step, the names of its stages; empty for a training."""
        return {stage["step"]: stage["name"] for stage in self.info.get("stages", ())}

    def place(self, step: int) -> str:
        """What a step is called: `step 3`, or in a scan the stage's name."""
        return place(step, self.stages)

    def series(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One metric over the run, of the suite or of a task.

        Returns:
            steps [S], int; values [S], float, NaN where a probe does not have the metric.

        Raises:
            ValueError: if there is no such metric, or the run has no such task.
        """
        self._check(key, task)
        steps = np.array([record.step for record in self.records], dtype=np.int64)
        return steps, self._values("metrics", task, key, np.nan)

    def log_series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """One number of the trainer's log, such as `loss`, where it was logged.

        Returns:
            steps [S], int; values [S], float.
        """
        found = [(row.step, row.values[key]) for row in self.trainer_log if key in row.values]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def intervals(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The 95% interval of one metric over the run: low [S] and high [S], NaN where missing.

        Raises:
            ValueError: see `series`.
        """
        self._check(key, task)
        ends = self._values("ci", task, key, (np.nan, np.nan)).reshape(-1, 2)
        return ends[:, 0], ends[:, 1]

    def frame(self) -> pandas.DataFrame:
        """The suite as a pandas data frame, a row a probe.

        Its columns are step, of a scan the stage's name, epoch, time (UTC), probe_seconds,
        probe_share (up to this probe; `share` is the whole run's), phase, then each metric by its
        key and the ends of its 95% interval as `<key>_low` and `<key>_high`. What a probe does not
        have is NaN.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return suite_frame(self.records, self.stages)

    def task_frame(self) -> pandas.DataFrame:
        """The tasks as a pandas data frame, a row a probe and task.

        Its columns are step, of a scan the stage's name, task, phase, seed (the prompt that is
        held for it, if any), view, asked (how many prompts were), then metrics and intervals as in
        `frame`. The metric `seed`, which also names a prompt that is not held, is `seed_metric`.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return task_frame(self.records, self.stages)

    def _check(self, key: str, task: str | None) -> None:
        """Refuse a task of no probe, and a metric that neither the catalogue nor a probe has."""
        if not self.records:
            return
        tasks = {name for record in self.records for name in record.tasks}
        if task is not None and task not in tasks:
            raise ValueError(f"{self.name} has no task {task!r}. Use {', '.join(sorted(tasks))}.")
        holders = [each if task is None else each.tasks.get(task) for each in self.records]
        other = "task" if task is None else "suite"
        known = {key for key, metric in BY_KEY.items() if metric.level != other}
        known.update(name for each in holders if each for name in each.metrics)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or [each.key for each in BRIEF]
            of = "the suite" if task is None else "a task"
            raise ValueError(f"{of} has no metric {key!r}. Did you mean {' or '.join(near)}?")

    def _values(self, attribute: str, task: str | None, key: str, missing: Any) -> np.ndarray:
        """One entry of each probe's `metrics` or `ci`, the suite's or a task's."""
        holders = [each if task is None else each.tasks.get(task) for each in self.records]
        found = [getattr(each, attribute, {}).get(key, missing) for each in holders]
        return np.array(found, dtype=np.float64)

    def _repr_html_(self) -> str:
        """What a notebook shows: where the run stands, each main metric as a curve, its events."""
        if not self.records:
            return table_html(f"{self.name}: no probe yet", [], [])
        last = self.records[-1]
        rows = [
            [
                metric.label,
                curve_svg(self.series(metric.key)[1].tolist()),
                number(self.records[0].metrics.get(metric.key)),
                number(last.metrics[metric.key]),
            ]
            for metric in BRIEF
            if metric.key in last.metrics
        ]
        probes = counted(len(self.records), "probe")
        title = f"{self.name}: {last.phase} at {self.place(last.step)}, {probes}"
        curves = table_html(title, ["metric", "", "first", "last"], rows)
        suite = [event for event in self.events if event.task is None]
        if not suite:
            return curves
        rows = [
            [self.place(e.step), e.kind.replace("_", " "), told(e.message, self.stages)]
            for e in suite
        ]
        return curves + table_html("what happened", ["when", "event", ""], rows)
