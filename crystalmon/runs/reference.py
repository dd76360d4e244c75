"""The frozen base's answers on disk: the **reference** that every probe is compared with.

A reference is a folder with two files. `reference.safetensors` holds `log_p` [N, V] float32, the
next-token log-probabilities after each of the suite's N prompts, and `log_choice/<task>` [P, C]
float64, those of the task's choices. `reference.json` says what they were made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from crystalmon.metrics.answers import answer_distributions
from crystalmon.runs.files import explained
from crystalmon.runs.names import DEFAULT_NAME, REFERENCE_FOLDER
from crystalmon.suites.tasks import TaskSuite

REFERENCE_SCHEMA = 1
INFO_FILE = "reference.json"
TENSOR_FILE = "reference.safetensors"
CHOICE_PREFIX = "log_choice/"
"""Of the tensors' names, before the task's."""
_LOG_P = "log_p"


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference was made with; the content of `reference.json`.

    Args:
        suite, suite_hash, view: the prompts and how they were rendered.
        plan: fingerprint of the token tree; equal for tokenizers that agree on the suite.
        model, tokenizer: names, for people.
        vocab_size: V, the size of the model's output.
        id: see `reference_id`.
        precision: in which the layers were computed, `float32` or the `model`'s own.
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
    precision: str = "float32"
    schema_version: int = REFERENCE_SCHEMA


def reference_id(plan: str, log_choice: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the plan's fingerprint and the answers in the suite's order, 16 hex digits."""
    digest = hashlib.sha256(plan.encode())
    for table in log_choice.values():
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Reference:
    """A base model's answers to one suite.

    Args:
        info: what it was made with.
        log_choice: by task, [P, C] float64 log-probabilities of the choices.
        rows: [N, V] float32 log-probabilities of the next token, or the file that holds them. The
            file is mapped, not loaded.
    """

    info: ReferenceInfo
    log_choice: Mapping[str, np.ndarray]
    rows: np.ndarray | Path = field(repr=False)

    @cached_property
    def _rows(self) -> Any:
        if isinstance(self.rows, np.ndarray):
            return self.rows
        return safe_open(str(self.rows), framework="np").get_slice(_LOG_P)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V), of the rows."""
        rows = self._rows
        return rows.shape if isinstance(rows, np.ndarray) else tuple(rows.get_shape())

    def log_p(self, prompts: np.ndarray) -> np.ndarray:
        """[len(prompts), V] float32: the rows of those prompts, in the suite's order."""
        return np.stack([self._rows[int(index)] for index in prompts])

    def in_memory(self) -> Reference:
        """The same reference with its rows loaded, so that another process can be sent it."""
        return Reference(self.info, self.log_choice, self._rows[:])

    def save(self, folder: Path) -> None:
        """Write the reference. An earlier one in the folder stays whole until this one is.

        Raises:
            RunFolderError: if the folder cannot take it.
        """
        with explained(folder, "take the base's answers"):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / TENSOR_FILE
            if not (
                isinstance(self.rows, Path)
                and file.exists()
                and file.samefile(self.rows)
                and self._is_on_disk(self.rows)
            ):
                self._write(folder)

    def _is_on_disk(self, file: Path) -> bool:
        """Whether a file still holds this reference: another one may have been written over it."""
        try:
            tables = _read_tables(file)
        except (OSError, SafetensorError):
            return False
        return tables.keys() == self.log_choice.keys() and all(
            np.array_equal(table, self.log_choice[name]) for name, table in tables.items()
        )

    def _write(self, folder: Path) -> None:
        partial, info = folder / f"{TENSOR_FILE}.partial", folder / f"{INFO_FILE}.partial"
        try:
            if isinstance(self.rows, Path) and self._is_on_disk(self.rows):
                shutil.copyfile(self.rows, partial)
            else:  # what was mapped can still be read
                tables = {f"{CHOICE_PREFIX}{name}": q for name, q in self.log_choice.items()}
                tensors = {_LOG_P: self._rows[:], **tables}
                whole = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
                save_file(whole, str(partial))
            text = json.dumps(asdict(self.info), indent=2, ensure_ascii=False)
            info.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, folder / TENSOR_FILE)
            os.replace(info, folder / INFO_FILE)
        finally:
            partial.unlink(missing_ok=True)
            info.unlink(missing_ok=True)


def load_reference(folder: Path) -> Reference:
    """Load a reference; its rows stay on disk.

    Raises:
        FileNotFoundError: if the folder holds no complete reference.
        ValueError: if it is damaged, or was written by a newer version.
    """
    info_file, file = folder / INFO_FILE, folder / TENSOR_FILE
    if not info_file.is_file():
        raise FileNotFoundError(f"{folder} holds no {INFO_FILE}. Name a reference or run folder.")
    try:
        data = json.loads(info_file.read_text(encoding="utf-8"))
        version = int(data["schema_version"])
        if version <= REFERENCE_SCHEMA:
            found = Reference(ReferenceInfo(**data), _read_tables(file), file)
            if np.isnan(found.log_p(np.array([0]))).any():
                raise ValueError("its answers are not numbers")
            return found
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the reference in {folder} cannot be read ({type(error).__name__}: {error}). "
            "Delete the folder and score the base again."
        ) from error
    raise ValueError(
        f"{info_file}: schema version must be at most {REFERENCE_SCHEMA}, got {version}. "
        "Upgrade crystalmon."
    )


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
    file = run_folder / REFERENCE_FOLDER / TENSOR_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no reference in {run_folder}: {file} is missing. Copy the reference folder of the "
            "run's first stage there."
        )
    try:
        tables = _read_tables(file)
        found = {name: answer_distributions(table)[0] for name, table in tables.items()}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"the reference {file} must be readable, got {type(error).__name__}: {error}. Score "
            "the base again."
        ) from error
    wanted = list(found if tasks is None else tasks)
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(
            f"the reference in {run_folder} must hold the tasks of its run, got none of "
            f"{', '.join(lacking)}. Score the base again."
        )
    return {name: found[name] for name in wanted}


def _read_tables(file: Path) -> dict[str, np.ndarray]:
    """By task, [P, C] the log-probabilities of the choices; the rows are not touched."""
    with safe_open(str(file), framework="np") as tensors:
        return {
            key.removeprefix(CHOICE_PREFIX): tensors.get_tensor(key)
            for key in tensors.keys()  # noqa: SIM118 (not a mapping)
            if key.startswith(CHOICE_PREFIX)
        }


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
    if not str(path):  # the name of a model that was made, not loaded
        return None
    path = Path(path)
    places = [path, path / REFERENCE_FOLDER]
    if path.is_dir():
        for folder in (path, path.resolve().parent):
            places += sorted(folder.glob(f"{DEFAULT_NAME}*/{REFERENCE_FOLDER}"))
    found = [place for place in places if (place / INFO_FILE).is_file()]
    fitting = (place for place in found if suite is not None and _is_of(place, suite, view))
    return next(fitting, found[0] if found else None)


def _is_of(folder: Path, suite: TaskSuite, view: str | None) -> bool:
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        return (info["suite_hash"], info["view"]) == (suite.hash, view)
    except (OSError, ValueError, KeyError, TypeError):
        return False
