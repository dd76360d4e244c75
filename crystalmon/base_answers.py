"""The frozen base's answers, as a run folder keeps them, read without the safetensors library.

The report and the replay need nothing else of it. A safetensors file is the length of its header
(8 bytes, little-endian), the header (JSON: by tensor, its `dtype`, `shape` and
`data_offsets`, counted from the header's end) and the numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crystalmon.metrics import answer_distributions
from crystalmon.names import CHOICE_PREFIX, REFERENCE_FOLDER, TENSOR_FILE

_DTYPES = {"F64": "<f8", "F32": "<f4"}


def read_base_answers(
    run_folder: Path, tasks: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """By task, [P, C] the base's answers, as the live detector had them.

    Args:
        run_folder: whose reference is read.
        tasks: those that are needed, in this order; by default all that are there.

    Raises:
        FileNotFoundError: if the run folder holds no reference.
        ValueError: if its reference cannot be read, or lacks a task.
    """
    found = _read_all(run_folder)
    if tasks is None:
        return found
    wanted = list(tasks)
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(
            f"the reference in {run_folder} must hold the tasks of its run, got none of "
            f"{', '.join(lacking)}. Score the base again."
        )
    return {name: found[name] for name in wanted}


def _read_all(run_folder: Path) -> dict[str, np.ndarray]:
    file = run_folder / REFERENCE_FOLDER / TENSOR_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no reference in {run_folder}: {file} is missing. Copy the reference folder of the "
            "run's first stage there."
        )
    try:
        with file.open("rb") as handle:
            header, start = _read_header(handle, file.stat().st_size)
            return {
                name.removeprefix(CHOICE_PREFIX): answer_distributions(
                    _read_tensor(handle, start, entry)
                )[0]
                for name, entry in header.items()
                if name.startswith(CHOICE_PREFIX)
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(
            f"the reference {file} must be readable, got {type(error).__name__}: {error}. Score "
            "the base again."
        ) from error


def _read_header(handle: BinaryIO, file_size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers start."""
    (size,) = struct.unpack("<Q", handle.read(8))
    if size > file_size:
        raise ValueError(f"a header of {size} bytes in a file of {file_size}")
    return json.loads(handle.read(size)), 8 + size


def _read_tensor(handle: BinaryIO, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    handle.seek(start + begin)
    data = handle.read(end - begin)
    return np.frombuffer(data, dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
