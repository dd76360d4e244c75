"""At which steps of a run to probe."""

from __future__ import annotations

DEFAULT_PROBES = 100


def probe_steps(max_steps: int, every: int | None = None) -> frozenset[int]:
    """The steps at which to probe.

    Args:
        max_steps: length N of the run, in optimizer steps.
        every: fixed interval, or None for the default: every step up to N = 100, beyond that
            round(N · (i/100)²), i = 0 … 100, which is dense at first, where collapse happens.

    Returns:
        Steps that always include 0 and N.
    """
    if every is not None:
        return frozenset({*range(0, max_steps, every), max_steps})
    if max_steps <= DEFAULT_PROBES:
        return frozenset(range(max_steps + 1))
    shares = ((i / DEFAULT_PROBES) ** 2 for i in range(DEFAULT_PROBES + 1))
    return frozenset(round(max_steps * share) for share in shares)
