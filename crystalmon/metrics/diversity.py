"""How varied answers are, in the measures that others use: pure functions, one formula each.

Axes and notation are those of `answers`: q and b are [P, C], weights `w` [..., P] sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DRAWN = 10
"""Draws of which the different answers are counted, as in NoveltyBench."""


def expected_distinct(q: np.ndarray, w: np.ndarray, draws: int = DRAWN) -> np.ndarray:
    """Expected number of different answers among k draws after one prompt, in [1, min(k, C)].

    mean_p Σ_c 1 − (1 − q_pc)^k. It is distinct_k of NoveltyBench (arXiv 2504.05228) for a closed
    set of answers, without sampling. `w` [..., P] → [...].

    Raises:
        ValueError: if `draws` is under 1.

    >>> float(expected_distinct(np.array([[0.5, 0.5]]), np.ones(1), draws=2))
    1.5
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    return w @ (1.0 - (1.0 - q) ** draws).sum(axis=1)


def collision(q: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Probability that an answer of q and one of b to the same prompt are alike, in [0, 1].

    mean_p Σ_c q_pc b_pc. With q twice it is Simpson's index (1949, doi:10.1038/163688a0): that two
    answers of the model are alike. `w` [..., P] → [...].

    >>> even, w = np.full((1, 4), 0.25), np.ones(1)
    >>> float(collision(even, even, w)), float(collision(np.eye(4)[:1], even, w))
    (0.25, 0.25)
    """
    return w @ (q * b).sum(axis=1)


def mean_diversity(q: np.ndarray, b: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """Distinct answers and collisions, which are means over prompts.

    Args:
        q: [p, C] answers.
        b: [p, C] the base's to the same prompts.
        w: [..., p].

    Returns:
        [...] by key.
    """
    return {
        f"distinct_{DRAWN}": expected_distinct(q, w),
        "collision": collision(q, q, w),
        "collision_base": collision(q, b, w),
    }


def diversity_of(values: Mapping[str, np.ndarray], choices: int) -> dict[str, np.ndarray]:
    """What follows from a task's entropies: Hill numbers, and the KL to equal probabilities.

    The Hill numbers of order 1 (Hill 1973, doi:10.2307/1934352; Jost 2007,
    doi:10.1890/06-1736.1): how many answers one prompt gives (α), all prompts together (γ), and how
    many prompts' worth of different answers there are (β), with γ = α · β. That of one prompt is
    the branching factor of arXiv 2506.17871 for an answer in place of a token.

    Args:
        values: of `entropy`, `entropy_mixture` and `liquidity`, and of `compliance_entropy` if the
            vocabulary was seen, [...] each.
        choices: C.

    Returns:
        [...] by key.
    """
    found = {
        "branching_factor": np.exp(values["entropy"]),
        "gamma_diversity": np.exp(values["entropy_mixture"]),
        "beta_diversity": np.exp(values["liquidity"]),
        "kl_uniform": np.log(choices) - values["entropy"],
    }
    if "compliance_entropy" in values:
        found["vocabulary_branching"] = np.exp(values["compliance_entropy"])
    return found
