"""Trackers that get scalars only: MLflow (and DagsHub), Comet, ClearML and SwanLab.

They get no pictures, and an event shows as a change of the logged phase. Non-finite values are left
out, since not all of these libraries can store them.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from crystalmon.trackers.base import Tracker


class ScalarTracker(Tracker):
    """Sends each probe's finite scalars to the active run of one library.

    A subclass names the `library`, its function that gives the `active` run or None, and the call
    that `start`s a run.
    """

    library: str
    active: str
    start: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the finite ones; raises a RuntimeError if no run is active."""
        library = importlib.import_module(self.library)
        run = attrgetter(self.active)(library)()
        if run is None:
            raise RuntimeError(f"{self.library} has no run. Call {self.start} before training")
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self._send(library, run, step, finite)

    def _send(self, library: Any, run: Any, step: int, metrics: dict[str, float]) -> None:
        library.log(metrics, step=step)


class MLflowTracker(ScalarTracker):
    """Characters that MLflow refuses in a name become underscores."""

    library, active, start = "mlflow", "active_run", "mlflow.start_run()"

    def _send(self, library: Any, run: Any, step: int, metrics: dict[str, float]) -> None:
        named = {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in metrics.items()}
        library.log_metrics(named, step=step)


class CometTracker(ScalarTracker):
    """Logs into Comet's running experiment."""

    library, active, start = "comet_ml", "get_running_experiment", "comet_ml.start()"

    def _send(self, library: Any, run: Any, step: int, metrics: dict[str, float]) -> None:
        run.log_metrics(metrics, step=step)


class ClearMLTracker(ScalarTracker):
    """The last part of a name is ClearML's series, the rest its plot."""

    library, active, start = "clearml", "Task.current_task", "clearml.Task.init()"

    def _send(self, library: Any, run: Any, step: int, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            title, _, series = key.rpartition("/")
            run.get_logger().report_scalar(title, series, value=value, iteration=step)


class SwanLabTracker(ScalarTracker):
    """Logs into SwanLab's active run."""

    library, active, start = "swanlab", "get_run", "swanlab.init()"
