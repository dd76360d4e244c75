"""The seed set: where a collapse may end, as far as that cannot be excluded at 95%.

Its members are base prompts, near twins as one, and maybe none of them. A prompt has the
probability that it or a twin is the seed, and "none" the rest; see `seed_odds`. A member is
excluded if its probability is below the 5th percentile of what the truth had in collapses whose end
was planted, simulated and trained. Prompts and "none" have bounds of their own, by how far the
collapse has come, whether it is at rest, whether there are choices enough to tell prompts apart,
and whether all prompts were asked: conformal prediction by groups (Vovk, Gammerman and Shafer 2005,
doi:10.1007/b106715, chapter 4). Of complete and partial collapses, and of the two sources, the
lowest bound counts. `scripts/calibrate_seeds.py` prints the bounds. The weights of `seed_odds` were
fitted to the same collapses, so 95% is what the set aims at; `scripts/validate_detection.py`
measures what it keeps on others. Once a seed is locked, the set is that one, until another takes
over.

The likeliest member always stays, so that no set is empty.
"""

from __future__ import annotations

import numpy as np

from crystalmon.phases.seed_odds import Evidence

LEVEL = 0.95
"""Of the collapses like those of calibration, the share whose set holds the truth."""
MOVING, RESTING_AT = (0.35, 0.5, 0.65, 0.8, 0.9), (0.8,)
"""`order` where the next bound begins while the collapse goes on, and once it is at rest."""
SEED_BOUNDS = {
    (True, True): (0.0018, 0.0029, 0.0063, 0.012, 0.0095, 0.0045, 0.02, 0.035),
    (True, False): (0.00067, 0.0013, 0.0028, 0.0042, 0.0043, 0.0023, 0.0076, 0.018),
    (False, True): (0.0068, 0.0, 0.0077, 0.0058, 0.056, 0.95, 0.034, 0.0038),
    (False, False): (0.00075, 0.0023, 0.005, 0.0052, 0.039, 0.23, 0.046, 0.068),
}
"""The least probability of a member that is a prompt, by `Evidence.tells`, `Evidence.whole` and
`bound_of`."""
NONE_BOUNDS = {
    (True, True): (0.24, 0.31, 0.23, 0.25, 0.17, 0.2, 0.27, 0.3),
    (True, False): (0.32, 0.16, 0.19, 0.37, 0.11, 0.17, 0.24, 0.35),
    (False, True): (0.75, 0.68, 0.59, 0.61, 0.33, 0.72, 0.76, 0.98),
    (False, False): (0.53, 0.24, 0.2, 0.12, 0.025, 0.00027, 0.37, 0.36),
}
"""The least probability of "none", by the same."""

Members = tuple[int | None, ...]
"""The likeliest first: indices into the base's prompts, and None for none of them."""


def bound_of(order: float, at_rest: bool) -> int:
    """Which of the bounds is that of an `order`: those of a collapse at rest are the last."""
    if at_rest:
        return len(MOVING) + 1 + int(np.searchsorted(RESTING_AT, order, side="right"))
    return int(np.searchsorted(MOVING, order, side="right"))


def find_members(
    listed: np.ndarray, evidence: Evidence, twins: np.ndarray, at_rest: bool
) -> Members:
    """The members of the seed set; of twins the likeliest stands for all.

    Args:
        listed: [K] the candidates.
        evidence: of each.
        twins: [K, K] whether one is the other's twin.
        at_rest: whether the collapse is.
    """
    own, shared, none = evidence.probabilities(twins)
    key = (evidence.tells, evidence.whole)
    at, largest = bound_of(evidence.order, at_rest), max(none, float(shared.max()))
    kept = shared >= min(SEED_BOUNDS[key][at], largest)
    apart: list[int] = []
    for k in np.argsort(-own, kind="stable").tolist():
        if kept[k] and not (twins[k, apart] | twins[apart, k]).any():
            apart.append(k)
    chances: dict[int | None, float] = {int(listed[k]): float(shared[k]) for k in apart}
    if none >= min(NONE_BOUNDS[key][at], largest):
        chances[None] = none
    return tuple(sorted(chances, key=lambda member: -chances[member]))
