"""From answers to a record: metrics → phases → record, probe after probe of one run.

Axes: P prompts of a task, p of them asked, C choices, n prompts asked of all tasks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from crystalmon.metrics.bootstrap import (
    REPLICATES,
    bootstrap_intervals,
    bootstrap_weights,
    expansion,
)
from crystalmon.metrics.catalogue import BY_KEY, DISSIMILARITY_WINDOWS, NOT_MEASURABLE, tasks_in
from crystalmon.metrics.measurement import (
    TaskMeasurement,
    dissimilarities,
    mean_over_tasks,
    measure_task,
)
from crystalmon.monitor.asked import Asked
from crystalmon.phases import PhaseDetector, PhaseState, SuiteDetector
from crystalmon.phases.limits import Limits
from crystalmon.phases.stored import observe
from crystalmon.runs.records import PHASES, Event, ProbeRecord, TaskRecord


class Course:
    """The answers of a run so far, measured against those of its base.

    Args:
        base_q: by task, in the suite's order, the base's answers [P, C].
        view: how prompts are rendered.
        in_view: by task that is compared with the base's answers to the plain prompts, those in its
            view [P, C].
        of_base: what is averaged over prompts, in the base: [N] by key, where that is known.

    Attributes:
        detector: of the phases.
        events: those that the latest probe raised; `raised` has those of all probes.
        last_step: that of the latest probe, -1 before the first.
        inherited: by task, what the run that the model came from has handed on.
        limits: of the suite's metrics, which raise events too.
    """

    def __init__(
        self,
        base_q: Mapping[str, np.ndarray],
        view: str,
        in_view: Mapping[str, np.ndarray] | None = None,
        of_base: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.base_q, self._view, self._in_view = base_q, view, in_view or {}
        self._of_base = of_base or {}
        self.detector = SuiteDetector(base_q, in_view=in_view)
        self.events: list[Event] = []
        self.raised: list[Event] = []
        self.last_step = -1
        self.inherited: dict[str, PhaseState] = {}
        self.limits = Limits({})
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=2 * max(DISSIMILARITY_WINDOWS))

    def inherit(self, states: Mapping[str, PhaseState]) -> None:
        """Before the first probe, take over the phases of the run that the model came from."""
        self.inherited = dict(states)
        self.detector = SuiteDetector(self.base_q, states, self._in_view)

    def measure(
        self,
        step: int,
        q: Mapping[str, np.ndarray],
        asked: Asked,
        per_prompt: Mapping[str, np.ndarray],
    ) -> dict[str, TaskMeasurement]:
        """Take up one probe's answers: measure them, and show them to the detector.

        Args:
            step: larger than the last one.
            q: by task [p, C].
            asked: which prompts these answer.
            per_prompt: what is averaged over prompts, `coverage` and `measurable` among it: [n]
                values by key.
        """
        measured = self._measured(q, asked, per_prompt)
        self._take_up(step, q, asked)
        coverage, shares, free_energy = (
            {name: task.metrics.get(key) for name, task in measured.items()}
            for key in ("coverage", "measurable", "free_energy")
        )
        partial = {name: self._partial(name, rows) for name, rows in asked.items()}
        self.events = self.detector.update(step, q, coverage, partial, shares, free_energy)
        return measured

    def replay(self, record: ProbeRecord) -> list[Event]:
        """Take up a stored probe: how a resumed run catches up."""
        q, asked = _answers_of(record)
        self._take_up(record.step, q, asked)
        self.events = observe(self.detector, record)
        self.conclude(record)
        return self.events

    def conclude(self, record: ProbeRecord) -> None:
        """Add the events of limits, once the probe's metrics are known."""
        self.events += self.limits.check(record)
        self.raised += self.events

    def remeasure(self, record: ProbeRecord) -> ProbeRecord:
        """Take up a stored probe after an earlier step was probed anew.

        The metrics of its answers are measured again, since the seed and the probes before it may
        have changed; those of the vocabulary are kept.

        Returns:
            The record as it would have been; the events that it raised are in `events`.
        """
        q, asked = _answers_of(record)
        measured = self._measured(q, asked, {})
        self.replay(record)
        made = self.record(
            record.step, record.epoch, record.seconds, record.share, measured, q, asked
        )
        tasks = {
            name: replace(
                task,
                metrics={**record.tasks[name].metrics, **task.metrics},
                ci={**record.tasks[name].ci, **task.ci},
            )
            for name, task in made.tasks.items()
        }
        kept, ends = (
            {key: value for key, value in of.items() if not _is_relative(key)}
            for of in (record.metrics, record.ci)
        )
        metrics, ci = {**kept, **made.metrics}, {**ends, **made.ci}
        return replace(record, phase=made.phase, metrics=metrics, ci=ci, tasks=tasks)

    def record(
        self,
        step: int,
        epoch: float | None,
        seconds: float,
        share: float,
        measured: Mapping[str, TaskMeasurement],
        q: Mapping[str, np.ndarray],
        asked: Asked,
    ) -> ProbeRecord:
        """What is stored of a probe, once the detector has seen it; see `ProbeRecord`."""
        measured = {n: _known(task, self.detector.tasks[n]) for n, task in measured.items()}
        sets = {name: task.seed_set for name, task in self.detector.tasks.items()}
        sizes = {name: float(len(members)) for name, members in sets.items() if members}
        tasks = {
            name: TaskRecord(
                q=q[name],
                metrics={**task.metrics, "seed_set_size": sizes.get(name, np.nan)},
                ci=bootstrap_intervals(task.metrics, task.replicates, expansion([len(q[name])])),
                phase=self.detector.tasks[name].phase,
                seed=self.detector.tasks[name].seed,
                view=self._view,
                asked=self._partial(name, asked[name]),
                seed_set=sets[name],
            )
            for name, task in measured.items()
        }
        metrics, ci = self._suite_level(measured, {name: len(own) for name, own in q.items()})
        if sizes:
            metrics["seed_set_size"] = float(np.mean(list(sizes.values())))
        return ProbeRecord(
            step=step,
            epoch=epoch,
            time=time.time(),
            seconds=seconds,
            share=share,
            phase=self.detector.phase,
            metrics=metrics,
            ci=ci,
            tasks=tasks,
        )

    def _partial(self, name: str, rows: np.ndarray) -> tuple[int, ...] | None:
        """The prompts asked of a task; None for all."""
        return None if len(rows) == len(self.base_q[name]) else tuple(rows.tolist())

    def _take_up(self, step: int, q: Mapping[str, np.ndarray], asked: Asked) -> None:
        self.last_step = step
        tables = {name: np.full_like(b, np.nan) for name, b in self.base_q.items()}
        for name, own in q.items():
            tables[name][asked[name]] = own
        self._history.append(tables)

    def _measured(
        self, q: Mapping[str, np.ndarray], asked: Asked, per_prompt: Mapping[str, np.ndarray]
    ) -> dict[str, TaskMeasurement]:
        """By task; `per_prompt` holds what is averaged over prompts, [n] values by key."""
        # the same resamples at every probe, so that intervals move only when the model does
        rng = np.random.default_rng(0)
        measured: dict[str, TaskMeasurement] = {}
        start = first = 0
        for name, b in self.base_q.items():
            rows = asked[name]
            stop, last = start + len(rows), first + len(b)
            past = [probe[name][rows] for probe in self._history]
            measured[name] = measure_task(
                q[name],
                b,
                {key: values[start:stop] for key, values in per_prompt.items()},
                bootstrap_weights(len(rows), REPLICATES, rng),
                self.detector.tasks[name].seed,
                asked=rows,
                in_view=self._in_view.get(name),
                of_base={key: values[first:last] for key, values in self._of_base.items()},
                changes=dissimilarities(np.stack([*past, q[name]])),
            )
            start, first = stop, last
        return measured

    def _suite_level(
        self, measured: Mapping[str, TaskMeasurement], prompts: Mapping[str, int]
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """See `mean_over_tasks`; a metric that no task has, or too few, is left out."""
        metrics: dict[str, float] = {}
        ci: dict[str, tuple[float, float]] = {}
        held = [name for name in measured if self.detector.tasks[name].seed is not None]
        known = [] if self.detector.phase == NOT_MEASURABLE else self.detector.measurable
        for key in next(iter(measured.values())).replicates:
            names = list(measured)
            if BY_KEY[key].nucleation:
                names = known
            elif BY_KEY[key].held:
                names = held
            if names:
                found = [measured[name] for name in names]
                metrics[key], replicates = mean_over_tasks(found, key)
                wider = expansion([prompts[name] for name in names])
                ci |= bootstrap_intervals({key: metrics[key]}, {key: replicates}, wider)
        phases = [task.phase for task in self.detector.tasks.values()]
        for phase in PHASES:
            metrics[tasks_in(phase)] = float(phases.count(phase))
        return metrics, ci


def _is_relative(key: str) -> bool:
    """Whether a metric refers to what the base has to lose, or to seeds."""
    relative = key in BY_KEY and (BY_KEY[key].nucleation or BY_KEY[key].held)
    return relative or key == "seed_set_size"


def _known(task: TaskMeasurement, detector: PhaseDetector) -> TaskMeasurement:
    """NaN for what has nothing to refer to: a base with liquidity that can be measured, a seed."""
    lost = detector.ordered or detector.phase == NOT_MEASURABLE
    unknown = [
        key
        for key in task.replicates
        if (BY_KEY[key].nucleation and lost) or (BY_KEY[key].held and detector.seed is None)
    ]
    replicates = {key: np.full_like(task.replicates[key], np.nan) for key in unknown}
    metrics = {**task.metrics, **dict.fromkeys(unknown, np.nan)}
    return replace(task, metrics=metrics, replicates={**task.replicates, **replicates})


def _answers_of(record: ProbeRecord) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By task the answers [p, C] of a stored probe, and the prompts asked [p]."""
    tasks = record.tasks.items()
    return {name: task.q for name, task in tasks}, {name: task.rows for name, task in tasks}
