"""Scans within the report: verdicts, the paper's figures, and one family's seeds in another's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from crystalmon.analysis.transfer import find_transfer
from crystalmon.report.scan_figures import ScanFigure, figure_svg, scan_figures
from crystalmon.report.transfer_figure import transfer_figure
from crystalmon.runs.names import SCAN_FILE
from crystalmon.runs.reader import Run

_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What files raise that are not what they should be."""


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
        except _DAMAGE as error:
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
        "figures": [_picture(each) for each in scan_figures(run, found)],
    }


def transfer_section(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """The seeds of the first scan in each of the others, and those of each in the first.

    Returns:
        At most one section, as `scan_sections` has them, without verdicts; a sentence for each
        pair of one suite and view that cannot be compared.
    """
    scans = [run for run in runs if (run.folder / SCAN_FILE).is_file()]
    pairs = [pair for other in scans[1:] for pair in ((scans[0], other), (other, scans[0]))]
    figures, notes = [], []
    for a, b in pairs:
        try:
            stages = find_transfer(a, b)
        except _DAMAGE as error:
            if _measures(a) == _measures(b):
                known = isinstance(error, OSError | ValueError)
                why = str(error) if known else f"{type(error).__name__}: {error}. Scan both again."
                notes.append(f"The seeds of {a.name} are not looked for in {b.name}: {why}")
            continue
        figures.append(
            ScanFigure(
                "transfer",
                f"The seeds of {a.name} in {b.name}",
                f"How near the answers of {b.name} come to what the base of {a.name} answers at "
                "its seeds, beside its other prompts; and task by task the seed's rank among them "
                "as a p-value. A seed may lie near to everything: compare with the base's column.",
                transfer_figure(a.name, b.name, stages),
            )
        )
    name = "Seeds across families"
    pictures = [_picture(each) for each in figures]
    return [{"name": name, "verdicts": [], "figures": pictures}] if pictures else [], notes


def _measures(run: Run) -> tuple[Any, Any]:
    """The suite and the view that a scan was made with."""
    config = run.info.get("config")
    view = config.get("view") if isinstance(config, Mapping) else None
    return run.info.get("suite_hash"), view


def _picture(figure: ScanFigure) -> dict[str, str]:
    return {
        "title": figure.title,
        "words": figure.words,
        "picture": base64.b64encode(figure_svg(figure.figure).encode()).decode("ascii"),
    }
