"""What a run was compared with: its base's answers, read from the run folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from crystalmon.metrics.answers import answer_distributions, is_measurable
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.reference import TENSOR_FILE, read_plain, read_tables

SAME_BASE = 1e-3
"""Largest difference in a base's answers when it is scored a second time."""

_UNREADABLE = (OSError, ValueError, TypeError, SafetensorError)


def read_base_answers(
    run_folder: Path, tasks: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """By task, [P, C] the base's answers that a run was compared with.

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
        own, plain = _read_answers(run_folder)
        found = {name: answer_distributions(table)[0] for name, table in (own | plain).items()}
    except _UNREADABLE as error:
        raise ValueError(
            f"the reference in {file.parent} must be readable, got {type(error).__name__}: {error}."
            " Score the base again."
        ) from error
    wanted = list(found if tasks is None else tasks)
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(
            f"the reference in {run_folder} must hold the tasks of its run, got none of "
            f"{', '.join(lacking)}. Score the base again."
        )
    return {name: found[name] for name in wanted}


def read_in_view(run_folder: Path) -> dict[str, np.ndarray]:
    """The base's answers in the run's view [P, C], by task that is compared with its plain answers.

    Empty if the reference cannot be read.
    """
    try:
        own, plain = _read_answers(run_folder)
        return {name: answer_distributions(own[name])[0] for name in plain}
    except _UNREADABLE:
        return {}


def read_unanswered(run_folder: Path) -> list[str]:
    """The tasks that a run's base hardly answers; none if its reference is gone or damaged."""
    try:
        own, plain = _read_answers(run_folder)
        return unanswered(own | plain)
    except _UNREADABLE:
        return []


def unanswered(log_choice: Mapping[str, np.ndarray]) -> list[str]:
    """The tasks that a base hardly answers, from its log-probabilities [P, C] by task."""
    coverage = {name: answer_distributions(table)[1] for name, table in log_choice.items()}
    return [name for name, own in coverage.items() if not is_measurable(own)]


def same_answers(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether answers [P, C] by task are one base's, scored twice; another device rounds otherwise.

    >>> same_answers({"coin": np.array([[0.5, 0.5]])}, {"coin": np.array([[0.5001, 0.4999]])})
    True
    """
    return one.keys() == other.keys() and all(
        q.shape == other[name].shape
        and np.allclose(q, other[name], rtol=0.0, atol=SAME_BASE, equal_nan=True)
        for name, q in one.items()
    )


def _read_answers(run_folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By task, the log-probabilities [P, C] in the run's view, and those to plain prompts, if any.

    Raises:
        OSError, ValueError, TypeError, SafetensorError: if they cannot be read.
    """
    folder = run_folder / REFERENCE_FOLDER
    own = read_tables(folder / TENSOR_FILE)
    return own, read_plain(folder, own)
