"""The instructions that the experiments give to a model: bundled, or from a YAML file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import yaml

from crystalmon.suites.tasks import check_unique

DATA_DIR = Path(__file__).parent / "data"
OPEN, CONFLICTS = "instructions.yaml", "conflicts.yaml"
"""The bundled files: open instructions, and those whose keeping can be tested (`context`)."""
CLOSED = "closed_answers"
"""The category of the latter among the former: there are too few of each of their own kinds."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CONFLICT_KEYS = {"question", "compliant", "other"}


class InstructionError(ValueError):
    """A faulty file of instructions; the message names the file and the place."""


@dataclass(frozen=True)
class Instruction:
    """One request to a model.

    Args:
        id: unique; small letters, digits, `-` and `_`, as it names files and keys.
        category: what kind of request it is; the same characters.
        text: the request, as the user would type it.
    """

    id: str
    category: str
    text: str

    def __post_init__(self) -> None:
        """Refuse names that no file could have, and blank texts."""
        for what, value in (("id", self.id), ("category", self.category)):
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise InstructionError(
                    f"{what} must be of small letters, digits, - and _, got {value!r}. Rename it."
                )
        if not isinstance(self.text, str) or not self.text.strip():
            raise InstructionError(
                f"text of {self.id!r} must be a non-blank string, got {self.text!r}. "
                "Quote or fill it."
            )


class Categorised(Protocol):
    """What has a category."""

    @property
    def category(self) -> str:
        """Its kind."""
        ...


Kind = TypeVar("Kind", bound=Categorised)

Instructions: TypeAlias = str | Path | tuple[Instruction, ...] | None
"""As an experiment's setting: the bundled ones (None), a YAML file, or instructions themselves."""


def load_instructions(path: str | Path | None = None) -> tuple[Instruction, ...]:
    """The instructions of a YAML file; of the bundled files if none is named.

    Args:
        path: a file with `instructions: [{id, category, text}]`. What a file of conflicts has
            beside (`question`, `compliant`, `other`, `adversaries`) is left aside.

    Raises:
        FileNotFoundError: if there is no such file.
        InstructionError: if it is faulty.
    """
    if path is None:
        closed = [replace(each, category=CLOSED) for each in _read(DATA_DIR / CONFLICTS)]
        found = [*_read(DATA_DIR / OPEN), *closed]
    else:
        found = _read(Path(path))
    check_unique(f"{path or 'instructions'}: id", (each.id for each in found), InstructionError)
    return tuple(found)


def resolve(instructions: Instructions) -> tuple[Instruction, ...]:
    """The instructions that a setting means.

    Raises:
        FileNotFoundError, InstructionError: see `load_instructions`.
    """
    if not isinstance(instructions, tuple):
        return load_instructions(instructions)
    if wrong := [each for each in instructions if not isinstance(each, Instruction)]:
        raise TypeError(
            f"instructions must be of class Instruction, got {wrong[0]!r:.60}. "
            "Give a file, or Instruction(id, category, text)."
        )
    if not instructions:
        raise InstructionError("instructions must not be empty. Give at least one.")
    check_unique("instructions: id", (each.id for each in instructions), InstructionError)
    return instructions


def spread(instructions: Sequence[Kind], count: int | None) -> tuple[Kind, ...]:
    """So many of the instructions, from all categories alike, the first of each before the second.

    Args:
        instructions: in their order.
        count: how many; all if None or more than there are.
    """
    seen: dict[str, int] = {}
    turns = []
    for index, each in enumerate(instructions):
        seen[each.category] = seen.get(each.category, 0) + 1
        turns.append((seen[each.category], index))
    chosen = sorted(sorted(turns)[:count], key=lambda turn: turn[1])
    return tuple(instructions[index] for _, index in chosen)


def fingerprint(instructions: Iterable[Instruction]) -> str:
    """SHA-256 over ids, categories and texts, in order; 16 hex digits."""
    content = [[each.id, each.category, each.text] for each in instructions]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def _read(file: Path) -> list[Instruction]:
    if not file.is_file():
        raise FileNotFoundError(f"instructions must be in a YAML file, found none at {file}.")
    try:
        return _parse(yaml.safe_load(file.read_text(encoding="utf-8")))
    except InstructionError as error:
        raise InstructionError(f"{file}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InstructionError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error


def _parse(data: Any) -> list[Instruction]:
    items = data.get("instructions") if isinstance(data, Mapping) else None
    if not isinstance(items, list) or not items:
        raise InstructionError(
            "instructions must be a list of {id, category, text} with at least one entry, got "
            f"{type(items).__name__}."
        )
    return [_parse_item(item, index) for index, item in enumerate(items)]


def _parse_item(item: Any, index: int) -> Instruction:
    place, keys = f"instructions[{index}]", {"id", "category", "text"}
    if not isinstance(item, Mapping):
        raise InstructionError(f"{place} must be a mapping, got {type(item).__name__}.")
    if unknown := [key for key in item if key not in keys | _CONFLICT_KEYS]:
        raise InstructionError(
            f"{place}: unknown key {unknown[0]!r}. Allowed: {', '.join(sorted(keys))}."
        )
    if missing := sorted(keys - set(item)):
        raise InstructionError(f"{place}: key {missing[0]!r} is missing. Add it.")
    try:
        return Instruction(item["id"], item["category"], item["text"])
    except InstructionError as error:
        raise InstructionError(f"{place}: {error}") from error
