"""What is asked of values that a user writes, in a YAML file or in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml

T = TypeVar("T")
Kind: TypeAlias = type[ValueError]
Keys: TypeAlias = Collection[str]


def read_yaml(file: Path, parse: Callable[[Any], T], error: Kind) -> T:
    """What `parse` makes of the content of a YAML file.

    Raises:
        ValueError: of the class `error`, if the file is not YAML or `parse` refuses it so; the
            message names the file.
    """
    try:
        return parse(_content(file, error))
    except error as fault:
        raise error(f"{file}: {fault}") from fault


def _content(file: Path, error: Kind) -> Any:
    """PyYAML raises far more than its own error on a malformed value; all of it is the file's."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except _KeyFault as fault:
        raise error(str(fault)) from fault
    except UnicodeDecodeError as fault:
        raise error(f"must be UTF-8 text: {fault}") from fault
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as fault:
        raise error(f"not valid YAML: {' '.join(str(fault).split())}") from fault


MOST_VALUES = 1_000_000
"""A YAML file holds no more with its aliases spelled out: nested, a few lines make billions."""


class _KeyFault(ValueError):
    """A key that is no string or comes twice, or aliases of aliases; the message has the line."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; a file must not lose one."""

    def get_single_node(self) -> yaml.Node | None:
        """The file as nodes, unless its aliases would make far more of it."""
        node = super().get_single_node()
        if node is not None:
            _spelled_out(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _KeyFault(f"line {line}: key must be a string, got {key!r}. Quote it.")
            if key in keys:
                raise _KeyFault(f"line {line}: key {key!r} appears twice. Remove one.")
            keys.add(key)
        return super().construct_mapping(node, deep)


def _spelled_out(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """How many values a node has with every alias spelled out; `sizes` are those known so far."""
    if node not in sizes:
        sizes[node] = MOST_VALUES  # until it is known: an alias within what it stands for
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else [pair])]
        sizes[node] = 1 + sum(_spelled_out(part, sizes) for part in parts)
    if sizes[node] > MOST_VALUES:
        raise _KeyFault(
            f"line {node.start_mark.line + 1}: aliases must spell out to at most {MOST_VALUES} "
            "values. Write fewer, or no alias within what it stands for."
        )
    return sizes[node]


def check_keys(place: str, item: Any, keys: Keys, error: Kind, optional: Keys = ()) -> None:
    """Refuse what is not a mapping with exactly these keys, and perhaps optional ones."""
    if not isinstance(item, Mapping):
        raise error(f"{place} must be a mapping, got {type(item).__name__}.")
    known = (*keys, *optional)
    if unknown := [key for key in item if key not in known]:
        raise error(f"{place}: unknown key {unknown[0]!r}. Allowed: {', '.join(known)}.")
    if missing := [key for key in keys if key not in item]:
        raise error(f"{place}: key {missing[0]!r} is missing. Add it.")


def check_text(what: str, value: Any, error: Kind) -> None:
    """Refuse what is not a string of Unicode with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise error(f"{what} must be a non-blank string, got {value!r}. Quote or fill it.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise error(f"{what} must be Unicode text, got {value!r}. Write the character itself.")


def check_name(what: str, value: Any, error: Kind) -> None:
    """Refuse what is not a text that can stand in a table: a terminal obeys control characters."""
    check_text(what, value, error)
    if harmless(value) != value or any(character in value for character in "\n\t"):
        raise error(f"{what} must have no control characters, got {value!r}. Take them out.")


def harmless(value: T) -> T:
    r"""A text, or a nested value, with control characters spelled out; the ends of lines stay.

    A terminal would obey them.

    >>> print(harmless("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    found: Any = value
    if isinstance(value, dict):
        found = {harmless(key): harmless(item) for key, item in value.items()}
    elif isinstance(value, list):
        found = [harmless(item) for item in value]
    elif isinstance(value, str) and not value.isprintable():
        found = _CONTROL.sub(lambda each: ascii(each[0])[1:-1], value)
    return found


_CONTROL = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""Control characters, halves of a surrogate pair, and what turns the direction of writing."""


def check_unique(what: str, values: Iterable[str], error: Kind) -> None:
    """Refuse a value that comes twice; `what` names the values, as the subject of a sentence."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise error(f"{what} must be unique, got {value!r} twice. Remove or rename one.")
        seen.add(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number, Python's or NumPy's, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)
