"""One experiment as a command: resumed where it was interrupted, written with table and figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.experiments.common.parts import Parts, parts_file
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.lock import no_other
from crystalmon.runs.names import FIGURE_KINDS
from crystalmon.runs.results import Result, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISPLAY_SUFFIXES = ("txt", *FIGURE_KINDS)
"""Of the files that show a result: the table and the figure."""


def run_alone(
    name: str,
    folder: Path,
    of: Mapping[str, Any],
    measure: Callable[[Parts], Result],
) -> Result:
    """Measure, with a bar, and write the result, going on from parts finished before.

    Args:
        name: the experiment's.
        folder: made if it is not there; it also holds the finished parts meanwhile.
        of: what determines the result: the settings, the models and their marks.
        measure: takes the finished parts.

    Raises:
        RunFolderError: if the folder cannot be written to.
        ValueError: if another process measures the same there.
    """
    with explained(folder, "take results"):
        folder.mkdir(parents=True, exist_ok=True)
    file = parts_file(folder, name, of)
    with no_other(file.with_name(f".{file.name}.lock"), f"the same {name}"):
        parts = Parts(file, of, progress=True)
        began = time.perf_counter()
        result = measure(parts)
        result = replace(result, seconds=time.perf_counter() - began)
        write_result(folder, result)
        parts.remove()
    return result


def write_display(folder: Path, name: str, table: str, figure: Figure) -> list[Path]:
    """Write `<name>.txt`, and the figure as `<name>.svg` (transparent) and `<name>.png`.

    Returns:
        The files.

    Raises:
        RunFolderError: if the folder cannot be written to.
    """
    from crystalmon.report.style import write_figure

    text = folder / f"{name}.txt"
    with explained(folder, f"take {text.name}"):
        write_whole(text, table.encode() + b"\n")
    return [text, *write_figure(figure, folder / name)]
