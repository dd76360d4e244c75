"""On run folders: `summary`, `report`, `watch`, `detect`, `export`, `send`; and `workspace`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmon.analysis.replay import detect_run
from crystalmon.cli.options import (
    FIGURES,
    NO_RUN,
    USER_ERRORS,
    check_output,
    command,
    console,
    draw_to,
    option,
    print_json,
)
from crystalmon.report.detection import format_detection
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.plurals import counted
from crystalmon.runs.reader import read_runs, run_folders
from crystalmon.runs.run import Run, names_of
from crystalmon.suites.checks import harmless
from crystalmon.suites.tasks import load_suite
from crystalmon.trackers.base import LOGGED
from crystalmon.trackers.make import DESTINATIONS
from crystalmon.trackers.tensorboard import FOLDER_VARIABLE
from crystalmon.trackers.wandb_workspace import build_workspace, describe_workspace

if TYPE_CHECKING:
    import pandas

_TO = f"one or more; tensorboard: files in OUTPUT/runs, or where {FOLDER_VARIABLE} says"
TABLES = (".csv", ".parquet")
LOG = option("--log", choices=LOGGED, default="suite", help="which metrics to send; default: suite")


def _folders(paths: Iterable[str]) -> list[Path]:
    """The run folders of output folders: one for each view."""
    return [folder for path in paths for folder in run_folders(path)]


def _read(paths: Iterable[str], *, stream: bool = False) -> list[Run]:
    """The runs of output folders; one without a probe is told, and left out if others have one.

    Args:
        stream: see `read_run`.

    Raises:
        NoRunError: if no folder has a run with a probe.
    """
    runs, missing = read_runs(_folders(paths), stream=stream)
    if not runs:
        raise missing[0]
    for error in missing:
        _note(f"Left out: {error}")
    return runs


def _status(paths: Iterable[str]) -> int:
    """The exit status where several runs were named: the others are shown if one is not there."""
    return 0 if all(Path(path).exists() for path in paths) else NO_RUN


def _note(text: str) -> None:
    print(harmless(f"crystalmon: {text}"), file=sys.stderr)


@command("summary", "the table by stage of one or more runs", "runs figure json")
def _summary(args: argparse.Namespace) -> int:
    from crystalmon.report.summary import format_stage_table, stage_table

    check_output(args.figure, FIGURES, force=True)
    runs = _read(args.run_folder)
    rows = stage_table(runs)
    print_json([row.to_json() for row in rows]) if args.json else print(format_stage_table(rows))
    if args.figure is not None:
        from crystalmon.report.stage_figure import stage_figure

        draw_to(stage_figure(runs), args.figure)
        print(f"figure: {args.figure}", file=sys.stderr if args.json else sys.stdout)
    return _status(args.run_folder)


@command(
    "report",
    "one HTML page of one or more runs",
    "runs layout texts",
    option("-o", "--output", type=Path, default="report.html", help="default: report.html"),
    option("--force", action="store_true", help="replace an existing file"),
)
def _report(args: argparse.Namespace) -> int:
    from crystalmon.report.page import SUFFIXES, write_report

    suite = args.suite and load_suite(args.suite)
    output = args.output / "report.html" if args.output.is_dir() else args.output
    check_output(output, SUFFIXES, args.force)
    folders = _folders(args.run_folder)
    file = write_report(folders, output, layout=args.layout, suite=suite, tell=_note)
    print(f"report: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return _status(args.run_folder)


@command(
    "watch",
    "the same page, live while training writes",
    "runs layout texts",
    option("--port", type=int, default=8421, help="port on this machine; 0: any free one"),
    option("--terminal", action="store_true", help="in this terminal instead"),
)
def _watch(args: argparse.Namespace) -> None:
    from crystalmon.report.live.feed import RunFeed
    from crystalmon.report.live.server import serve
    from crystalmon.report.live.terminal import watch_terminal

    feed = RunFeed(args.run_folder, args.layout, args.suite and load_suite(args.suite))
    if args.terminal:
        watch_terminal(feed, console())
    else:
        serve(feed, args.port)


@command(
    "workspace",
    "build a W&B workspace with the panels",
    "",
    option("project", help="<entity>/<project>"),
    option("--dry-run", action="store_true", help="build and check it, save nothing"),
    LOG,
)
def _workspace(args: argparse.Namespace) -> None:
    entity, _, project = args.project.partition("/")
    if not entity or not project or "/" in project:
        raise ValueError(f"project must be <entity>/<project>, got {args.project!r}.")
    workspace = build_workspace(entity, project, args.log)
    print("\n".join(describe_workspace(workspace)))
    if args.dry_run:
        print("checked, nothing saved")
    else:
        from wandb.errors import Error

        try:
            workspace.save()
        except Error as error:  # such as a missing key
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"W&B did not take the workspace: {why}") from error
        print(f"workspace: {workspace.url}")


@command("detect", "replay stored runs through the phase detector", "runs json")
def _detect(args: argparse.Namespace) -> int:
    for number, run in enumerate(_read(args.run_folder, stream=True)):
        found = detect_run(run)
        if args.json:
            print_json(found.to_json())
        else:
            print("\n" * bool(number) + format_detection(found))
    return _status(args.run_folder)


@command(
    "export",
    "write all metrics of one or more runs as a table",
    "runs",
    option("-o", "--output", type=Path, required=True, help="the file to write, .csv or .parquet"),
    option("--tasks", action="store_true", help="a row a probe and task; default: a row a probe"),
    option("--force", action="store_true", help="replace an existing file"),
)
def _export(args: argparse.Namespace) -> int:
    file = args.output
    check_output(file, TABLES, args.force)
    table = _table(_read(args.run_folder), args.tasks)
    content = (
        _parquet(table) if file.suffix.lower() == ".parquet" else table.to_csv(index=False).encode()
    )
    with explained(file.parent, "take the table"):
        write_whole(file, content)
    rows, columns = counted(len(table), "row"), counted(len(table.columns), "column")
    print(f"table: {file} ({rows}, {columns})")
    return _status(args.run_folder)


def _table(runs: Sequence[Run], tasks: bool) -> pandas.DataFrame:
    """The runs one below the other; of several, each row begins with its run's name."""
    frames = [run.task_frame() if tasks else run.frame() for run in runs]
    import pandas

    if len(runs) > 1:
        for name, frame in zip(names_of(runs), frames, strict=True):
            frame.insert(0, "run", name)
    return pandas.concat(frames, ignore_index=True)


def _parquet(table: pandas.DataFrame) -> bytes:
    try:
        import pyarrow  # noqa: F401  # pandas says it in several lines
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a .parquet file needs the package pyarrow. Run `pip install pyarrow`, or write a .csv."
        ) from error
    return table.to_parquet(index=False, engine="pyarrow")


@command(
    "send",
    "send a stored run or scan to a tracker",
    "run",
    option("--to", nargs="+", required=True, choices=DESTINATIONS, help=_TO),
    option("--project", default=DEFAULT_NAME, help="the project in W&B and Trackio"),
    LOG,
)
def _send(args: argparse.Namespace) -> int:
    from crystalmon.trackers.send import send_run

    runs, status = _read([args.run_folder]), 0
    for run, destination in itertools.product(runs, dict.fromkeys(args.to)):
        try:
            place = send_run(run, destination, project=args.project, log=args.log, progress=True)
        except USER_ERRORS as error:  # the others may take it
            _note(f"not sent to {destination}: {error}")
            status = 2
        else:
            sent = f"{counted(len(run.records), 'probe')}, {counted(len(run.events), 'event')}"
            print(f"{destination}: {sent}: {place}")
    return status
