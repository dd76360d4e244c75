"""A scan within the report: its verdicts, and the paper's figures as pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from crystalmon.names import SCAN_FILE
from crystalmon.report.scan_figures import figure_svg, scan_figures
from crystalmon.store import Run


def scan_sections(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the report shows of each run that is a scan, and a sentence for each that it cannot.

    Returns:
        Of each scan its `name`, its `verdicts` (`claim`, `verdict`, `reason`) and `figures`
        (`title`, `words` and an SVG file as `picture`, in base64); the sentences.
    """
    sections, notes = [], []
    for run in runs:
        file = run.folder / SCAN_FILE
        if not file.is_file():
            continue
        try:
            sections.append(_section(run, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            notes.append(
                f"{run.name}: {SCAN_FILE} cannot be shown ({type(error).__name__}: {error}). Scan "
                "again: what is measured is kept."
            )
    return sections, notes


def _section(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("claim", "verdict", "reason")
    return {
        "name": run.name,
        "verdicts": [{key: str(each[key]) for key in shown} for each in found["verdicts"]],
        "figures": [
            {
                "title": each.title,
                "words": each.words,
                "picture": base64.b64encode(figure_svg(each.figure).encode()).decode("ascii"),
            }
            for each in scan_figures(run, found)
        ],
    }
