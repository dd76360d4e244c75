"""What a probe of few prompts says of each task's `order`: bounds, told by all tasks together.

Two prompts of a task have no interval of their own. The tasks of a suite have one together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ERROR, LARGE_ERROR = 0.15, 0.75
"""Standard error of a task's `order` when p of its P prompts are asked, in units of √(1/p − 1/P).
`ERROR` is the least that is assumed, about that of `liquid-tiny` in training; `LARGE_ERROR` is
assumed where it cannot be estimated, about that of Gemma 3 270M. `scripts/measure_few.py` prints
both."""
SPREAD = 0.05
"""Standard deviation of the tasks' own orders about the mean of all, in runs of `liquid-tiny`: 0.02
to 0.08 by run."""
DOUBT = 0.5
"""Standard errors by which the mean of all tasks is doubted. With 1, the onset of one run of
`liquid-tiny` is told 24% of the run late; with 0, two tasks of SmolLM2 have an onset that all their
prompts do not show."""
LEAST_TASKS = 4
"""With fewer tasks, the collapse of one cannot be told from chance among few prompts."""
ROBUST = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def order_bounds(
    orders: Sequence[float] | np.ndarray, mean: float, shares: Sequence[float]
) -> list[tuple[float, float]]:
    """By task, bounds of its order: rising phases are told by the lower, falling ones by the upper.

    Tasks differ by the error e of asking few prompts, and by s of their own. With
    w = e² / (e² + s²) and the doubt h about the mean, each is drawn to the mean of all:

        lower = order + min(w · (mean − h − order), e₀)
        upper = order + max(w · (mean + h − order), −e₀)

    That is the limited translation estimator (Efron and Morris 1972,
    doi:10.1080/01621459.1972.10481215), limited on one side: the other tasks can put off an onset
    without limit, and bring one forward by at most e₀ = `ERROR` · √share. s is `SPREAD`. e² is the
    larger of e₀² and (spread² − s²) · share / (median share), with the orders' spread as their
    median absolute deviation tells it, and h = `DOUBT` · √((e² − e₀²) / T) at the median share.

    Of fewer than `LEAST_TASKS` tasks there is no such spread: the order of each is taken to be off
    by `LARGE_ERROR` · √share then.

    Args:
        orders: of T tasks.
        mean: over the tasks, as the suite's.
        shares: by task, 1/p − 1/P. It is 0 where all prompts are asked: both bounds are the order.

    >>> order_bounds([0.3, 0.2], 0.25, [0, 0])
    [(0.3, 0.3), (0.2, 0.2)]
    >>> of_two = [11 / 24] * 10  # nine tasks have collapsed, and one seems to be liquid
    >>> [round(x, 2) for x in order_bounds([0.9] * 9 + [0.0], 0.81, of_two)[-1]]
    [0.1, 0.65]
    """
    partly = [share for share in shares if share > 0]
    if len(orders) < LEAST_TASKS or not partly:
        errors = [LARGE_ERROR * share**0.5 for share in shares]
        return [(order - e, order + e) for order, e in zip(orders, errors, strict=True)]
    median = float(np.median(partly))
    spread = ROBUST * float(np.median(np.abs(np.asarray(orders) - np.median(orders))))
    variance = max(ERROR**2, (spread**2 - SPREAD**2) / median)  # of the error, by share
    doubt = DOUBT * ((variance - ERROR**2) * median / len(orders)) ** 0.5
    found = []
    for order, share in zip(orders, shares, strict=True):
        weight, least = variance * share / (variance * share + SPREAD**2), ERROR * share**0.5
        low, high = (weight * (mean + side * doubt - order) for side in (-1, 1))
        found.append((order + min(low, least), order + max(high, -least)))
    return found
