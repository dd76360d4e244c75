"""What a probe of few prompts says of each task's `order`: a least and a most, told by all tasks.

Two prompts of a task have no interval of their own. The tasks of the suite have one together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ERROR = 0.15
"""Standard error of a task's `order` by p of its P prompts, over √(1/p − 1/P), at the least: that
of trained runs of `liquid-tiny`, 0.20, 0.15 and 0.13 for 2, 4 and 8 of 24. SFT of SmolLM2-135M has
0.3 on plain texts, and 0.75 in chat."""
SPREAD = 0.05
"""Standard deviation of the tasks' own orders about the mean of all, there: 0.02 to 0.08 by run."""
DOUBT = 0.5
"""Standard errors by which the mean of all tasks is doubted. With 1, the onset of one run of
`liquid-tiny` is told 24% of the run late; with 0, two tasks of SmolLM2 have an onset that all their
prompts do not show."""
ROBUST = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def order_bounds(
    orders: Sequence[float], mean: float, shares: Sequence[float]
) -> list[tuple[float, float]]:
    """By task, the order by which a high one is told, and the one by which a low one is.

    Tasks differ by an error e, as few prompts were asked, and of their own, by s. With
    w = e² / (e² + s²), and h a doubt about the mean, each is drawn to the mean of all:

        least = order + min(w · (mean − h − order), e₀)
        most = order + max(w · (mean + h − order), −e₀)

    That is the limited translation estimator (Efron and Morris 1972,
    doi:10.1080/01621459.1972.10481215), limited on one side: other tasks may put off what a task
    seems to do, but not make up what it does not. s is `SPREAD` and e₀ = `ERROR` · √share. e is e₀
    too, unless the orders spread by more, by their median absolute deviation: then e² is what s²
    leaves of that, and h is `DOUBT` · √((e² − e₀²) / T).

    Args:
        orders: of T tasks.
        mean: over the tasks, as the suite's.
        shares: by task, 1/p − 1/P. It is 0 where all are asked, and nothing is changed.

    >>> order_bounds([0.3, 0.2], 0.25, [0, 0])
    [(0.3, 0.3), (0.2, 0.2)]
    >>> of_two = [11 / 24] * 10  # nine tasks have collapsed, and one seems to be liquid
    >>> [round(x, 2) for x in order_bounds([0.9] * 9 + [0.0], 0.81, of_two)[-1]]
    [0.1, 0.65]
    """
    share = float(np.median(shares)) if len(orders) else 0.0
    if not share:
        return [(order, order) for order in orders]
    spread = ROBUST * float(np.median(np.abs(np.array(orders) - np.median(orders))))
    unit = max(ERROR**2, (spread**2 - SPREAD**2) / share)
    half = DOUBT * ((unit - ERROR**2) * share / len(orders)) ** 0.5
    found = []
    for order, own in zip(orders, shares, strict=True):
        weight, error = unit * own / (unit * own + SPREAD**2), ERROR * own**0.5
        low, high = (weight * (mean + side * half - order) for side in (-1, 1))
        found.append((order + min(low, error), order + max(high, -error)))
    return found
