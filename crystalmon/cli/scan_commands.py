"""The commands `scan` and `transfer`: lists of checkpoints, measured and compared."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmon.analysis.transfer import find_transfer, format_transfer
from crystalmon.analysis.verdicts import format_verdicts
from crystalmon.cli.options import (
    FIGURES,
    VIEW_WORDS,
    check_output,
    command,
    draw_to,
    option,
    print_json,
    torch_dtype,
    view_text,
)
from crystalmon.runs.reader import read_run
from crystalmon.scan.families import FAMILIES
from crystalmon.scan.stages import parse_stages

if TYPE_CHECKING:
    from crystalmon.scan.scan import ScanResult

FAILED = 1
"""The exit status when some stage could not be measured and the others were."""

_WHERE = (
    "in order, the base first; WHERE: a hub id (id@revision), a folder, a folder of checkpoints, "
    "a .gguf file, or a bundled model; NAME: its last part unless given"
)
_LEND = "lend the stages without a chat template that of this one, or of a model"


@command(
    "scan",
    "measure released checkpoints, stage by stage",
    "suite device json",
    option("stages", nargs="*", metavar="[NAME=]WHERE", help=_WHERE),
    option("--family", choices=tuple(FAMILIES), help="the public stages of a family"),
    option("--view", default="raw", type=view_text, help=f"default: raw; both; {VIEW_WORDS}"),
    option("--chat-template-from", metavar="STAGE", help=_LEND),
    option("-o", "--output", type=Path, required=True, help="the run folder"),
    option("--dtype", default="auto", help="torch dtype; default: as stored"),
    option("--no-figures", action="store_true", help="draw none in OUTPUT/figures"),
)
def _scan(args: argparse.Namespace) -> int:
    from crystalmon.scan.scan import scan

    family = FAMILIES[args.family] if args.family else ()
    dtype = "auto" if args.dtype == "auto" else torch_dtype(args.dtype)
    stages = (*family, *parse_stages(args.stages))
    tell = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    with _joined_processes():
        results = scan(
            stages,
            args.output,
            args.suite,
            args.view,
            dtype=dtype,
            device=args.device,
            chat_template_from=args.chat_template_from,
            tell=tell,
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


def _print_results(results: list[ScanResult], as_json: bool) -> None:
    if as_json:
        found = {result.view: result.found for result in results}
        print_json(found if len(found) > 1 else results[0].found)
    for result in results:
        if not as_json and result.found:
            print(f"\nview {result.view}" if len(results) > 1 else "")
            _print_result(result)
        for name, why in result.failed.items():
            print(f"crystalmon: {name} ({result.view}) is missing: {why}", file=sys.stderr)


def _print_result(result: ScanResult) -> None:
    from crystalmon.report.summary import format_stage_table, stage_table

    run = read_run(result.folder)
    print(format_stage_table(stage_table([run])))
    print("(a phase takes two stages that agree, a seed three to six; verdicts judge each stage)\n")
    print(format_verdicts(result.verdicts))
    print(f"\nrun folder: {result.folder}")


def _draw_results(results: list[ScanResult]) -> None:
    """Draw each view's figures; if that fails, the scan itself stands."""
    from crystalmon.report.scan_figures import write_scan_figures

    for result in results:
        if not result.found:
            continue
        folder = result.folder / "figures"
        try:
            write_scan_figures(read_run(result.folder), result.found, folder)
        except OSError as error:
            print(f"crystalmon: no figures in {folder}: {error}", file=sys.stderr)
        else:
            print(f"figures: {folder}", file=sys.stderr)


@command(
    "transfer",
    "one family's seeds, looked for in another's",
    "figure json",
    option("a", metavar="A", help="a scan, or a run, whose seeds are looked for"),
    option("b", metavar="B", help="a scan, or a run, in whose stages they are"),
)
def _transfer(args: argparse.Namespace) -> None:
    check_output(args.figure, FIGURES, force=True)
    a, b = read_run(args.a), read_run(args.b)
    stages = find_transfer(a, b)
    if args.figure is not None:
        from crystalmon.report.transfer_figure import transfer_figure

        draw_to(transfer_figure(a.name, b.name, stages), args.figure)
        print(f"figure: {args.figure}", file=sys.stderr)
    if args.json:
        print_json([stage.to_json() for stage in stages])
    else:
        print(format_transfer(a, stages))
