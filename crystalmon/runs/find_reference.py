"""Where the base's answers of a path lie: in a reference, run, model or output folder."""

from __future__ import annotations

import json
from pathlib import Path

from crystalmon.runs.files import RUN_FILE
from crystalmon.runs.names import DEFAULT_NAME, REFERENCE_FOLDER
from crystalmon.runs.reference import INFO_FILE
from crystalmon.suites.tasks import TaskSuite


def find_reference(
    path: str | Path, suite: TaskSuite | None = None, view: str | None = None
) -> Path | None:
    """The reference folder that belongs to a path, or None.

    Looks at the path itself, at `<path>/reference` (a run folder), at
    `<path>/crystalmon*/reference` (a model's or output folder), and at the same one level up: a
    checkpoint, or a merged model, lies within an output folder.

    Args:
        path: a reference, run, model or output folder.
        suite, view: of several references, one made with these is preferred: a run may have been
            watched with two suites.
    """
    found = references_at(path)
    fitting = (place for place in found if suite is not None and _is_of(place, suite, view))
    return next(fitting, found[0] if found else None)


def named_reference(
    path: str | Path, suite: TaskSuite | None = None, view: str | None = None
) -> Path | None:
    """`find_reference` of a path that a user has named as the base.

    Raises:
        FileNotFoundError: if it is a run whose reference is gone: its model is not the base.
    """
    found = find_reference(path, suite, view)
    if found is None and any((place.parent / RUN_FILE).is_file() for place in _places(path)):
        raise FileNotFoundError(
            f"the run in {path} has lost its {REFERENCE_FOLDER} folder, and its model is not the "
            "base. Copy the folder from the run's first stage, or name the base model."
        )
    return found


def references_at(path: str | Path) -> list[Path]:
    """All reference folders that belong to a path, in the order of `find_reference`."""
    return [place for place in _places(path) if (place / INFO_FILE).is_file()]


def _places(path: str | Path) -> list[Path]:
    """Where a reference that belongs to a path may lie."""
    if not str(path):  # the name of a model that was made, not loaded
        return []
    path = Path(path)
    places = [path, path / REFERENCE_FOLDER]
    if path.is_dir():
        for folder in (path, path.resolve().parent):
            places += [run / REFERENCE_FOLDER for run in sorted(folder.glob(f"{DEFAULT_NAME}*"))]
    return places


def _is_of(folder: Path, suite: TaskSuite, view: str | None) -> bool:
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        return (info["suite_hash"], info["view"]) == (suite.hash, view)
    except (OSError, ValueError, KeyError, TypeError):
        return False
