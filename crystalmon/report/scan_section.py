"""Scans within the report: verdicts, the paper's figures, and one family's seeds in another's."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from crystalmon.analysis.transfer import find_transfer
from crystalmon.report.scan_figures import scan_figures
from crystalmon.report.style import figure_svg
from crystalmon.report.transfer_figure import transfer_figure
from crystalmon.runs.names import SCAN_FILE
from crystalmon.runs.run import Run

_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What a damaged file may raise."""


def scan_sections(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the report shows of each run that is a scan, and of each two of them.

    Returns:
        Sections: the `name` of a scan, its `verdicts` (`claim`, `verdict`, `reason`) and `figures`
        (`title`, `words` and an SVG file as `picture`, in base64); a last one, without verdicts,
        of the seeds of the first scan in each of the others, and of theirs in the first. Then a
        sentence for each scan, and each pair, that cannot be shown.
    """
    scans = [run for run in runs if (run.folder / SCAN_FILE).is_file()]
    sections: list[dict[str, Any]] = []
    notes: list[str] = []
    for run in scans:
        try:
            sections.append(_section(run))
        except _DAMAGE as error:
            notes.append(
                f"{run.name}: {SCAN_FILE} cannot be shown ({type(error).__name__}: {error}). Scan "
                "again: what is measured is kept."
            )
    figures: list[dict[str, str]] = []
    for other in scans[1:]:
        for a, b in ((scans[0], other), (other, scans[0])):
            try:
                figures.append(_transfer(a, b))
            except _DAMAGE as error:
                if _measures(a) == _measures(b):  # else the two cannot be compared
                    told = isinstance(error, OSError | ValueError)
                    why = error if told else f"{type(error).__name__}: {error}. Scan both again."
                    notes.append(f"The seeds of {a.name} are not looked for in {b.name}: {why}")
    if figures:
        sections.append({"name": "Seeds across families", "verdicts": [], "figures": figures})
    return sections, notes


def _section(run: Run) -> dict[str, Any]:
    found = json.loads((run.folder / SCAN_FILE).read_text(encoding="utf-8"))
    shown = ("claim", "verdict", "reason")
    return {
        "name": run.name,
        "verdicts": [{key: str(each[key]) for key in shown} for each in found["verdicts"]],
        "figures": [_picture(*each[1:]) for each in scan_figures(run, found)],
    }


def _transfer(a: Run, b: Run) -> dict[str, str]:
    words = (
        f"How near the answers of {b.name} come to what the base of {a.name} answers at its "
        "seeds, beside its other prompts; and task by task the seed's rank among them as a "
        "p-value. A seed may lie near to everything: compare with the base's column."
    )
    figure = transfer_figure(a.name, b.name, find_transfer(a, b))
    return _picture(f"The seeds of {a.name} in {b.name}", words, figure)


def _picture(title: str, words: str, figure: Figure) -> dict[str, str]:
    picture = base64.b64encode(figure_svg(figure).encode()).decode("ascii")
    return {"title": title, "words": words, "picture": picture}


def _measures(run: Run) -> tuple[Any, Any]:
    """The suite and the view that a scan was made with."""
    return run.info.get("suite_hash"), run.view
