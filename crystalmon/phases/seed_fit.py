"""Which base prompt a collapse leads to: what speaks for each, by its end and by its paths.

The nearest base prompt is a poor guess while a collapse is under way: what is half-way looks
central. So the answers are extrapolated along their own paths, which `straight_path` fits. How well
a candidate explains the answers is told by paths that end on it, straight ones or those of
`descent_path`, whichever fit better. This is a construction of this project.

Axes: P prompts, C choices. Divergences are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystalmon.metrics.answers import order
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import NOISE_FLOOR, mean_over_others, seed_distances
from crystalmon.phases.descent_path import SMALLEST, fit_descent
from crystalmon.phases.seed_odds import Evidence
from crystalmon.phases.seed_set import Members, find_members
from crystalmon.phases.straight_path import Extrapolation, extrapolate, straight_misfits

SHORTLIST = 12
"""Candidates nearest to the limit whose paths are fitted, and half as many nearest to the pooled
answers."""


@dataclass(frozen=True)
class Candidates:
    """The base's prompts as possible seeds.

    Args:
        b: [P, C] the base's answers.
        between: [P, P] JS(b_p, b_k).
        floors: [P] noise floors: `NOISE_FLOOR` times the mean distance from the others.
        neighbours: [P] distance of each base prompt from its nearest other one.
    """

    b: np.ndarray = field(repr=False)
    between: np.ndarray = field(repr=False)
    floors: np.ndarray = field(repr=False)
    neighbours: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, b: np.ndarray) -> Candidates:
        """From the base's answers [P, C]."""
        between = seed_distances(b, b)
        apart = between + np.diag(np.full(len(b), np.inf))
        neighbours = apart.min(axis=0) if len(b) > 1 else np.zeros(1)
        return cls(b, between, NOISE_FLOOR * mean_over_others(between), neighbours)

    def twins(self, seed: int) -> np.ndarray:
        """[P] mask of the base prompts within the seed's noise floor, itself among them."""
        mask = self.between[seed] < self.floors[seed]
        mask[seed] = True
        return mask

    def chance(self, distance: float) -> float:
        """P-value of a nearest candidate at `distance`: how often base prompts are so near by.

        (1 + #{k: neighbours_k ≤ distance}) / (P + 1): the share of base prompts whose own nearest
        neighbour is no farther.

        >>> b = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> Candidates.of(b).chance(0.0), Candidates.of(b).chance(0.1)
        (0.25, 0.75)
        """
        return float((1 + np.sum(self.neighbours <= distance)) / (len(self.b) + 1))


@dataclass(frozen=True)
class SeedEstimate:
    """The candidate that a collapse leads to, and how sure that is.

    Args:
        candidate: index into the base's prompts.
        log_odds: that it is the seed, rather than that there is none; see `seed_odds`.
        distance: JS of it from the limit or from the pooled answers, whichever is nearer.
        p_value: of that; see `Candidates.chance`.
        margin: how many times worse the best other candidate, twins aside, explains the
            answers; at most e⁶. Below 1 that one explains them better, but the pooled answers
            lie elsewhere.
        excess, unexplained: of the candidate; see `Evidence`.
        members: of the seed set.
        extrapolated: where the answers lead.
    """

    candidate: int
    log_odds: float
    distance: float
    p_value: float
    margin: float
    excess: float
    unexplained: float
    members: Members
    extrapolated: Extrapolation

    @property
    def probability(self) -> float:
        """That there is a seed, by the fitted weights, if half of all collapses have one."""
        return 1.0 / (1.0 + math.exp(-self.log_odds))

    def numbers(self) -> dict[str, Any]:
        """What an event reports of it."""
        keys = ("candidate", "distance", "p_value", "probability", "margin")
        shown = {key: getattr(self, key) for key in (*keys, "excess", "unexplained")}
        return shown | {"share": self.extrapolated.share}


def estimate_seed(
    candidates: Candidates,
    q: np.ndarray,
    asked: np.ndarray | None = None,
    at_rest: bool = False,
) -> SeedEstimate:
    """Extrapolate answers q [p, C] and compare where they lead with every candidate.

    Args:
        candidates: all P prompts of the base.
        q: the answers now.
        asked: [p] the prompts that they answer; all if None.
        at_rest: whether the collapse is at rest, or at its end.
    """
    listed, evidence, extrapolated = gather(candidates, q, asked)
    best = evidence.best()
    winner = int(listed[best])
    twins = np.stack([candidates.twins(k)[listed] for k in listed])
    rivals = ~twins[best]
    contrast, _ = evidence.contrasts(best, rivals)
    distance = float(min(evidence.pooled[best], evidence.ends[best]))
    return SeedEstimate(
        candidate=winner,
        log_odds=evidence.log_odds(best, rivals),
        distance=distance,
        p_value=candidates.chance(distance),
        margin=math.exp(contrast),
        excess=evidence.excess(best),
        unexplained=min(evidence.unexplained(best), 1.0),
        members=find_members(listed, evidence, twins, at_rest),
        extrapolated=extrapolated,
    )


def gather(
    candidates: Candidates, q: np.ndarray, asked: np.ndarray | None = None
) -> tuple[np.ndarray, Evidence, Extrapolation]:
    """What speaks for each candidate that may be the seed of answers; see `estimate_seed`.

    Returns:
        [K] the candidates, those nearest to the end or to the pooled answers; the evidence of
        each; and where the answers lead.
    """
    b = candidates.b
    start = b if asked is None else b[asked]
    extrapolated, pooled = extrapolate(start, q), q.mean(axis=0)
    ends, apart = js_divergence(extrapolated.end, b), js_divergence(pooled, b)
    by_end, by_pooled = np.argsort(ends, kind="stable"), np.argsort(apart, kind="stable")
    listed = np.union1d(by_end[:SHORTLIST], by_pooled[: SHORTLIST // 2])
    evidence = Evidence(
        misfits=least_misfits(start, q, b[listed], extrapolated.power).mean(axis=1),
        pooled=apart[listed],
        ends=ends[listed],
        floors=candidates.floors[listed],
        residual=extrapolated.residual,
        moved=float(js_divergence(q, start).mean()),
        order=float(np.nan_to_num(order(q, start, uniform_weights(len(q))))),
        choices=b.shape[1],
        whole=len(q) == len(b),
    )
    return listed, evidence, extrapolated


def mean_answers(history: np.ndarray) -> np.ndarray:
    """[P, C] mean over probes of answers [S, P, C], taken in the logarithm."""
    rows = np.exp(np.log(np.maximum(history, SMALLEST)).mean(axis=0))
    return rows / rows.sum(axis=1, keepdims=True)


def least_misfits(b: np.ndarray, q: np.ndarray, ends: np.ndarray, power: float) -> np.ndarray:
    """[K, P] `straight_misfits`, or those of descent to the candidate where it fits better."""
    straight = straight_misfits(b, q, ends, power)
    descent = js_divergence(q, fit_descent(b, q, ends))
    better = descent.mean(axis=1) < straight.mean(axis=1)
    return np.where(better[:, None], descent, straight)
