"""The command `run`: any program that trains, with the monitor attached."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from crystalmon.cli.options import command, option
from crystalmon.integrations.arguments import CONFIG, read_arguments
from crystalmon.integrations.launch import launch


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
    elif environment.get(CONFIG):  # the program may change its folder
        environment[CONFIG] = str(Path(environment[CONFIG]).absolute())
    if arguments := read_arguments(environment):
        with contextlib.suppress(ModuleNotFoundError):  # the program may have another Python
            from crystalmon.monitor.callback import CrystalCallback

            CrystalCallback(**arguments)  # refuses now what else would wait for the model
    return launch(program, environment)
