"""What a user has asked for in one view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalmon.experiments.common.experiment import Experiment
from crystalmon.monitor.actions import Action, action_name
from crystalmon.runs.reference import Reference
from crystalmon.scoring.precision_trial import AskedPrecision
from crystalmon.scoring.rendering import View
from crystalmon.suites.tasks import TaskSuite
from crystalmon.trackers.base import Logged


@dataclass(frozen=True)
class Settings:
    """The arguments of `callback.CrystalCallback`, which has checked them, for one of its views.

    `view_name` is empty for a callback's first view; `logged` is its argument `log`.
    """

    suite: TaskSuite
    every: float | None
    reference: str | Path | Reference
    view: View
    view_name: str
    precision: AskedPrecision
    strict: bool
    actions: Mapping[str, tuple[Action, ...]]
    limits: Mapping[str, float]
    max_overhead: float | None
    experiments: Mapping[Experiment, int]
    logged: Logged
    verbose: bool

    def to_info(self) -> dict[str, Any]:
        """Ready for JSON, as `run.json` keeps it."""
        named = isinstance(self.reference, str | Path)
        return {
            "every": self.every,
            "max_overhead": self.max_overhead,
            "reference": str(self.reference) if named else "given",
            "view": self.view,
            "precision": self.precision,
            "strict": self.strict,
            "log": self.logged,
            "experiments": {each.name: every for each, every in self.experiments.items()},
            "actions": {
                signal: [action_name(action) for action in actions]
                for signal, actions in self.actions.items()
            },
            "limits": dict(self.limits),
        }
