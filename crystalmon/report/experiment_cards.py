"""Results of experiments on the page: their headline figures, table and picture.

A folder holds `<experiment>.json`, or `<experiment>-<step>.json` for each step of a training, and
the table and figure of the latest as `<experiment>.txt` and `<experiment>.svg`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crystalmon.runs.names import EXPERIMENTS_FOLDER
from crystalmon.runs.reader import Run
from crystalmon.runs.records import number_value

LARGEST_FIGURE = 4_000_000
"""Bytes beyond which a figure is left out, so that the page stays one that a browser opens."""


def run_cards(runs: Iterable[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the runs' experiments have found; see `folder_cards`."""
    cards: list[dict[str, Any]] = []
    notes: list[str] = []
    for run in runs:
        found, told = folder_cards(run.folder / EXPERIMENTS_FOLDER, run.name)
        cards, notes = cards + found, notes + told
    return cards, notes


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
    results: dict[str, list[Mapping[str, Any]]] = {}
    notes: list[str] = []
    for file in sorted(folder.glob("*.json")):
        try:
            result = _read(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{file} cannot be read as a result of an experiment: {error}")
            continue
        if result is not None:
            results.setdefault(result["experiment"], []).append(result)
    cards = [_card(folder, where, name, found) for name, found in sorted(results.items())]
    return cards, notes


def _read(file: Path) -> Mapping[str, Any] | None:
    """A result that lies under its own name; None for a JSON file of another kind."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "experiment" not in found:
        return None
    name, step = str(found["experiment"]), found.get("step")
    if file.stem != (name if step is None else f"{name}-{step}"):
        return None
    return {
        "experiment": name,
        "step": None if step is None else int(step),
        "seconds": found.get("seconds"),
        "models": {str(role): str(model) for role, model in found["models"].items() if model},
        "estimates": {
            str(key): [_number(value[end]) for end in ("value", "low", "high")]
            for key, value in found["estimates"].items()
        },
    }


def _number(value: Any) -> float | None:
    """Four significant digits; None for what is not finite."""
    value = number_value(value)
    finite = isinstance(value, int | float) and abs(value) < float("inf")
    return float(f"{value:.4g}") if finite else None


def _card(
    folder: Path, where: str, name: str, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    ordered = sorted(results, key=lambda result: -1 if result["step"] is None else result["step"])
    first, last = ordered[0]["estimates"], ordered[-1]["estimates"]
    return {
        "experiment": name,
        "where": where,
        "models": ordered[-1]["models"],
        "steps": [result["step"] for result in ordered],
        "seconds": _number(ordered[-1]["seconds"]),
        "rows": [
            {"key": key, "first": first.get(key), "last": values} for key, values in last.items()
        ],
        "table": _text(folder / f"{name}.txt"),
        "figure": _figure(folder / f"{name}.svg"),
    }


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _figure(file: Path) -> str | None:
    if not file.is_file() or file.stat().st_size > LARGEST_FIGURE:
        return None
    return base64.b64encode(file.read_bytes()).decode()
