"""Scripts run in this process: an interpreter of its own takes seconds to import torch and TRL."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

LAUNCH = subprocess.run


def execute(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """`python ARGUMENTS`; its exit status. What it raises is raised here."""
    module = arguments[0] == "-m"
    name, *given = arguments[1:] if module else arguments
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, environment or {}):
        patch.setattr(sys, "argv", [name, *given])
        try:
            if module:
                runpy.run_module(name, run_name="__main__")
            else:
                patch.syspath_prepend(str(Path(name).parent))
                runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
                return 1
            return end.code or 0
    return 0


def launch(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, but that Python runs in this process. What it logs is left to pytest."""
    if command[0] != sys.executable:
        return LAUNCH(command, **options)
    told, output = io.StringIO(), options.get("stdout")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(options.get("cwd") or "."))
        if output is not None:
            stack.enter_context(contextlib.redirect_stdout(told))
        status = execute(command[1:], options.get("env"))
    if hasattr(output, "write"):
        text = told.getvalue()
        output.write(text.encode() if "b" in output.mode else text)
    done = subprocess.CompletedProcess(command, status, told.getvalue(), "")
    if options.get("check"):
        done.check_returncode()
    return done


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """What scripts start is run in this process; what they set in it is undone."""
    import torch

    with mock.patch.dict(os.environ), mock.patch.object(subprocess, "run", launch):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
