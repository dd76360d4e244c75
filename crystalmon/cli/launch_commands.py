"""The command `run`: any program that trains, with the monitor attached."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from crystalmon.cli.options import command, option
from crystalmon.integrations.launch import launch
from crystalmon.integrations.settings import CONFIG, read_settings


@command(
    "run",
    "start a program that trains, with the callback attached",
    "",
    option("--config", type=Path, metavar="FILE", help="the callback's arguments, as YAML"),
    option("program", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the program"),
)
def _run(args: argparse.Namespace) -> int:
    program = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not program:
        raise ValueError("a command must follow --, as in crystalmon run -- python train.py.")
    environment = dict(os.environ)
    if args.config is not None:
        environment[CONFIG] = str(args.config.absolute())
    if settings := read_settings(environment):
        from crystalmon.monitor.callback import CrystalCallback

        CrystalCallback(**settings)  # refuses now what would be refused after the model is loaded
    return launch(program, environment)
