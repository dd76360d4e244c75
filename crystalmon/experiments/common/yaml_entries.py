"""YAML files of instructions and of what works against them: read them, check their entries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from crystalmon.suites.tasks import check_unique

T = TypeVar("T")


class InstructionError(ValueError):
    """Faulty instructions or conflicts; the message names the place, and the file if any."""


def read_yaml(file: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the content of a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        InstructionError: if it is not YAML, or `parse` refuses it.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"instructions must be in a YAML file, got {str(file)!r}. Check the path."
        )
    try:
        return parse(yaml.safe_load(file.read_text(encoding="utf-8")))
    except InstructionError as error:
        raise InstructionError(f"{file}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise InstructionError(f"{file}: must be YAML in UTF-8: {said}") from error


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
        check_keys(f"{what}[{index}]", item, names, ignored)
        values = {name: item[name] for name in names}
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        try:
            found.append(kind(**values))
        except InstructionError as error:
            raise InstructionError(f"{what}[{index}]: {error}") from error
    return tuple(found)


def check_keys(place: str, item: Any, keys: Collection[str], ignored: Collection[str] = ()) -> None:
    """Refuse what is not a mapping with exactly these keys, and perhaps ignored ones."""
    if not isinstance(item, Mapping):
        raise InstructionError(f"{place} must be a mapping, got {type(item).__name__}.")
    if unknown := [key for key in item if key not in {*keys, *ignored}]:
        raise InstructionError(f"{place}: unknown key {unknown[0]!r}. Allowed: {', '.join(keys)}.")
    if missing := [key for key in keys if key not in item]:
        raise InstructionError(f"{place}: key {missing[0]!r} is missing. Add it.")


def check_text(what: str, value: Any) -> None:
    """Refuse what is not a string with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise InstructionError(
            f"{what} must be a non-blank string, got {value!r}. Quote or fill it."
        )


def check_texts(what: str, values: Any) -> None:
    """Refuse what is not a tuple of different non-blank strings, at least one."""
    if not isinstance(values, tuple) or not values:
        raise InstructionError(f"{what} must be a list of at least one string, got {values!r:.60}.")
    for value in values:
        check_text(what, value)
    check_unique(what, values, InstructionError)
