"""crystalmon: watch a language model crystallize while it is post-trained.

The public names are imported on first use (PEP 562), so that reading a run needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalmon.callback import CrystalCallback
    from crystalmon.monitor import Monitor
    from crystalmon.records import Event, ProbeRecord, TaskRecord
    from crystalmon.store import Run, read_run
    from crystalmon.tasks import Choice, Task, TaskSuite, list_suites, load_suite

__version__ = "0.1.0"

_HOME = {
    "CrystalCallback": "callback",
    "Monitor": "monitor",
    "Event": "records",
    "ProbeRecord": "records",
    "TaskRecord": "records",
    "Run": "store",
    "read_run": "store",
    "Choice": "tasks",
    "Task": "tasks",
    "TaskSuite": "tasks",
    "list_suites": "tasks",
    "load_suite": "tasks",
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
    "load_suite",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalmon.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
