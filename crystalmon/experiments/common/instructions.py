"""The instructions that the experiments give to a model: bundled, or from a YAML file.

The reader of YAML entries at the end also serves `conflicts`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from crystalmon.suites.checks import check_keys, check_text, check_unique, read_yaml

OPEN_FILE, CONFLICTS_FILE = (
    Path(__file__).parent / "data" / name for name in ("instructions.yaml", "conflicts.yaml")
)
"""The bundled files: open instructions, and those whose keeping can be tested (`context`)."""
CLOSED = "closed_answers"
"""The category of the latter among the former: there are too few of each of their own kinds."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class InstructionError(ValueError):
    """Faulty instructions or conflicts; the message names the place, and the file if any."""


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
        for what, value in (("id", self.id), ("category", self.category)):
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise InstructionError(
                    f"{what} must be of small letters, digits, - and _, got {value!r}. Rename it."
                )
        check_text(f"text of {self.id!r}", self.text, InstructionError)


Kind = TypeVar("Kind", bound=Instruction)
T = TypeVar("T")

Instructions: TypeAlias = str | Path | tuple[Instruction, ...] | None
"""As an experiment's setting: the bundled ones (None), a YAML file, or instructions themselves."""


def load_instructions(path: str | Path | None = None) -> tuple[Instruction, ...]:
    """The instructions of a YAML file, or all bundled ones.

    Args:
        path: a file with `instructions: [{id, category, text}]`. It may be a file of conflicts: its
            other keys (`question`, `compliant`, `other`, `adversaries`) are ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        InstructionError: if it is faulty.
    """
    if path is None:
        closed = [replace(each, category=CLOSED) for each in read_file(CONFLICTS_FILE, _parse)]
        found = (*read_file(OPEN_FILE, _parse), *closed)
    else:
        found = read_file(Path(path), _parse)
    check_unique(f"{path or 'instructions'}: id", (each.id for each in found), InstructionError)
    return found


def _parse(data: Any) -> tuple[Instruction, ...]:
    items = data.get("instructions") if isinstance(data, Mapping) else None
    return entries(Instruction, "instructions", items, ignored=("question", "compliant", "other"))


def resolve(instructions: Instructions) -> tuple[Instruction, ...]:
    """The instructions that a setting means.

    Raises:
        FileNotFoundError, InstructionError: see `load_instructions`.
        TypeError: if something among them is not an `Instruction`.
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


def take_evenly(instructions: Sequence[Kind], count: int | None) -> tuple[Kind, ...]:
    """So many instructions, as evenly from all categories as they allow, in their order.

    Args:
        instructions: the first ones of a category are taken first.
        count: how many; all if None or more than there are.
    """
    seen: dict[str, int] = {}
    turns = []
    for index, each in enumerate(instructions):
        seen[each.category] = seen.get(each.category, 0) + 1
        turns.append((seen[each.category], index))
    chosen = sorted(index for _, index in sorted(turns)[:count])
    return tuple(instructions[index] for index in chosen)


def fingerprint(instructions: Iterable[Instruction]) -> str:
    """SHA-256 over ids, categories and texts, in order; 16 hex digits."""
    return short_hash([[each.id, each.category, each.text] for each in instructions])


def short_hash(content: Any) -> str:
    """SHA-256 of JSON content; 16 hex digits."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def read_file(file: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the content of a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        InstructionError: if it is not YAML, or `parse` refuses it.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"instructions must be in a YAML file, got {str(file)!r}. Check the path."
        )
    return read_yaml(file, parse, InstructionError)


def entries(kind: type[T], what: str, items: Any, ignored: Collection[str] = ()) -> tuple[T, ...]:
    """A dataclass for each mapping in a list; the fields are the keys, and a list becomes a tuple.

    Args:
        kind: the dataclass.
        what: the list's name.
        items: the list.
        ignored: keys that may be there too.

    Raises:
        InstructionError: naming the entry.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(items, list) or not items:
        raise InstructionError(
            f"{what} must be a list of at least one {{{', '.join(names)}}}, got {items!r:.60}."
        )
    found = []
    for index, item in enumerate(items):
        check_keys(f"{what}[{index}]", item, names, InstructionError, ignored)
        values = {name: item[name] for name in names}
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        try:
            found.append(kind(**values))
        except InstructionError as error:
            raise InstructionError(f"{what}[{index}]: {error}") from error
    return tuple(found)


def check_texts(what: str, values: Any) -> None:
    """Refuse what is not a tuple of different non-blank strings, at least one."""
    if not isinstance(values, tuple) or not values:
        raise InstructionError(f"{what} must be a list of at least one string, got {values!r:.60}.")
    for value in values:
        check_text(what, value, InstructionError)
    check_unique(what, values, InstructionError)
