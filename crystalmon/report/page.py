"""One self-contained HTML page of one or more runs: no network, no server, no other file."""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import crystalmon
from crystalmon.report.experiment_cards import folder_cards
from crystalmon.report.lanes import Layout, lane_names, make_lanes
from crystalmon.report.payload import build_payload
from crystalmon.report.scan_section import scan_sections
from crystalmon.runs.files import RUN_FILE, explained, write_whole
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.reader import read_runs
from crystalmon.runs.run import Run
from crystalmon.suites.tasks import TaskSuite

SUFFIXES = (".html", ".htm")
STYLES = ("page.css", "experiments.css")
SCRIPTS = (
    "core.js",
    "charts.js",
    "training.js",
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
        runs: stages of a chain, or runs to compare.
        layout: see `make_lanes`.
        suite: the runs' suite, for the words of its prompts and choices, where neither the runs
            nor the bundled suites tell them.
        notes: further sentences on what the runs cannot tell.
        experiments: cards of experiments outside the runs, from `folder_cards`. With them, `runs`
            may be empty.

    Raises:
        ValueError: if there is no run and no card, or the layout is unknown.
    """
    if experiments and not runs:
        alone = {"lanes": [], "experiments": list(experiments), "caveats": list(notes)}
        return render("Experiments", {"version": crystalmon.__version__, **alone})
    lanes = make_lanes(runs, layout)
    scans, unread = scan_sections(runs)
    notes = [*notes, *unread]
    payload = build_payload(lanes, suite=suite, notes=notes, experiments=experiments)
    return render(" · ".join(lane_names(lanes)), payload | {"scans": scans})


def write_report(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    layout: Layout = "auto",
    suite: TaskSuite | None = None,
    tell: Callable[[str], object] = lambda note: None,
) -> Path:
    """Read runs and write their report; the file appears whole or not at all.

    A damaged line or result is left out, as is a folder without a run, or without a probe, if
    others have one; the page says so.

    Args:
        paths: output folders, the `crystalmon` folders in them, or folders with results of
            experiments.
        output: the HTML file.
        layout, suite: see `report_html`.
        tell: is given a sentence for each thing that was left out.

    Raises:
        NoRunError: if there is no run with a probe.
        FileNotFoundError: if there is no folder to write to.
        ValueError: if a run is damaged or of a newer schema, or the file's name does not end as
            that of a page.
        RunFolderError: if the folder cannot be written to.
    """
    output = Path(output)
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"a report is a page: its file must end in {' or '.join(SUFFIXES)}, got "
            f"{str(output)!r}. `crystalmon summary` draws a figure."
        )
    if output.is_dir() or not output.parent.is_dir():
        raise FileNotFoundError(
            f"output must be a file in an existing folder, got {str(output)!r}. "
            "Create the folder, or choose another name."
        )
    runs, cards, notes = _read(paths)
    for note in notes:
        tell(note)
    text = report_html(runs, layout=layout, suite=suite, notes=notes, experiments=cards)
    with explained(output.parent, "take the report"):
        write_whole(output, text.encode())
    return output


def _read(paths: Sequence[str | Path]) -> tuple[list[Run], list[dict[str, Any]], list[str]]:
    """Runs; cards of the folders that hold results and no run; a sentence for each damage."""
    places: list[Path] = []
    cards: list[dict[str, Any]] = []
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in map(Path, paths):
            if not any((path / name / RUN_FILE).is_file() for name in (".", DEFAULT_NAME)):
                found, broken = folder_cards(path, path.resolve().name)
                if broken and not found:
                    raise ValueError(
                        f"{path} must hold a run or results of experiments: {broken[0]}"
                    )
                if found:
                    cards, notes = cards + found, notes + broken
                    continue
            places.append(path)
        runs, missing = read_runs(places)
        for run in runs:
            _ = run.trainer_log  # so that damage in it is told here
    if missing and not runs and not cards:
        raise missing[0]
    notes += [f"Left out: {error}" for error in missing]
    return runs, cards, [*(str(warning.message) for warning in caught), *notes]


def render(title: str, payload: Mapping[str, Any] | None, *, live: bool = False) -> str:
    """The document around a payload.

    Args:
        title: of the document, as text.
        payload: what to draw; None for a live page.
        live: whether the page asks the server that it came from for its payload.
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
    pieces = page.split("%%")  # what is put in is not searched for further marks
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
