"""What Python runs as it starts when `crystalmon run` has put this folder on PYTHONPATH.

Until the program imports transformers' callbacks, the standard library is enough, and nothing but
that import is watched: this may be an interpreter that has no crystalmon and trains nothing.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys

AWAITED = "transformers.trainer_callback"
NOTES = "CRYSTALMON_RUN_NOTES"


def note(word):
    """Tell `crystalmon run`, which reads this file at the end; on another machine there is none."""
    with contextlib.suppress(KeyError, OSError):
        file = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND)
        try:
            if word != "started" or os.fstat(file).st_size == 0:
                os.write(file, f"{word}\n".encode())
        finally:
            os.close(file)


class AttachingFinder:
    """Attaches the monitor once the awaited module is there."""

    looking = False

    def find_spec(self, name, path=None, target=None):
        """The spec of the awaited module, whose loader then attaches; None for all others."""
        if name != AWAITED or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        loader = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_attach(module):
                load(module)
                attach_to(module)

            loader.exec_module = load_and_attach
        return spec


def attach_to(module):
    """Attach the monitor, or say why this interpreter cannot: the program runs all the same."""
    try:
        from crystalmon.integrations.attach import attach
    except ImportError as error:
        note("missing")
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                f"crystalmon: training is not monitored, as {sys.executable} cannot import "
                f"crystalmon ({error}). Install it there, or run that interpreter's command.",
                file=sys.stderr,
            )
    else:
        attach(module, note)


def run_shadowed():
    """Run the sitecustomize that Python would have found without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if place != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, AttachingFinder())
    note("started")
    run_shadowed()
