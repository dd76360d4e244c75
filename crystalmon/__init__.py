"""crystalmon: watch a language model crystallize while it is post-trained.

The public names are imported on first use (PEP 562), so that reading a run needs no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

from crystalmon.version import __version__

if TYPE_CHECKING:
    from crystalmon.monitor.callback import CrystalCallback
    from crystalmon.monitor.probe import Monitor
    from crystalmon.runs.reader import read_run
    from crystalmon.runs.records import Event, ProbeRecord, TaskRecord
    from crystalmon.runs.run import Run
    from crystalmon.scoring.models import load_model
    from crystalmon.suites.tasks import Choice, Task, TaskSuite, list_suites, load_suite

_HOME = {
    "CrystalCallback": "monitor.callback",
    "Monitor": "monitor.probe",
    "Event": "runs.records",
    "ProbeRecord": "runs.records",
    "TaskRecord": "runs.records",
    "Run": "runs.run",
    "read_run": "runs.reader",
    "load_model": "scoring.models",
    "Choice": "suites.tasks",
    "Task": "suites.tasks",
    "TaskSuite": "suites.tasks",
    "list_suites": "suites.tasks",
    "load_suite": "suites.tasks",
}

__all__ = [
    "Choice",
    "CrystalCallback",
    "Event",
    "Monitor",
    "ProbeRecord",
    "Run",
    "Task",
    "TaskRecord",
    "TaskSuite",
    "__version__",
    "list_suites",
    "load_model",
    "load_suite",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalmon.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Models(types.ModuleType):
    """`crystalmon.models`, as it was called before `crystalmon.load_model`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # tools look for these in every module; torch is not for them
            raise AttributeError(name)
        found = getattr(importlib.import_module("crystalmon.scoring.models"), name)
        text = f"crystalmon.models.{name} has moved: use `from crystalmon import load_model`."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return found


models = sys.modules["crystalmon.models"] = _Models("crystalmon.models")
