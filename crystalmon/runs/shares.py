"""Monitoring's share of a run's time, against the limit that it had."""

from __future__ import annotations

LEAST = 4
"""Probes after the first that every run gets, however small the limit."""


def over_limit(share: float, limit: float | None, probes: int) -> str:
    """By how much a share is over its limit, and why; nothing if it is within.

    Args:
        share: of the run's time.
        limit: the largest share that was asked for, or None.
        probes: how many the run has.

    >>> over_limit(0.14, 0.005, 5)
    'over the limit of 0.5%: the base and 4 probes are always made; a larger limit allows more'
    >>> over_limit(0.021, 0.02, 40), over_limit(0.1, None, 5)
    ('over the limit of 2%', '')
    """
    if limit is None or share <= limit:
        return ""
    always = f": the base and {LEAST} probes are always made; a larger limit allows more"
    return f"over the limit of {100 * limit:.3g}%{always if probes <= LEAST + 1 else ''}"
