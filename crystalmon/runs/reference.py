"""The frozen base's answers on disk: the **reference** that every probe is compared with.

A reference is a folder with two files. `reference.safetensors` holds `log_p` [N, V] float32, the
next-token log-probabilities after each of the suite's N prompts, and `log_choice/<task>` [P, C]
float64, those of the task's choices; `observed/<key>` [N] are the metrics of the base compared with
itself. `reference.json` says what they were made with. `plain.safetensors`, if it is there, holds
`log_choice/<task>` of tasks that the base does not answer in its view: as it answers the prompts as
they stand.

Both files are replaced, never written in place: `reference.safetensors` may be a hard link, one and
the same file in several folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from crystalmon.metrics.answers import answer_distributions
from crystalmon.runs.files import explained, json_bytes, write_whole

REFERENCE_SCHEMA = 2
"""1: without fingerprint."""
INFO_FILE = "reference.json"
TENSOR_FILE = "reference.safetensors"
PLAIN_FILE = "plain.safetensors"
CHOICE_PREFIX = "log_choice/"
OBSERVED_PREFIX = "observed/"
"""Of the tensors' names, before the task's, and before the metric's key."""
_LOG_P, _PLAIN = "log_p", "plain"
_SUM = 1e-3
"""Off 1 by which a row's probabilities may add up, stored in float32."""


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
        fingerprint: of the model's weights; None if they have none, or it is not known.
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
    fingerprint: str | None = None

    def differences(self, other: ReferenceInfo) -> str:
        """What is not the same in another base, as `model 'a' and 'b', view 'raw' and 'chat'`."""
        names = ("model", "suite", "suite_hash", "view", "tokenizer", "plan", "fingerprint", "id")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return ", ".join(f"{n} {one!r:.70} and {two!r:.70}" for n, one, two in pairs if one != two)


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
        observed: by key of a metric, [N] what the base is when compared with itself; may be empty.
        plain: by task that the base does not answer in this view, the same as `log_choice` in the
            view `raw`, if it answers that.
    """

    info: ReferenceInfo
    log_choice: Mapping[str, np.ndarray]
    rows: np.ndarray | Path = field(repr=False)
    observed: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    plain: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def compared(self) -> dict[str, np.ndarray]:
        """By task, [P, C] the log-probabilities that a model's answers are compared with."""
        return {**self.log_choice, **self.plain}

    @property
    def in_view(self) -> dict[str, np.ndarray]:
        """By task of `plain`, [P, C] the base's answers in its own view."""
        return {name: answer_distributions(self.log_choice[name])[0] for name in self.plain}

    @property
    def folder(self) -> Path | None:
        """The folder that it was loaded from; None if its rows are in memory."""
        return self.rows.parent if isinstance(self.rows, Path) else None

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

    def is_intact(self) -> bool:
        """Whether every row holds log-probabilities: Σ_v exp(log p_v) = 1, up to rounding.

        Zeros where a disk has lost a part of the file do not.
        """
        sums = (float(np.exp(self._rows[row]).sum()) for row in range(self.shape[0]))
        return all(abs(total - 1.0) < _SUM for total in sums)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: it may not see the file, so the rows go along."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {
            "rows": self._rows[:]
        }

    def in_memory(self) -> Reference:
        """The same reference with its rows loaded."""
        return replace(self, rows=self._rows[:])

    def save(self, folder: Path) -> None:
        """Write the reference. An earlier one in the folder stays whole until this one is.

        If the rows lie in a file, the new one is a hard link of it where the file system has them.

        Raises:
            RunFolderError: if the folder cannot take it.
        """
        with explained(folder, "take the base's answers"):
            folder.mkdir(parents=True, exist_ok=True)
            own = self.rows if isinstance(self.rows, Path) and self._is_on_disk(self.rows) else None
            file = folder / TENSOR_FILE
            if own is None or not (file.exists() and file.samefile(own)):
                self._write_tensors(file, own)
            self._write_plain(folder / PLAIN_FILE)
            info = {**asdict(self.info), "schema_version": REFERENCE_SCHEMA}
            info |= {_PLAIN: sorted(self.plain)} if self.plain else {}
            write_whole(folder / INFO_FILE, json_bytes(info, indent=2))

    def _is_on_disk(self, file: Path) -> bool:
        """Whether a file still holds this reference: another one may have been written over it."""
        try:
            tables = read_tables(file)
        except (OSError, SafetensorError):
            return False
        return tables.keys() == self.log_choice.keys() and all(
            np.array_equal(table, self.log_choice[name]) for name, table in tables.items()
        )

    def _write_plain(self, file: Path) -> None:
        if not self.plain:
            file.unlink(missing_ok=True)
            return
        tables = {f"{CHOICE_PREFIX}{n}": np.ascontiguousarray(q) for n, q in self.plain.items()}
        write_whole(file, save(tables))

    def _write_tensors(self, file: Path, own: Path | None) -> None:
        # a name of its own: one that was left over may be a link of what others read
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            if own is not None:
                _link_or_copy(own, partial)
            else:  # what was mapped can still be read
                tensors = {_LOG_P: self._rows[:]}
                tensors |= {f"{CHOICE_PREFIX}{name}": q for name, q in self.log_choice.items()}
                tensors |= {f"{OBSERVED_PREFIX}{key}": x for key, x in self.observed.items()}
                whole = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
                save_file(whole, str(partial))
                with partial.open("rb") as written:
                    os.fsync(written.fileno())
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def _link_or_copy(file: Path, to: Path) -> None:
    try:
        os.link(file.resolve(), to)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, to)


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
            tables, observed = read_tables(file), read_tables(file, OBSERVED_PREFIX)
            data.pop(_PLAIN, None)
            plain = read_plain(folder, tables)
            found = Reference(ReferenceInfo(**data), tables, file, observed, plain)
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


def read_plain(folder: Path, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The plain answers of a reference, of which `own` are those in its view.

    Raises:
        ValueError: if they are missing, cannot be read, or are not those that it was made with.
    """
    file = folder / PLAIN_FILE
    try:
        names = json.loads((folder / INFO_FILE).read_text(encoding="utf-8")).get(_PLAIN)
    except (OSError, ValueError, AttributeError):
        names = None  # as earlier versions wrote it
    if not file.is_file():
        if names:
            raise ValueError(f"{file} is missing")
        return {}
    try:
        tables = read_tables(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    fit = all(name in own and q.shape == own[name].shape for name, q in tables.items())
    if not fit or (names is not None and {*names} != {*tables}):
        raise ValueError(f"{file} does not hold the tasks that it was made with")
    return tables


def read_tables(file: Path, prefix: str = CHOICE_PREFIX) -> dict[str, np.ndarray]:
    """By task, [P, C] the log-probabilities of the choices; the rows are not touched.

    Args:
        file: `TENSOR_FILE` or `PLAIN_FILE` of a reference.
        prefix: of the tensors' names; with `OBSERVED_PREFIX`, [N] by key of a metric.

    Raises:
        OSError, SafetensorError: if the file cannot be read.
    """
    with safe_open(str(file), framework="np") as tensors:
        return {
            key.removeprefix(prefix): tensors.get_tensor(key)
            for key in tensors.keys()  # noqa: SIM118 (not a mapping)
            if key.startswith(prefix)
        }
