"""One self-contained HTML page of one or more runs: no network, no server, no other file."""

from __future__ import annotations

import html
import json
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import crystalmon
from crystalmon.report.experiment_cards import folder_cards
from crystalmon.report.lanes import Layout, lane_names, make_lanes
from crystalmon.report.payload import build_payload
from crystalmon.report.scan_section import scan_sections, transfer_section
from crystalmon.runs.files import RUN_FILE
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.reader import Run, read_run
from crystalmon.suites.tasks import TaskSuite

STYLES = ("page.css", "experiments.css")
SCRIPTS = (
    "core.js",
    "charts.js",
    "answers.js",
    "text.js",
    "experiments.js",
    "live.js",
    "main.js",
)
PLOTLY = "vendor/plotly-cartesian.min.js"


def report_html(
    runs: Sequence[Run],
    *,
    layout: Layout = "auto",
    suite: TaskSuite | None = None,
    notes: Sequence[str] = (),
    experiments: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The report as one HTML document.

    Args:
        runs: stages of a chain, or runs to compare; see `make_lanes` for `layout`.
        layout: `auto`, `chain` or `compare`.
        suite: the runs' suite, for the words of its prompts and choices, where neither the runs
            nor the bundled suites tell them.
        notes: further sentences on what the runs cannot tell.
        experiments: cards of experiments that are no run's, from `experiments.folder_cards`;
            with them, there need be no run.

    Raises:
        ValueError: if there is no run and no card, or the layout is unknown.
    """
    if experiments and not runs:
        alone = {
            "version": crystalmon.__version__,
            "lanes": [],
            "experiments": list(experiments),
            "caveats": list(notes),
        }
        return render("Experiments", alone)
    lanes = make_lanes(runs, layout)
    scans, unread = scan_sections(runs)
    transfers, apart = transfer_section(runs)
    told = [*notes, *unread, *apart]
    payload = build_payload(lanes, suite=suite, notes=told, experiments=experiments)
    payload["scans"] = scans + transfers
    return render(" · ".join(lane_names(lanes)), payload)


def write_report(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    layout: Layout = "auto",
    suite: TaskSuite | None = None,
) -> Path:
    """Read runs and write their report; the file appears whole or not at all.

    What a run folder holds that cannot be read is left out and said on the page.

    Args:
        paths: output folders, or the `crystalmon` folders in them, or folders with results of
            experiments.
        output: the HTML file.
        layout, suite: see `report_html`.

    Raises:
        FileNotFoundError: if there is no run, or no folder to write to.
        ValueError: if a run is damaged or of a newer schema.
    """
    output = Path(output)
    if output.is_dir() or not output.parent.is_dir():
        raise FileNotFoundError(
            f"output must be a file in an existing folder, got {str(output)!r}. "
            "Create the folder, or choose another name."
        )
    cards, broken, of_runs = _cards_and_runs(paths)
    runs, notes = read_runs(of_runs)
    text = report_html(runs, layout=layout, suite=suite, notes=[*notes, *broken], experiments=cards)
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    return output


def _cards_and_runs(
    paths: Sequence[str | Path],
) -> tuple[list[dict[str, Any]], list[str], list[str | Path]]:
    """Cards of the folders that hold results and no run; what is broken there; the other paths."""
    cards: list[dict[str, Any]] = []
    broken: list[str] = []
    others: list[str | Path] = []
    for path in paths:
        found, told = folder_cards(Path(path), Path(path).resolve().name)
        is_run = any((Path(path) / name / RUN_FILE).is_file() for name in (".", DEFAULT_NAME))
        if not is_run and told and not found:
            raise ValueError(f"{path} must hold a run or results of experiments: {told[0]}")
        if is_run or not found:
            others.append(path)
            continue
        cards, broken = cards + found, broken + told
    return cards, broken, others


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Runs, and a sentence for each line on file that cannot be read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = [read_run(path) for path in paths]
    return runs, [str(warning.message) for warning in caught]


def render(title: str, payload: Mapping[str, Any] | None, *, live: bool = False) -> str:
    """The document around a payload.

    Args:
        title: of the document, as text.
        payload: what to draw, or None for a live page that asks its server.
        live: ask the server that the page came from for news.
    """
    parts = {
        "title": html.escape(title or "crystalmon"),
        "connect": "'self'" if live else "'none'",
        "style": "\n".join(_asset(name) for name in STYLES),
        "plotly": _asset(PLOTLY),
        "scripts": "\n".join(_asset(name) for name in SCRIPTS),
        "data": script_json(payload),
        "live": "true" if live else "false",
    }
    page = _asset("page.html")
    # one pass from left to right: what is put in is never searched for further marks
    pieces = page.split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return files("crystalmon.report").joinpath("assets", name).read_text(encoding="utf-8")
