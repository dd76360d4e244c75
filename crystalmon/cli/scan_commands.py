"""The commands `scan` and `transfer`: lists of checkpoints, measured and compared."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmon.scan.families import FAMILIES, find_family
from crystalmon.scan.stages import Stage, parse_stages

if TYPE_CHECKING:
    from crystalmon.analysis.transfer import StageTransfer
    from crystalmon.scan.scan import ScanResult

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
FAILED = 1
"""Exit status when a stage could not be measured and the others were."""


def add_scan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("scan", help="measure released checkpoints, stage by stage")
    command.add_argument(
        "stages",
        nargs="*",
        metavar="NAME=WHERE",
        help="in order, the base first; WHERE: a hub id (id@revision), a folder, a folder of "
        "checkpoints, a .gguf file, or a bundled model",
    )
    command.add_argument("--family", choices=tuple(FAMILIES), help="the public stages of a family")
    command.add_argument("--suite", default="randomness", help="a bundled suite or a YAML file")
    command.add_argument("--view", default="raw", choices=("raw", "chat", "both"))
    command.add_argument(
        "--chat-template-from",
        metavar="STAGE",
        help="lend the stages without a chat template that of this one, or of a model",
    )
    command.add_argument("-o", "--output", type=Path, required=True, help="the run folder")
    command.add_argument("--dtype", default="auto", help="torch dtype; default: as stored")
    command.add_argument("--device", help="torch device; the accelerator if there is one")
    command.add_argument("--json", action="store_true", help="print scan.json as one JSON line")
    command.add_argument("--no-figures", action="store_true", help="draw none in OUTPUT/figures")
    command.set_defaults(run=_run_scan)


def add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command that compares two scans to the parser."""
    command = commands.add_parser("transfer", help="one family's seeds, looked for in another's")
    command.add_argument("a", metavar="A", help="a scan, or a run, whose seeds are looked for")
    command.add_argument("b", metavar="B", help="a scan, or a run, in whose stages they are")
    command.add_argument("--json", action="store_true", help="print all of it as one JSON line")
    command.add_argument("--figure", type=Path, help="draw it there, as .png, .svg or .pdf")
    command.set_defaults(run=_run_transfer)


def _run_transfer(args: argparse.Namespace) -> None:
    from crystalmon.analysis.transfer import find_transfer, format_transfer
    from crystalmon.runs.reader import read_run

    a, b = read_run(args.a), read_run(args.b)
    stages = find_transfer(a, b)
    if args.figure is not None:
        _draw_transfer(a.name, b.name, stages, args.figure)
    if args.json:
        print(json.dumps([stage.to_json() for stage in stages], allow_nan=False))
    else:
        print(format_transfer(a, stages))


def _draw_transfer(a: str, b: str, stages: list[StageTransfer], file: Path) -> None:
    from crystalmon.report.transfer_figure import transfer_figure

    if file.suffix not in FIGURE_SUFFIXES or not file.parent.is_dir():
        raise ValueError(
            f"figure must be a {', '.join(FIGURE_SUFFIXES)} file in an existing folder, got "
            f"{str(file)!r}. Choose another name."
        )
    transfer_figure(a, b, stages).savefig(file)
    print(f"figure in {file}", file=sys.stderr)


def _run_scan(args: argparse.Namespace) -> int:
    import torch

    from crystalmon.scan.scan import scan

    if args.dtype != "auto" and not isinstance(getattr(torch, args.dtype, None), torch.dtype):
        raise ValueError(
            f"dtype must be 'auto' or a torch dtype, got {args.dtype!r}. Try bfloat16."
        )
    family = () if args.family is None else find_family(args.family).stages
    stages = (*(Stage(*each) for each in family), *parse_stages(args.stages))
    with _joined_processes():
        results = scan(
            stages,
            args.output,
            args.suite,
            args.view,
            dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
            device=args.device,
            chat_template_from=args.chat_template_from,
            tell=lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True),
        )
    if int(os.environ.get("RANK", "0")) > 0:
        return 0  # a launcher ends rank 0, which has yet to print, when another one fails
    _print_results(results, args.json)
    if not args.no_figures:
        _draw_results(results)
    return FAILED if any(result.failed for result in results) else 0


@contextlib.contextmanager
def _joined_processes() -> Iterator[None]:
    """Within, under a launcher such as `accelerate launch`, prompts are split among processes."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _draw_results(results: list[ScanResult]) -> None:
    """Draw each view's figures; the scan itself stands if that fails."""
    from crystalmon.report.scan_figures import write_scan_figures
    from crystalmon.runs.reader import read_run
    from crystalmon.runs.records import json_value

    for result in results:
        if not result.found:
            continue
        folder = result.folder / "figures"
        try:
            write_scan_figures(read_run(result.folder), json_value(dict(result.found)), folder)
        except OSError as error:
            print(f"crystalmon: no figures in {folder}: {error}", file=sys.stderr)
        else:
            print(f"figures: {folder}", file=sys.stderr)


def _print_results(results: list[ScanResult], as_json: bool) -> None:
    from crystalmon.runs.records import json_value

    if as_json:
        found = {result.view: json_value(dict(result.found)) for result in results}
        only = next(iter(found.values())) if len(found) == 1 else found
        print(json.dumps(only, allow_nan=False, ensure_ascii=False))
    for result in results:
        if not as_json and result.found:
            _print_result(result, several=len(results) > 1)
        for name, why in result.failed.items():
            print(f"crystalmon: {name} ({result.view}) is missing: {why}", file=sys.stderr)


def _print_result(result: ScanResult, several: bool) -> None:
    from crystalmon.analysis.stage_measures import stage_names
    from crystalmon.analysis.verdicts import format_verdicts
    from crystalmon.report.summary import StageRow, format_stage_table
    from crystalmon.runs.reader import read_run

    run = read_run(result.folder)
    names = stage_names(run)
    print()
    if several:
        print(f"view {result.view}")
    print(format_stage_table([StageRow(names[r.step], r) for r in run.records]))
    print("(phases wait until two stages agree, seeds until four; the verdicts below do not)\n")
    print(format_verdicts(result.verdicts))
    print(f"\nrun folder: {result.folder}")
