"""JSON as run folders hold it: written strictly, and read with a check of every part."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, ItemsView, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from crystalmon.metrics.bootstrap import Interval
from crystalmon.metrics.divergences import ON_SIMPLEX

LARGE = 2**63
"""No whole number on file reaches this."""


class Stored:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, ready for JSON; see `json_value` for non-finite numbers."""
        return json_value(self)


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_value(value: Any) -> Any:
    """Make a nested value strict JSON: non-finite floats become their protobuf-JSON strings.

    JSON has no NaN, and null would hide which of the three it was.
    """
    # a record has thousands of them, nearly all of them finite floats
    if type(value) is float and math.isfinite(value):
        return value
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist() if _is_plain(value) else json_value(value.tolist())
    if isinstance(value, np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _is_plain(table: np.ndarray) -> bool:
    """Whether JSON can hold all of it as numbers."""
    return table.dtype.kind in "fiu" and bool(np.isfinite(table).all())


def number_value(value: Any) -> Any:
    """Inverse of `json_value` on nested values, as JSON is read."""
    # a long run has millions of them, nearly all of them floats
    if isinstance(value, dict):
        return {k: v if type(v) is float else number_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [item if type(item) is float else number_value(item) for item in value]
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    return value


def parse_json(text: bytes) -> Any:
    """As `json.loads`, with bounded whole numbers."""
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    """Python's own have no bound, and most of what takes numbers has."""
    if abs(number := int(digits)) >= LARGE:
        raise ValueError(f"a whole number must be below {LARGE}, got {digits:.60}.")
    return number


# --- what a line of JSON must hold; a ValueError says what is wrong, and where ------------------


def items_of(what: str, data: Any) -> ItemsView[str, Any]:
    """The items of what must be a mapping."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a mapping, got {data!r:.60}.")
    return data.items()


def parts_of(what: str, data: Any) -> Callable[[str], Any]:
    """What gives each part of a mapping by its key."""
    items_of(what, data)

    def get(key: str) -> Any:
        if key not in data:
            raise ValueError(f"{what} must have a {key}, got none.")
        return data[key]

    return get


def as_text(what: str, value: Any) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, got {value!r:.60}.")
    return value


def as_step(what: str, value: Any) -> int:
    """The value, which must be a whole number from 0."""
    if type(value) is not int or not 0 <= value < LARGE:
        raise ValueError(f"{what} must be a whole number from 0, got {value!r:.60}.")
    return value


def as_number(what: str, value: Any) -> float:
    """The value as a number: one, or the name of one that is not finite."""
    if type(value) is str:
        value = _NON_FINITE.get(value, value)
    if type(value) in (float, int):
        return value
    raise ValueError(f"{what} must be a number, got {value!r:.60}.")


def as_numbers(what: str, data: Any) -> dict[str, float]:
    """The numbers of what must be a mapping to such."""
    return {
        key: value if type(value) is float else as_number(f"{what} {key!r}", value)
        for key, value in items_of(what, data)
    }


def as_intervals(what: str, data: Any) -> dict[str, Interval]:
    """The intervals of what must be a mapping to pairs of numbers."""
    found: dict[str, Interval] = {}
    for key, ends in items_of(what, data):
        if type(ends) is not list or len(ends) != 2:
            raise ValueError(f"{what} {key!r} must be two numbers, got {ends!r:.60}.")
        low, high = ends
        if not type(low) is type(high) is float:
            low, high = (as_number(f"{what} {key!r}", end) for end in ends)
        found[key] = low, high
    return found


def as_table(what: str, rows: Any) -> np.ndarray:
    """[P, C] distributions, or rows that are not finite."""
    try:
        table = np.array(rows)
        if table.dtype != np.float64:  # whole numbers, names of what is not finite, or no numbers
            numbers = [[as_number(what, value) for value in row] for row in rows]
            table = np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{what} must be a table of numbers, got {rows!r:.60}.") from error
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{what} must be of shape [P, C], got shape {table.shape}.")
    with np.errstate(all="ignore"):  # a row of NaN fits: a broken model's answers
        outside = table.min() < 0 or (np.abs(table.sum(axis=1) - 1.0) > ON_SIMPLEX).any()
    if outside:
        raise ValueError(f"{what} must have rows on the simplex, got {rows!r:.60}.")
    return table
