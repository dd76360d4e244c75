"""The `crystalmon` command: thin commands over the package."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import crystalmon
from crystalmon.cli.experiment_commands import add_experiments
from crystalmon.cli.options import add_model, add_placement, add_prompts, load_placed
from crystalmon.cli.scan_commands import add_scan, add_transfer
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.suites.tasks import TaskSuite, list_suites, load_suite
from crystalmon.trackers.make import DESTINATIONS

if TYPE_CHECKING:
    from crystalmon.runs.records import ProbeRecord

FIGURES = (".png", ".svg", ".pdf")

USER_ERRORS = (OSError, ValueError, TypeError, ModuleNotFoundError)
"""What bad input raises anywhere in the package: printed as one sentence, exit status 2."""

INTERRUPTED = 130
"""What a shell expects of a command that SIGINT has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.showwarning = _say_warning
    try:
        status = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # at exit it would be too late to say what went wrong
        return status
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        print("\ncrystalmon: interrupted", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"crystalmon: {error}", file=sys.stderr)
        _drop_stdout()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crystalmon", description="Watch a language model crystallize while it is trained."
    )
    parser.add_argument("--version", action="version", version=crystalmon.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_probe(commands)
    _add_cost(commands)
    _add_suite(commands)
    _add_summary(commands)
    _add_report(commands)
    _add_watch(commands)
    _add_workspace(commands)
    _add_detect(commands)
    _add_send(commands)
    add_scan(commands)
    add_transfer(commands)
    add_experiments(commands)
    return parser


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    probe = commands.add_parser("probe", help="score one model and print its table")
    add_model(probe)
    add_prompts(probe)
    probe.add_argument(
        "--base", default="auto", help="compare with this run, reference folder or model"
    )
    add_placement(probe)
    probe.add_argument("--json", action="store_true", help="print the record as one JSON line")
    probe.set_defaults(run=_run_probe)


def _add_cost(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cost = commands.add_parser("cost", help="what monitoring will cost, without loading weights")
    add_model(cost)
    add_prompts(cost)
    cost.add_argument("--steps", type=int, help="optimizer steps of the run")
    cost.add_argument("--every", type=int, help="probe at this interval; default: the callback's")
    cost.add_argument("--tokens-per-step", type=int, help="trained on, over all devices")
    cost.add_argument("--rate", help="what the machine achieves: 1e13 (FLOP/s) or 2e4tokens/s")
    cost.add_argument("--step-seconds", type=float, help="what a training step takes")
    cost.add_argument("--json", action="store_true", help="print it as one JSON line")
    cost.set_defaults(run=_run_cost)


def _add_suite(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    suite = commands.add_parser("suite", help="list, show or validate suites")
    actions = suite.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the bundled suites")
    listing.set_defaults(run=_run_suite_list)
    show = actions.add_parser("show", help="a suite's tasks, or one task's prompts and choices")
    show.add_argument("suite")
    show.add_argument("--task")
    show.set_defaults(run=_run_suite_show)
    validate = actions.add_parser("validate", help="check a suite file")
    validate.add_argument("suite")
    validate.add_argument("--model", help="also tokenize it with this model's tokenizer")
    validate.add_argument("--view", default="raw", choices=("raw", "chat"))
    validate.set_defaults(run=_run_suite_validate)


def _add_summary(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = commands.add_parser("summary", help="the table by stage of one or more runs")
    summary.add_argument("run_folder", nargs="+", help="output or run folders, in order")
    summary.add_argument("--figure", type=Path, help="also draw it, as PNG, SVG or PDF")
    summary.set_defaults(run=_run_summary)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="one HTML page of one or more runs")
    _add_runs(report)
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="default: report.html"
    )
    report.set_defaults(run=_run_report)


def _add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    watch = commands.add_parser("watch", help="the same page, live while training writes")
    _add_runs(watch)
    watch.add_argument("--port", type=int, default=8421, help="on this machine only; 0: any")
    watch.add_argument("--terminal", action="store_true", help="a view in this terminal instead")
    watch.set_defaults(run=_run_watch)


def _add_workspace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    workspace = commands.add_parser("workspace", help="build a W&B workspace with the panels")
    workspace.add_argument("project", help="<entity>/<project>")
    workspace.add_argument(
        "--dry-run", action="store_true", help="build and check it, save nothing"
    )
    workspace.set_defaults(run=_run_workspace)


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", nargs="+", help="output or run folders, in order")
    layout = command.add_mutually_exclusive_group()
    layout.add_argument(
        "--chain", dest="layout", action="store_const", const="chain", help="as stages of one chain"
    )
    layout.add_argument(
        "--compare", dest="layout", action="store_const", const="compare", help="side by side"
    )
    command.add_argument("--suite", help="the runs' suite file, for the words of its prompts")
    command.set_defaults(layout="auto")


def _add_detect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    detect = commands.add_parser("detect", help="replay a stored run through the phase detector")
    detect.add_argument("run_folder", help="an output or run folder")
    detect.add_argument("--json", action="store_true", help="print all of it as one JSON line")
    detect.set_defaults(run=_run_detect)


def _add_send(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    send = commands.add_parser("send", help="send a stored run or scan to a tracker")
    send.add_argument("run_folder", help="an output or run folder")
    send.add_argument("--to", nargs="+", required=True, choices=DESTINATIONS, help="one or more")
    send.add_argument("--project", default=DEFAULT_NAME, help="of W&B and trackio")
    send.set_defaults(run=_run_send)


def _run_probe(args: argparse.Namespace) -> None:
    from crystalmon.monitor.probe import Monitor

    suite = load_suite(args.suite)
    model, tokenizer = load_placed(args.model, args.dtype, args.device)
    monitor = Monitor(model, tokenizer, suite, args.base, view=args.view, progress=not args.json)
    record = monitor.probe()
    if args.json:
        print(json.dumps(record.to_json(), allow_nan=False, ensure_ascii=False))
        return
    title = f"{args.model} · {suite.name} · {args.view}"
    print_record(record, suite, title=title, compare=not monitor.is_own_base)


def print_record(
    record: ProbeRecord,
    suite: TaskSuite,
    *,
    title: str,
    compare: bool,
    console: Console | None = None,
) -> None:
    """Print one probe as a table, a row per task and the suite's means last.

    Args:
        record: what to print.
        suite: for the choices' names.
        title: above the table.
        compare: with the columns that compare with a base.
        console: where to; standard output if None.
    """
    columns = ["coverage", "entropy", "entropy_mixture", "liquidity"]
    if compare:
        columns += ["order", "crystallinity", "seed_mass", "free_energy"]
    table = Table(title=escape(title), title_justify="left")
    table.add_column("task")
    table.add_column("choices", justify="right")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    table.add_column("pooled answers")
    for task in suite:
        found = record.tasks[task.name]
        ranked = sorted(zip(found.q.mean(axis=0), task.choice_texts, strict=True), reverse=True)
        top = ", ".join(f"{text} {share:.0%}" for share, text in ranked[:3])
        cells = [f"{found.metrics[column]:.3f}" for column in columns]
        table.add_row(escape(task.name), str(len(task.choices)), *cells, escape(top))
    table.add_section()
    means = [
        f"{record.metrics[column]:.3f}" if column in record.metrics else "" for column in columns
    ]
    table.add_row("mean", "", *means, f"probe took {record.seconds:.1f} s")
    from crystalmon.report.caveats import scarce

    shown = console or _console()
    shown.print(table)
    if warning := scarce({name: task.metrics["coverage"] for name, task in record.tasks.items()}):
        shown.print(escape(warning))


def _run_cost(args: argparse.Namespace) -> None:
    from crystalmon.monitor.cost import estimate_cost, format_cost, parse_rate
    from crystalmon.scoring.models import load_config, load_tokenizer
    from crystalmon.scoring.plan import build_plan

    rate = None if args.rate is None else parse_rate(args.rate)
    suite = load_suite(args.suite)
    config = load_config(args.model)
    plan = build_plan(suite, load_tokenizer(args.model), args.view)
    cost = estimate_cost(
        config,
        plan,
        steps=args.steps,
        every=args.every,
        tokens_per_step=args.tokens_per_step,
        rate=rate,
        step_seconds=args.step_seconds,
    )
    print(json.dumps(cost.to_json(), allow_nan=False) if args.json else format_cost(cost))


def _run_suite_list(args: argparse.Namespace) -> None:
    for name in list_suites():
        suite = load_suite(name)
        print(f"{name}: {len(suite)} tasks, {suite.num_prompts} prompts, hash {suite.hash}")


def _run_suite_show(args: argparse.Namespace) -> None:
    suite = load_suite(args.suite)
    if args.task is None:
        for task in suite:
            shown = ", ".join(task.choice_texts[:8]) + (", …" if len(task.choices) > 8 else "")
            print(f"{task.name}: {len(task.prompts)} prompts, {len(task.choices)} choices: {shown}")
        return
    if args.task not in (task.name for task in suite):
        names = ", ".join(task.name for task in suite)
        raise ValueError(f"task must be one of {names}, got {args.task!r}.")
    for prompt in suite[args.task].prompts:
        print(json.dumps(prompt, ensure_ascii=False))
    for choice in suite[args.task].choices:
        print(f"{choice.text}: {json.dumps(list(choice.forms), ensure_ascii=False)}")


def _run_suite_validate(args: argparse.Namespace) -> None:
    suite = load_suite(args.suite)
    print(
        f"{suite.name}: {len(suite)} tasks, {suite.num_prompts} prompts, hash {suite.hash}: valid"
    )
    if args.model is None:
        return
    from crystalmon.scoring.models import load_tokenizer
    from crystalmon.scoring.plan import build_plan, describe_merges

    plan = build_plan(suite, load_tokenizer(args.model), args.view)
    print(f"{args.model}: {len(plan.rows)} rows, {plan.num_unique_tokens} tokens a probe")
    if plan.merges:
        print(f"warning: {describe_merges(plan.merges)}")


def _run_summary(args: argparse.Namespace) -> None:
    from crystalmon.report.summary import format_stage_table, stage_table
    from crystalmon.runs.reader import read_run

    if args.figure is not None and (
        args.figure.suffix not in FIGURES or not args.figure.parent.is_dir()
    ):
        raise ValueError(
            f"figure must be a {', '.join(FIGURES)} file in an existing folder, got {args.figure}."
        )
    runs = [read_run(folder) for folder in args.run_folder]
    print(format_stage_table(stage_table(runs)))
    if args.figure is not None:
        from crystalmon.report.stage_figure import stage_figure

        stage_figure(runs).savefig(args.figure)
        print(f"figure: {args.figure}")


def _run_report(args: argparse.Namespace) -> None:
    from crystalmon.report.page import write_report

    suite = None if args.suite is None else load_suite(args.suite)
    file = write_report(args.run_folder, args.output, layout=args.layout, suite=suite)
    print(f"report: {file} ({file.stat().st_size / 1e6:.1f} MB)")


def _run_watch(args: argparse.Namespace) -> None:
    from crystalmon.report.live.feed import RunFeed
    from crystalmon.report.live.server import serve
    from crystalmon.report.live.terminal import watch_terminal

    suite = None if args.suite is None else load_suite(args.suite)
    feed = RunFeed(args.run_folder, args.layout, suite)
    if args.terminal:
        watch_terminal(feed, _console())
    else:
        serve(feed, args.port)


def _run_workspace(args: argparse.Namespace) -> None:
    from crystalmon.trackers.wandb_workspace import build_workspace, describe_workspace

    entity, _, project = args.project.partition("/")
    if not entity or not project or "/" in project:
        raise ValueError(f"project must be <entity>/<project>, got {args.project!r}.")
    workspace = build_workspace(entity, project)
    print("\n".join(describe_workspace(workspace)))
    if args.dry_run:
        print("checked, nothing saved")
    else:
        workspace.save()
        print(f"workspace: {workspace.url}")


def _run_detect(args: argparse.Namespace) -> None:
    from crystalmon.analysis.replay import detect_run, format_detection
    from crystalmon.runs.reader import read_run

    found = detect_run(read_run(args.run_folder))
    if args.json:
        print(json.dumps(found.to_json(), allow_nan=False, ensure_ascii=False))
    else:
        print(format_detection(found))


def _run_send(args: argparse.Namespace) -> int:
    from crystalmon.runs.reader import read_run
    from crystalmon.trackers.send import send_run

    run, status = read_run(args.run_folder), 0
    for destination in dict.fromkeys(args.to):
        try:
            place = send_run(run, destination, project=args.project, progress=True)
        except USER_ERRORS as error:  # the others may take it
            print(f"crystalmon: not sent to {destination}: {error}", file=sys.stderr)
            status = 2
        else:
            print(f"{destination}: {len(run.records)} probes, {len(run.events)} events: {place}")
    return status


def _drop_stdout() -> None:
    """Write what is buffered, and if that fails forget it: it must not fail at exit again."""
    if (stream := sys.stdout) is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    print(f"crystalmon: {message}", file=sys.stderr)


def _console() -> Console:
    """A console that does not cut the table where no terminal says how wide it is."""
    return Console() if sys.stdout.isatty() else Console(width=140)


if __name__ == "__main__":
    sys.exit(main())
