"""The frozen base's answers, as a run folder keeps them, read without the safetensors library.

The report and the replay need nothing else of it. A safetensors file is the length of its header
(8 bytes, little-endian), the header (JSON: by tensor, its `dtype`, `shape` and
`data_offsets`, counted from the header's end) and the numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crystalmon.metrics.answers import answer_distributions
from crystalmon.runs.names import CHOICE_PREFIX, DEFAULT_NAME, REFERENCE_FOLDER, TENSOR_FILE
from crystalmon.suites.tasks import TaskSuite

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


SCHEMA_VERSION = 1


INFO_FILE = "reference.json"


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference was made with; the content of `reference.json`.

    Args:
        suite, suite_hash, view: the prompts and how they were rendered.
        plan: fingerprint of the token tree; equal for tokenizers that agree on the suite.
        model, tokenizer: names, for people.
        vocab_size: V, the size of the model's output.
        id: SHA-256 over the plan and the answers, 16 hex digits.
        schema_version: of this folder's format.
    """

    suite: str
    suite_hash: str
    view: str
    plan: str
    model: str
    tokenizer: str
    vocab_size: int
    id: str
    schema_version: int = SCHEMA_VERSION


class Reference:
    """A base model's answers to one suite.

    Args:
        info: what it was made with.
        log_choice: per task [P, C], log-probability of each choice.
        log_p: [N, V] log-probabilities in memory, or the `reference.safetensors` to map.
    """

    def __init__(
        self, info: ReferenceInfo, log_choice: Mapping[str, np.ndarray], log_p: Tensor | Path
    ) -> None:
        self.info = info
        self.log_choice = log_choice
        self._log_p = log_p
        self._rows = (
            log_p
            if isinstance(log_p, Tensor)
            else safe_open(str(log_p), framework="pt").get_slice("log_p")
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V): of the full-vocabulary part."""
        rows = self._rows
        return tuple(rows.shape if isinstance(rows, Tensor) else rows.get_shape())

    @property
    def is_stored(self) -> bool:
        """Whether it was read from a folder, rather than made just now."""
        return not isinstance(self._rows, Tensor)

    def in_memory(self) -> Reference:
        """The same reference with nothing left on disk, so that it can be sent."""
        if isinstance(self._rows, Tensor):
            return self
        return Reference(self.info, self.log_choice, self._rows[:])

    def log_p(self, prompts: np.ndarray, device: torch.device) -> Tensor:
        """[len(prompts), V] float32 log-probabilities after those prompts (suite order)."""
        return torch.stack([self._rows[int(i)] for i in prompts]).to(device)

    def save(self, folder: Path) -> None:
        """Write the reference; one that is there stays whole until this one is."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / TENSOR_FILE
        if isinstance(self._log_p, Path) and file.exists() and file.samefile(self._log_p):
            return
        partial = folder / f"{TENSOR_FILE}.partial"
        info = folder / f"{INFO_FILE}.partial"
        try:
            if isinstance(self._log_p, Tensor):
                tables = {
                    f"{CHOICE_PREFIX}{k}": torch.from_numpy(v) for k, v in self.log_choice.items()
                }
                save_file({"log_p": self._log_p, **tables}, str(partial))
            else:
                shutil.copyfile(self._log_p, partial)
            text = json.dumps(asdict(self.info), indent=2, ensure_ascii=False)
            info.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, file)
            os.replace(info, folder / INFO_FILE)
        finally:
            partial.unlink(missing_ok=True)
            info.unlink(missing_ok=True)


def _digest(plan: str, log_choice: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(plan.encode())
    for table in log_choice.values():
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]


def load_reference(folder: Path) -> Reference:
    """Load a reference; the full-vocabulary part stays on disk and is mapped.

    Raises:
        FileNotFoundError: if the folder holds no complete reference.
        ValueError: if it is damaged, or was written by a newer version.
    """
    info_file = folder / INFO_FILE
    if not info_file.is_file():
        raise FileNotFoundError(f"{folder} holds no {INFO_FILE}. Name a reference or run folder.")
    file = folder / TENSOR_FILE
    try:
        data = json.loads(info_file.read_text(encoding="utf-8"))
        version = int(data["schema_version"])
        info = ReferenceInfo(**data) if version <= SCHEMA_VERSION else None
        found = None if info is None else _read(info, file)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the reference in {folder} cannot be read ({type(error).__name__}: {error}). "
            "Delete the folder and score the base again."
        ) from error
    if found is None:
        raise ValueError(
            f"{info_file}: schema version must be at most {SCHEMA_VERSION}, got {version}. "
            "Upgrade crystalmon."
        )
    return found


def _read(info: ReferenceInfo, file: Path) -> Reference:
    with safe_open(str(file), framework="np") as tensors:
        tables = {
            key.removeprefix(CHOICE_PREFIX): tensors.get_tensor(key)
            for key in tensors.keys()  # noqa: SIM118 (not a mapping)
            if key.startswith(CHOICE_PREFIX)
        }
    reference = Reference(info, tables, file)
    if reference.log_p(np.array([0]), _CPU).isnan().any():
        raise ValueError("its answers are not numbers")
    return reference


_CPU = torch.device("cpu")


def find_reference(
    path: str | Path, suite: TaskSuite | None = None, view: str | None = None
) -> Path | None:
    """The reference folder that belongs to a path, or None.

    Looks at the path itself, `<path>/reference` (a run folder), `<path>/crystalmon*/reference` (a
    model's or output folder) and, for a model that was saved within an output folder
    (`checkpoint-N`, or a merged one), the same one level up.

    Args:
        path: a reference, run, model or output folder.
        suite, view: of several, the one made with these is preferred: a run may have been watched
            with two suites.
    """
    if not str(path):  # the name of a model that was made, not loaded
        return None
    path = Path(path)
    places = [path, path / REFERENCE_FOLDER]
    if path.is_dir():
        for folder in (path, path.resolve().parent):
            places += sorted(folder.glob(f"{DEFAULT_NAME}*/{REFERENCE_FOLDER}"))
    found = [place for place in places if (place / INFO_FILE).is_file()]
    fitting = (place for place in found if _is_of(place, suite, view))
    return next(fitting, found[0] if found else None)


def _is_of(folder: Path, suite: TaskSuite | None, view: str | None) -> bool:
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        return suite is not None and (info["suite_hash"], info["view"]) == (suite.hash, view)
    except (OSError, ValueError, KeyError, TypeError):
        return False
