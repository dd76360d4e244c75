"""What a run takes over: on resume its own past, else that of the run its model came from.

Each stage has its own detector, but SFT → DPO → GRPO is one history: a seed that has won stays the
seed unless the stage begins liquid, and an event is not raised again before its cause has passed. A
stage's `run.json` holds what it took over, so that a replay needs no other folder.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crystalmon.phases import PhaseState
from crystalmon.phases.stored import limits_of, replay_run, states_of
from crystalmon.runs.compared_answers import read_base_answers, same_answers
from crystalmon.runs.files import RUN_FILE
from crystalmon.runs.find_reference import find_reference
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.reference import INFO_FILE, Reference
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.scoring.precision_trial import AskedPrecision
from crystalmon.scoring.ranks import Ranks
from crystalmon.suites.tasks import TaskSuite

logger = logging.getLogger(__name__)


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

    @cached_property
    def _past(self) -> Run | None:
        """The run so far; None unless it is resumed."""
        resumed = self.step > 0 and (self.folder / RUN_FILE).is_file()
        return read_run(self.folder) if resumed else None

    def history(self) -> list[ProbeRecord]:
        """The probes up to the step that a run is resumed from.

        Raises:
            RunFolderError: if the folder cannot be written to.
            ValueError: if that run was monitored with another suite or view.
        """
        RunStore.check_writable(self.folder)
        if (run := self._past) is None:
            return []
        if (run.info.get("suite_hash"), run.view) != (self.suite.hash, self.view):
            raise ValueError(
                f"the run in {self.folder} must be resumed with its own suite and view, "
                f"{run.info.get('suite')!r} and {run.view!r}, got {self.suite.name!r} and "
                f"{self.view!r}. Use those, or another output_dir."
            )
        return [record for record in run.records if record.step <= self.step]

    def base(
        self,
        asked: str | Path | Reference,
        first: Reference | None,
        known: Reference | None,
        ranks: Ranks,
    ) -> str | Path | Reference:
        """What to compare with. Called on every rank, unlike the other methods.

        As asked; but for `auto` and `initial` a resumed run keeps its base, and a second training
        by the same trainer that of the first. For `auto`, a model that another trainer of this
        process has trained is compared with what it was before, unless its folder holds a base.

        Args:
            asked: the user's `reference`.
            first: the base of the same trainer's first training, if that was the model itself.
            known: what the model was at first, if another trainer has trained it since.
            ranks: of this training; rank 0 looks.

        Raises:
            FileNotFoundError: if the base of a resumed run is gone.
        """
        if isinstance(asked, Reference):
            return asked
        if self.step == 0 and asked in ("auto", "initial"):
            if first is not None:
                return first
            if asked == "auto" and known is not None:
                stored = ranks.on_main(lambda: find_reference(self.model, self.suite, self.view))
                return known if stored is None else asked
        return ranks.on_main(lambda: self._named(str(asked)))

    def _named(self, asked: str) -> str | Path:
        """As asked; `auto` and `initial` of a resumed run are the base that it began with.

        Args:
            asked: `auto`, `initial`, or a name or path.

        Raises:
            FileNotFoundError: if that base is gone.
        """
        if self.step == 0 or asked not in ("auto", "initial"):
            return asked
        own = self.folder / REFERENCE_FOLDER
        if (own / INFO_FILE).is_file():
            return own
        found = find_reference(self.model, self.suite, self.view) if asked == "auto" else None
        if found is None:
            raise FileNotFoundError(
                f"{self.folder} holds no reference, and at step {self.step} the initial model is "
                "gone. Name the base model: CrystalCallback(reference='<model id or path>')."
            )
        return found

    def precision(self, asked: AskedPrecision) -> tuple[AskedPrecision, dict[str, float] | None]:
        """As asked; of a run that is resumed, the precision that it has, and its trial if any."""
        info = self._past.info if self._past else {}
        own = info.get("precision")
        if own not in ("model", "float32"):  # of a run that tells none
            return asked, None
        if asked not in ("auto", own):
            logger.warning("crystalmon: the run began with precision=%r and goes on with it.", own)
        return own, info.get("precision_trial")

    def limits(self) -> dict[str, float]:
        """Those on metrics that a run which is resumed had before."""
        return limits_of(self._past.info) if self._past else {}

    def inherited(self, reference_q: Mapping[str, np.ndarray]) -> dict[str, PhaseState]:
        """By task, what the run that the model came from hands on; on resume, what it handed on.

        Args:
            reference_q: by task, the base's answers [P, C]; a run of another base hands on nothing.
        """
        if self._past:
            return states_of(self._past.info)
        found = find_reference(self.model, self.suite, self.view)
        if found is None or found.parent.resolve() == self.folder.resolve():
            return {}
        checkpoint = re.fullmatch(r"checkpoint-(\d+)", Path(self.model).name)
        until = int(checkpoint[1]) if checkpoint else math.inf
        try:
            run = read_run(found.parent)
            base = read_base_answers(run.folder)
            known = [name for name in reference_q if name in base]
            names = [n for n in known if all(n in record.tasks for record in run.records)]
            both = ({name: q[name] for name in names} for q in (base, reference_q))
            if not names or not same_answers(*both):
                return {}
            detector = replay_run(run, {name: reference_q[name] for name in names}, until)
        except (OSError, ValueError) as error:
            told = f"the run in {found.parent} is damaged, and nothing is taken over from it"
            logger.warning("crystalmon: %s: %s", told, error)
            return {}
        return {name: task.state.handed_on() for name, task in detector.tasks.items()}
