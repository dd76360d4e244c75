"""Run folders → a page, a table of stages and figures. Reads what is stored; needs no torch.

The public names are imported on first use, so that the table needs no matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalmon.report.heatmaps import task_figure
    from crystalmon.report.page import report_html, write_report
    from crystalmon.report.stages import stage_figure
    from crystalmon.report.summary import StageRow, format_stage_table, stage_table

_HOME = {
    "StageRow": "summary",
    "format_stage_table": "summary",
    "report_html": "page",
    "stage_figure": "stages",
    "stage_table": "summary",
    "task_figure": "heatmaps",
    "write_report": "page",
}

__all__ = [
    "StageRow",
    "format_stage_table",
    "report_html",
    "stage_figure",
    "stage_table",
    "task_figure",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalmon.report.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
