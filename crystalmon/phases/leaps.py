"""Whether a series has leapt against its own pace: the rule behind `free_energy_jump`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PACES = 8
"""Latest intervals between probes that a leap of KL is held against, …"""
LEAST_PACES = 4
"""… and the fewest of them."""
FASTER = 3.0
"""How many times the fastest of them a leap is."""
LEAP = 0.1
"""Nats that a leap has at the least, …"""
SHARE = 0.1
"""… and its least share of the KL before it."""


def leap(steps: Sequence[int], values: Sequence[float]) -> dict[str, float] | None:
    """Whether the last value of a series has leapt up against its own recent pace.

    It has if it rose by `LEAP`, by `SHARE` of the value before, and per step more than `FASTER`
    times as much as the fastest change among the latest `PACES` intervals before.

    Args:
        steps: of the probes, increasing.
        values: as many, in nats.

    Returns:
        The rise, its pace per step and the fastest pace before; None if it has not.

    >>> leap(range(6), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) is None
    True
    >>> round(leap(range(6), [0.0, 0.1, 0.2, 0.3, 0.4, 0.9])["rise"], 3)
    0.5
    """
    steps, values = steps[-PACES - 2 :], values[-PACES - 2 :]
    if len(values) < LEAST_PACES + 2 or not np.isfinite(values).all():
        return None
    paces = np.diff(values) / np.diff(steps)
    rise, fastest = values[-1] - values[-2], float(np.abs(paces[:-1]).max())
    if rise < max(LEAP, SHARE * values[-2]) or paces[-1] <= FASTER * fastest:
        return None
    return {"rise": float(rise), "pace": float(paces[-1]), "fastest_before": fastest}
