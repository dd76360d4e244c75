"""How many there are of a thing, in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """How many there are of a thing whose plural ends in s.

    >>> counted(1, "probe"), counted(2, "probe")
    ('1 probe', '2 probes')
    """
    return f"{number} {noun}{'s' * (number != 1)}"
