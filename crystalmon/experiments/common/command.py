"""One experiment on its own: resumed where it was interrupted, written with table and figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.experiments.common.parts import Parts, parts_file
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.lock import no_other
from crystalmon.runs.results import Result, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("svg", "png")
VIEWS = ("txt", *FIGURES)


def run_alone(
    name: str,
    folder: Path,
    of: Mapping[str, Any],
    measure: Callable[[Parts], Result],
    *,
    progress: bool = False,
) -> Result:
    """Measure, going on with what an interrupted call has finished, and write the result.

    A file beside the result holds the finished parts meanwhile; see `parts_file`.

    Args:
        name: the experiment's.
        folder: made if it is not there.
        of: what determines the result: the settings, the models and their marks.
        measure: takes the finished parts.
        progress: show a bar.

    Raises:
        RunFolderError: if the folder cannot be written to.
        ValueError: if another process measures the same there.
    """
    with explained(folder, "take results"):
        folder.mkdir(parents=True, exist_ok=True)
    file = parts_file(folder, name, of)
    with no_other(file.with_name(f".{file.name}.lock"), f"the same {name}"):
        parts = Parts(file, of, progress)
        result = measure(parts)
        write_result(folder, result)
        parts.remove()
    return result


def write_views(folder: Path, name: str, table: str, figure: Figure) -> list[Path]:
    """Write `<name>.txt` and the figure as `<name>.svg`, without a ground, and `<name>.png`.

    Returns:
        The files.

    Raises:
        RunFolderError: if the folder cannot be written to.
    """
    import matplotlib

    blocks = {"txt": table.encode() + b"\n"}
    for kind in FIGURES:
        picture = io.BytesIO()
        # neither a date nor a random name, so that the same result gives the same file
        plain = {"metadata": {"Date": None}, "transparent": True} if kind == "svg" else {}
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(picture, format=kind, **plain)
        blocks[kind] = picture.getvalue()
    written = []
    for kind, block in blocks.items():
        file = folder / f"{name}.{kind}"
        with explained(folder, f"take {file.name}"):
            write_whole(file, block)
        written.append(file)
    return written
