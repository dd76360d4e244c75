"""What a run takes over: on resume its own past, else that of the run its model came from.

The detector of each stage is its own, but SFT → DPO → GRPO is one history: a seed that has won
stays the seed, unless the stage begins liquid, and what has been raised is not raised again before
it has passed. A stage's `run.json` holds what it took over, so that a replay needs no other folder.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalmon.names import REFERENCE_FOLDER
from crystalmon.phases import Lock, PhaseState, SuiteDetector
from crystalmon.records import EVENT_KINDS, PHASES, Event, ProbeRecord
from crystalmon.reference import INFO_FILE, find_reference
from crystalmon.store import RUN_FILE, Run, RunStore, read_run
from crystalmon.tasks import TaskSuite

logger = logging.getLogger(__name__)

INHERITED_KEY = "inherited"
"""In `run.json`: by task, what `PhaseState.handed_on` keeps."""


@dataclass(frozen=True)
class Origin:
    """Where a run begins.

    Args:
        folder: its run folder.
        step: 0, or the step that it is resumed from.
        model: the name or folder that its model was loaded from.
        suite, view: what it is probed with.
    """

    folder: Path
    step: int
    model: str
    suite: TaskSuite
    view: str

    @property
    def _is_resumed(self) -> bool:
        return self.step > 0 and (self.folder / RUN_FILE).is_file()

    def history(self) -> list[ProbeRecord]:
        """The probes up to the step that a run is resumed from.

        Raises:
            RunFolderError: if the folder cannot be written to.
            ValueError: if that run was monitored with another suite or view.
        """
        RunStore.check_writable(self.folder)
        if not self._is_resumed:
            return []
        run = read_run(self.folder)
        before = (run.info.get("suite_hash"), run.info.get("config", {}).get("view"))
        if before != (self.suite.hash, self.view):
            raise ValueError(
                f"the run in {self.folder} must be resumed with its own suite and view, "
                f"{run.info.get('suite')!r} and {before[1]!r}, got {self.suite.name!r} and "
                f"{self.view!r}. Use those, or another output_dir."
            )
        return [record for record in run.records if record.step <= self.step]

    def reference(self, asked: str) -> str | Path:
        """Where to look for the base: as asked, but where step 0 cannot be probed any more.

        A run that is resumed keeps the base that it started with.

        Args:
            asked: `auto`, `initial`, or a name or path.

        Raises:
            FileNotFoundError: if that base is gone.
        """
        if self.step == 0 or asked not in ("auto", "initial"):
            return asked
        if (self.folder / REFERENCE_FOLDER / INFO_FILE).is_file():
            return self.folder / REFERENCE_FOLDER
        found = find_reference(self.model, self.suite, self.view) if asked == "auto" else None
        if found is not None:
            return found
        raise FileNotFoundError(
            f"{self.folder} holds no reference, and at step {self.step} the initial model is gone. "
            "Name the base model: CrystalCallback(reference='<model id or path>')."
        )

    def inherited(
        self, reference: str, reference_q: Mapping[str, np.ndarray]
    ) -> dict[str, PhaseState]:
        """By task, what the run that the model came from hands on; on resume, what it handed on.

        Args:
            reference: the id of this run's base; a run with another one hands on nothing.
            reference_q: by task, the base's answers [P, C].
        """
        if self._is_resumed:
            return states_of(read_run(self.folder).info)
        found = find_reference(self.model, self.suite, self.view)
        if found is None or found.parent.resolve() == self.folder.resolve():
            return {}
        checkpoint = re.fullmatch(r"checkpoint-(\d+)", Path(self.model).name)
        try:
            run = read_run(found.parent)
            if run.info.get("reference") != reference:
                return {}
            shared = {
                n: q for n, q in reference_q.items() if all(n in r.tasks for r in run.records)
            }
            detector = replay(run, shared, until=int(checkpoint[1]) if checkpoint else None)
        except (OSError, ValueError) as error:
            logger.warning(
                "crystalmon: nothing is taken over from the damaged run in %s: %s",
                found.parent,
                error,
            )
            return {}
        return {
            name: task.state.handed_on()
            for name, task in detector.tasks.items()
            if task.phase != PHASES[-1]
        }


def states_of(run_info: Mapping[str, Any]) -> dict[str, PhaseState]:
    """By task, the detector's state at the start of a run, from its `run.json`.

    Raises:
        ValueError: if that part of it is damaged.
    """
    try:
        kept = (run_info.get(INHERITED_KEY) or {}).items()
        return {task: _read_state(state) for task, state in kept}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{INHERITED_KEY} in run.json must hold locks, coverages and kinds of events, and is "
            f"damaged ({type(error).__name__}: {error}). Take it out, or train the stage again."
        ) from error


def _read_state(kept: Mapping[str, Any]) -> PhaseState:
    """What `to_info` has written of one task, checked."""
    lock = None if kept["lock"] is None else Lock(**kept["lock"])
    numbers = [kept["coverage"]]
    if lock is not None:
        numbers += [lock.mass, lock.nearest, lock.p_value, lock.margin]
        if type(lock.seed) is not int or None in (lock.mass, lock.nearest):
            raise TypeError(f"a lock must have a seed, a mass and a distance, got {lock}")
    wrong = [x for x in numbers if x is not None and not _is_number(x)]
    if wrong:
        raise TypeError(f"numbers must be finite, got {wrong[0]!r}")
    raised = kept.get("raised", [])
    if not isinstance(raised, list) or not set(raised) <= set(EVENT_KINDS):
        raise TypeError(f"raised must list kinds of events, got {raised!r}")
    return PhaseState(lock=lock, coverage=kept["coverage"], raised=frozenset(raised))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def to_info(states: Mapping[str, PhaseState]) -> dict[str, Any]:
    """The inverse of `states_of`: what goes into `run.json`."""
    return {
        task: {
            "lock": None if state.lock is None else asdict(state.lock),
            "coverage": state.coverage,
            "raised": sorted(state.raised),
        }
        for task, state in states.items()
    }


def replay(
    run: Run, reference_q: Mapping[str, np.ndarray], *, until: int | None = None
) -> SuiteDetector:
    """The detector after a run's probes, up to a step."""
    detector = SuiteDetector(reference_q, states_of(run.info))
    for record in run.records:
        if until is None or record.step <= until:
            show(detector, record)
    return detector


def show(detector: SuiteDetector, record: ProbeRecord) -> list[Event]:
    """Show one stored probe to a detector."""
    q = {name: task.q for name, task in record.tasks.items()}
    coverage = {name: task.metrics["coverage"] for name, task in record.tasks.items()}
    return detector.update(record.step, q, coverage)
