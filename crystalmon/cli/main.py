"""The `crystalmon` command: thin commands over the package."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import crystalmon
from crystalmon.cli.options import COMMANDS, NO_RUN, USER_ERRORS
from crystalmon.runs.run import NoRunError
from crystalmon.suites.checks import harmless

# each adds its commands to COMMANDS; the help lists them in this order
from crystalmon.cli import launch_commands, model_commands, suite_commands  # noqa: F401  # isort: skip
from crystalmon.cli import run_commands, scan_commands, experiment_commands  # noqa: F401  # isort: skip

GROUPS = {"suite": "make, show and validate suites"}

INTERRUPTED = 130
"""The exit status that a shell expects of a command that SIGINT has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if hasattr(args, "named_model"):
        if (args.model is None) == (args.named_model is None):
            parser.error(f"{args.command} takes one model: crystalmon {args.command} MODEL")
        args.model = args.model or args.named_model
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
        print(harmless(f"crystalmon: {error}"), file=sys.stderr)
        _drop_stdout()
        return NO_RUN if isinstance(error, NoRunError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crystalmon",
        description="See a language model collapse or drift from its base while you post-train it.",
    )
    parser.add_argument("--version", action="version", version=crystalmon.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {"": commands}
    for full_name, (words, run, options) in COMMANDS.items():
        group, _, name = full_name.rpartition(" ")
        if group not in groups:
            inner = commands.add_parser(group, help=GROUPS[group])
            groups[group] = inner.add_subparsers(required=True, metavar="ACTION")
        command = groups[group].add_parser(
            name, help=words, description=f"{words[:1].upper()}{words[1:]}."
        )
        for add in options:
            add(command)
        command.set_defaults(run=run, command=name)
    return parser


def _drop_stdout() -> None:
    """Write what is buffered. If that fails, discard it, so that it does not fail again at exit."""
    if (stream := sys.stdout) is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    print(harmless(f"crystalmon: {message}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
