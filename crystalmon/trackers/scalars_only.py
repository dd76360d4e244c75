"""Trackers that get the scalars alone: MLflow, Comet, ClearML and SwanLab.

Each joins the run that transformers' own reporter has begun, through the library's own notion of
the active run. What is not finite is left out: not all of them can store it.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Send = Callable[[Any, int, dict[str, float]], None]

_NOT_FOR_MLFLOW = re.compile(r"[^\w\-. :/]")


def _mlflow(mlflow: Any, step: int, metrics: dict[str, float]) -> None:
    if mlflow.active_run() is None:
        raise RuntimeError("mlflow has no active run. Call mlflow.start_run() before training")
    named = {_NOT_FOR_MLFLOW.sub("_", key): value for key, value in metrics.items()}
    mlflow.log_metrics(named, step=step)


def _comet(comet: Any, step: int, metrics: dict[str, float]) -> None:
    experiment = comet.get_running_experiment()
    if experiment is None:
        raise RuntimeError("comet_ml has no experiment. Call comet_ml.start() before training")
    experiment.log_metrics(metrics, step=step)


def _clearml(clearml: Any, step: int, metrics: dict[str, float]) -> None:
    task = clearml.Task.current_task()
    if task is None:
        raise RuntimeError("clearml has no current task. Call Task.init() before training")
    logger = task.get_logger()
    for key, value in metrics.items():
        title, _, series = key.rpartition("/")
        logger.report_scalar(title=title, series=series, value=value, iteration=step)


def _swanlab(swanlab: Any, step: int, metrics: dict[str, float]) -> None:
    if swanlab.get_run() is None:
        raise RuntimeError("swanlab has no run. Call swanlab.init() before training")
    swanlab.log(metrics, step=step)


SCALAR_TRACKERS: dict[str, tuple[str, Send]] = {
    "mlflow": ("mlflow", _mlflow),
    # transformers' DagsHub reporter is its MLflow reporter with another place to write to
    "dagshub": ("mlflow", _mlflow),
    "comet_ml": ("comet_ml", _comet),
    "clearml": ("clearml", _clearml),
    "swanlab": ("swanlab", _swanlab),
}
"""By the name in `report_to`: the library, and how one probe is sent to its active run."""


class ScalarTracker:
    """Sends each probe's finite scalars to the active run of one library.

    Args:
        name: a key of `SCALAR_TRACKERS`.
    """

    def __init__(self, name: str) -> None:
        self._module, self._send = SCALAR_TRACKERS[name]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one probe."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self._send(importlib.import_module(self._module), step, finite)

    def show(self, snapshot: Any) -> None:
        """Do nothing: these trackers get scalars alone."""

    def event(self, event: Any) -> None:
        """Do nothing: an event shows as a change of the logged phases."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing: these get the scalars alone."""

    def close(self) -> None:
        """Do nothing: the run is the trainer's."""
