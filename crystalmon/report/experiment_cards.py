"""Results of experiments on the page: their headline figures, table and picture.

A folder holds `<experiment>.json`, or `<experiment>-<step>.json` for each step of a training, and
the table and figure of the latest as `<experiment>.txt` and `<experiment>.svg`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crystalmon.runs.names import EXPERIMENTS_FOLDER
from crystalmon.runs.reader import Run
from crystalmon.runs.results import Result

LARGEST_FIGURE = 4_000_000
"""Bytes beyond which a figure is left out, so that a browser still opens the page."""


def run_cards(runs: Iterable[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the runs' experiments have found; see `folder_cards`."""
    found = [folder_cards(run.folder / EXPERIMENTS_FOLDER, run.name) for run in runs]
    return [card for cards, _ in found for card in cards], [n for _, notes in found for n in notes]


def folder_cards(folder: Path, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A card for each experiment in a folder, by name, and a sentence for each broken file.

    Args:
        folder: with results; it need not be there.
        where: the run's or the folder's name, as the page shows it.

    Returns:
        Cards of JSON values: `experiment`, `where`, `models`, `steps`, `seconds`, `rows` (a dict
        of `key`, `first` and `last` for each headline figure), `table` and `figure` (an SVG image
        in base64, or None).
    """
    results: dict[str, list[Result]] = {}
    notes: list[str] = []
    for file in sorted(folder.glob("*.json")):
        try:
            result = _read(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{file} cannot be read as a result of an experiment: {error}")
            continue
        if result is not None:
            results.setdefault(result.experiment, []).append(result)
    return [_card(folder, where, found) for _, found in sorted(results.items())], notes


def _read(file: Path) -> Result | None:
    """A result that lies under its own name; None for a JSON file of another kind."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "experiment" not in found:
        return None
    result = Result.from_json(found)
    step = "" if result.step is None else f"-{result.step}"
    return result if file.stem == f"{result.experiment}{step}" else None


def _card(folder: Path, where: str, results: Sequence[Result]) -> dict[str, Any]:
    ordered = sorted(results, key=lambda result: -1 if result.step is None else result.step)
    first, last = (
        {
            key: [_number(each) for each in (estimate.value, estimate.low, estimate.high)]
            for key, estimate in result.estimates.items()
        }
        for result in (ordered[0], ordered[-1])
    )
    table, figure = (folder / f"{ordered[0].experiment}.{kind}" for kind in ("txt", "svg"))
    small = figure.is_file() and figure.stat().st_size <= LARGEST_FIGURE
    return {
        "experiment": ordered[0].experiment,
        "where": where,
        "models": {role: str(model) for role, model in ordered[-1].models.items() if model},
        "steps": [result.step for result in ordered],
        "seconds": _number(ordered[-1].seconds),
        "rows": [{"key": key, "first": first.get(key), "last": ends} for key, ends in last.items()],
        "table": table.read_text(encoding="utf-8", errors="replace") if table.is_file() else None,
        "figure": base64.b64encode(figure.read_bytes()).decode() if small else None,
    }


def _number(value: object) -> float | None:
    """Four significant digits; None for what is not finite."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(f"{value:.4g}") if finite else None
