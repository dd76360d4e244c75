"""Starts a program whose Python processes attach the monitor, and waits for its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalmon.integrations.arguments import NOTES
from crystalmon.integrations.attach import ATTACHED, REFUSED

STARTUP = Path(__file__).resolve().parent / "startup"
"""The folder whose `sitecustomize.py` each Python process runs as it starts."""

NOT_FOUND, NOT_STARTED = 127, 126
"""What shells return for a command that is not there, and for one that cannot be run."""

_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""What a scheduler sends to one process; Ctrl-C reaches the program without help."""


def launch(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command with the monitor attached to what it trains; returns its exit status.

    A command that a signal has ended returns 128 + the signal, as in a shell.

    Args:
        command: the program and its arguments.
        environment: the variables that it gets, apart from those that attach the monitor.
    """
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        paths = [str(STARTUP), environment.get("PYTHONPATH", "")]
        added = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), NOTES: str(notes)}
        try:
            status = _run(command, {**environment, **added})
        except OSError as error:
            words = f"{command[0]!r} cannot be started: {error.strerror}."
            _say(f"{words} Check its name; start a script as python FILE.")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED
        _say_unmonitored(set(notes.read_text(encoding="utf-8").split()))
    return status


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: Any) -> None:
        early.append(number) if child is None else child.send_signal(number)

    with _handled(forward):
        child = subprocess.Popen(command, env=environment)
        for number in early:  # they came before the child was there
            child.send_signal(number)
        status = child.wait()
    return 128 - status if status < 0 else status


@contextmanager
def _handled(forward: Callable[[int, Any], None]) -> Iterator[None]:
    """Within, signals that ask this process to end are forwarded, and it outlives Ctrl-C."""

    def leave(number: int, frame: Any) -> None:
        """A terminal sends it to the program too; if it were ignored, that would inherit it."""

    handlers = {getattr(signal, name): forward for name in _FORWARDED if hasattr(signal, name)}
    before = {}
    for number, handler in {**handlers, signal.SIGINT: leave}.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_unmonitored(notes: set[str]) -> None:
    """One line if no trainer was monitored."""
    if ATTACHED in notes:
        return
    if "missing" in notes:
        why = "its Python cannot import crystalmon"
    elif REFUSED in notes:
        why = "what was trained cannot be, as a warning above says"
    elif notes:
        why = "no trainer of transformers began to train a language model"
    else:
        why = "no Python process in it has read PYTHONPATH (python -I, -E and -S do not)"
    _say(f"nothing was monitored: {why}.")


def _say(text: str) -> None:
    print(f"crystalmon: {text}", file=sys.stderr)
