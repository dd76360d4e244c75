"""Names that must not repeat."""

from __future__ import annotations

from collections.abc import Iterable


def check_unique(what: str, values: Iterable[str], error: type[ValueError]) -> None:
    """Refuse a value that comes twice.

    Args:
        what: the values, as the subject of a sentence.
        values: in any order.
        error: to raise.

    Raises:
        ValueError: of the kind given, naming the first that repeats.
    """
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise error(f"{what} must be unique, got {value!r} twice. Remove or rename one.")
        seen.add(value)
