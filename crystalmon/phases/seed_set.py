"""The seed set: where a collapse may end, as far as that cannot be excluded at 95%.

Its members are base prompts, near twins as one, and maybe none of them. A prompt has the
probability that it or a twin is the seed, and "none" the rest; see `seed_odds`. A member is
excluded if its probability is below the 5th percentile of what the truth had in collapses whose end
was planted. These come from three sources: simulations, and trainings of two models. In each the
probabilities are by weights fitted to the other two, because a user's model is one more source.
Prompts and "none" have bounds of their own, by how far the collapse has come, whether it is at
rest, whether there are choices enough to tell prompts apart, and whether all prompts were asked:
conformal prediction by groups (Vovk, Gammerman and Shafer 2005, doi:10.1007/b106715, chapter 4). Of
complete and partial collapses, and of the sources, the lowest bound counts.
`scripts/calibrate_seeds.py` prints the bounds; `scripts/validate_detection.py` measures what the
set keeps on a third model. Once a seed is locked, the set is that one, until another takes over.

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
    (True, True): (0.0036, 0.017, 0.024, 0.032, 0.018, 0.0093, 0.17, 0.12),
    (True, False): (0.0063, 0.01, 0.0071, 0.014, 0.013, 0.00069, 0.045, 0.0047),
    (False, True): (0.0034, 0.0, 0.011, 0.0079, 0.0094, 0.033, 0.013, 0.0096),
    (False, False): (0.0034, 0.0039, 0.0068, 0.0035, 0.012, 0.00033, 0.01, 0.018),
}
"""The least probability of a member that is a prompt, by `Evidence.tells`, `Evidence.whole` and
`bound_of`."""
NONE_BOUNDS = {
    (True, True): (0.044, 0.049, 0.061, 0.077, 0.14, 0.072, 0.078, 0.41),
    (True, False): (0.021, 0.032, 0.08, 0.12, 0.0029, 0.097, 0.039, 0.46),
    (False, True): (0.012, 0.013, 0.014, 0.017, 0.022, 0.68, 0.013, 0.94),
    (False, False): (0.011, 0.013, 0.015, 0.017, 0.025, 0.048, 0.013, 0.78),
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
