"""Which run folder each callback of a training has: no two write to the same one."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from crystalmon.runs.names import DEFAULT_NAME, path_part

_claims: list[tuple[weakref.ref[Any], Path]] = []
"""The run folders that callbacks have taken, by the state of the training that they belong to."""


def claim_folder(output: Path, training: Any, suite: str, view: str = "") -> Path:
    """`crystalmon` in the output folder; for a further view or callback, a longer name.

    Args:
        output: the trainer's output folder.
        training: an object that belongs to this training alone and lives as long, such as the
            trainer's state; only a weak reference to it is kept.
        suite: the name of the callback's suite.
        view: the name of the view, if it is not the callback's first.
    """
    _claims[:] = [claim for claim in _claims if claim[0]() is not None]
    taken = {folder for owner, folder in _claims if owner() is training}
    longer = f"{DEFAULT_NAME}-{path_part(suite)}"
    names = [DEFAULT_NAME, longer]
    names += [f"{longer}-{number}" for number in range(2, len(taken) + 2)]
    places = [output / (f"{name}-{view}" if view else name) for name in names]
    folder = next(place for place in places if place not in taken)
    _claims.append((weakref.ref(training), folder))
    return folder
