"""Results of experiments on the page: their headline figures, table and picture.

A folder holds `<experiment>.json`, or `<experiment>-<step>.json` for each step of a training, and
the table and figure of the latest as `<experiment>.txt` and `<experiment>.svg`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crystalmon.runs.results import Result, read_result, result_files

LARGEST_FIGURE = 4_000_000
"""Bytes beyond which a figure is left out, so that a browser still opens the page."""


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
    for file in result_files(folder):
        try:
            result = read_result(file)
        except (OSError, ValueError) as error:
            notes.append(str(error))
        else:
            results.setdefault(result.experiment, []).append(result)
    return [_card(folder, where, found) for _, found in sorted(results.items())], notes


def _card(folder: Path, where: str, results: Sequence[Result]) -> dict[str, Any]:
    ordered = sorted(results, key=lambda result: -1 if result.step is None else result.step)
    first, last = (
        {
            key: rounded((estimate.value, estimate.low, estimate.high))
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
        "seconds": rounded([ordered[-1].seconds])[0],
        "rows": [{"key": key, "first": first.get(key), "last": ends} for key, ends in last.items()],
        "table": table.read_text(encoding="utf-8", errors="replace") if table.is_file() else None,
        "figure": base64.b64encode(figure.read_bytes()).decode() if small else None,
    }


def rounded(values: Iterable[object]) -> list[float | None]:
    """Four significant digits; None for what is not finite, which is drawn as a gap."""
    return [
        float(f"{value:.4g}") if isinstance(value, int | float) and math.isfinite(value) else None
        for value in values
    ]
