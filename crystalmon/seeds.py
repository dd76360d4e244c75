"""Which base prompt a collapse leads to: extrapolate it to its end and look who is there.

The nearest base prompt is a poor guess while a collapse is under way: what is half-way looks
central. So the answers are extrapolated along their own paths. In coordinates φ (the logarithm,
the square root, or the probability itself) a collapse with shares g_p and limit t is

    φ(q_p) = (1 − g_p) · φ(b_p) + g_p · t,

a bilinear fit over all prompts: the common share starts as 1 − slope of φ(q) on φ(b) within each
choice, then limit and shares are solved for in turn. The coordinates that leave the smallest
residual are taken. With t held at a candidate instead, the residual says how well that candidate
explains what is seen, and its ratio to the free one whether any does. A candidate's path may also
be that of cross-entropy descent (`crystalmon.descent`), whichever leaves less. Along a path that is
none of these all candidates miss, and the free limit with them: then it is telling what share of
the movement the best one leaves unexplained, and by how much it beats the next. This is the
construction of this project; it reduces to linear regression when all shares are equal, and to the
pooled answers when the collapse is complete.

Axes: P prompts, C choices, R resamples of the prompts. Divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crystalmon.descent import fit_descent
from crystalmon.metrics import (
    NOISE_FLOOR,
    bootstrap_weights,
    js_divergence,
    mean_over_others,
    seed_distances,
)

SMALLEST = 1e-6
"""Probabilities below this are taken for this: their logarithm is no evidence."""
RESAMPLES = 40
"""Bootstrap resamples of the prompts behind every estimate."""
SHARE_RANGE = (0.03, 1.03)
"""A prompt's share of the way: below, nothing can be extrapolated; above, only noise."""
SWEEPS = 3
"""Rounds of solving for limit and shares in turn."""
SHORTLIST = 12
"""Candidates, by distance from the limit, whose own paths are fitted."""
RESOLVED = 0.02
"""Noise floors below which a residual counts as none."""
POWERS = (0.0, 0.5, 1.0)
"""φ(x) = x^power, the logarithm for 0."""


@dataclass(frozen=True)
class Candidates:
    """A reference as a set of possible seeds.

    Args:
        b: [P, C] the base's answers.
        between: [P, P] JS(b_p, b_k).
        floors: [P] noise floor of each candidate: `NOISE_FLOOR` times its mean distance from the
            others.
        neighbours: [P] distance of each base prompt from its nearest other one.
        resamples: [R, P] bootstrap weights, rows summing to 1, the first one uniform.
    """

    b: np.ndarray = field(repr=False)
    between: np.ndarray = field(repr=False)
    floors: np.ndarray = field(repr=False)
    neighbours: np.ndarray = field(repr=False)
    resamples: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, b: np.ndarray) -> Candidates:
        """From a reference [P, C]; the resamples are the same for every reference of P prompts."""
        count = len(b)
        between = seed_distances(b, b)
        apart = between + np.diag(np.full(count, np.inf))
        neighbours = apart.min(axis=0) if count > 1 else np.zeros(1)
        drawn = bootstrap_weights(count, RESAMPLES, np.random.default_rng(0))
        return cls(
            b=b,
            between=between,
            floors=NOISE_FLOOR * mean_over_others(between),
            neighbours=neighbours,
            resamples=np.concatenate([np.full((1, count), 1.0 / count), drawn]),
        )

    def twins(self, seed: int) -> np.ndarray:
        """[P] mask of the base prompts within the seed's noise floor, itself among them."""
        mask = self.between[seed] < self.floors[seed]
        mask[seed] = True
        return mask

    def chance(self, distance: float) -> float:
        """P-value of a nearest candidate at `distance`: how often base prompts are so near by.

        (1 + #{k: neighbours_k ≤ distance}) / (P + 1), the share of base prompts whose own nearest
        neighbour is no farther. It is at least 1 / (P + 1).
        """
        return float((1 + np.sum(self.neighbours <= distance)) / (len(self.b) + 1))


@dataclass(frozen=True)
class Limit:
    """Where a collapse leads.

    Args:
        end: [C] the extrapolated end.
        residual: mean over prompts of JS(answers, fitted answers).
        power: of the coordinates that fitted best.
        shares: [P] of the way that the prompts have gone.
        start, now: [P, C] the base's answers and those now, in these coordinates.
    """

    end: np.ndarray = field(repr=False)
    residual: float
    power: float
    shares: np.ndarray = field(repr=False)
    start: np.ndarray = field(repr=False)
    now: np.ndarray = field(repr=False)

    @property
    def share(self) -> float:
        """Mean share of the way that the prompts have gone."""
        return float(self.shares.mean())

    def resampled(self, resamples: np.ndarray) -> np.ndarray:
        """[R, C] the end by the prompts as weighted in each of the resamples [R, P]."""
        ends = _solve_limit(self.start, self.now, self.shares, resamples)
        return _probabilities(ends, self.power)


@dataclass(frozen=True)
class SeedEstimate:
    """The candidate that explains the answers best, and how sure that is.

    Args:
        candidate: index into the base's prompts.
        distance: JS(limit, candidate).
        floor: the candidate's noise floor.
        excess: the residual of paths that end at the candidate, over that of paths with a free
            end or `RESOLVED` noise floors, whichever is larger.
        agreement: share of the resamples that the candidate, or a twin, explains best.
        contrast: residual of the best candidate that is no twin, over this one's.
        unexplained: residual of the candidate over mean JS(answers, base's answers), the part of
            the movement that its path does not explain.
        p_value: see `Candidates.chance`.
        pooled_candidate: the candidate nearest to the answers pooled over prompts.
        pooled_distance: JS(pooled answers, that candidate).
        pooled: [C] the pooled answers.
        limit: what was extrapolated.
        among: all candidates.
    """

    candidate: int
    distance: float
    floor: float
    excess: float
    agreement: float
    contrast: float
    unexplained: float
    p_value: float
    pooled_candidate: int
    pooled_distance: float
    pooled: np.ndarray = field(repr=False)
    limit: Limit
    among: Candidates = field(repr=False)

    @cached_property
    def nearest_low(self) -> float:
        """In noise floors: 5% quantile over resamples of the end's distance from the nearest.

        Only what may be seedless needs it, and it is much of the work.
        """
        ends = self.limit.resampled(self.among.resamples)
        distances = js_divergence(ends[:, None, :], self.among.b)
        relative = distances / np.maximum(self.among.floors, 1e-12)
        return float(np.percentile(relative.min(axis=1), 5))


def estimate_seed(candidates: Candidates, q: np.ndarray) -> SeedEstimate:
    """Extrapolate answers q [P, C] and compare the limit with every candidate."""
    limit = extrapolate(candidates.b, q)
    distances = js_divergence(limit.end, candidates.b)
    listed = np.argsort(distances, kind="stable")[:SHORTLIST]
    misfits = path_misfits(candidates.b, q, listed, limit.power)
    totals = candidates.resamples @ misfits.T
    best = int(np.argmin(totals[0]))
    winner = int(listed[best])
    floor = float(candidates.floors[winner])
    twins = candidates.twins(winner)[listed]
    others = totals[0][~twins]
    distance = float(distances[winner])
    moved = float(js_divergence(q, candidates.b).mean())
    pooled = q.mean(axis=0)
    from_pooled = js_divergence(pooled, candidates.b)
    return SeedEstimate(
        candidate=winner,
        distance=distance,
        floor=floor,
        excess=float(totals[0, best] / max(limit.residual, RESOLVED * floor, 1e-12)),
        agreement=float(np.mean(twins[np.argmin(totals, axis=1)])),
        contrast=float(others.min() / max(totals[0, best], 1e-12)) if len(others) else 1e12,
        unexplained=float(totals[0, best] / max(moved, 1e-12)),
        p_value=candidates.chance(distance),
        pooled_candidate=int(np.argmin(from_pooled)),
        pooled_distance=float(from_pooled.min()),
        pooled=pooled,
        limit=limit,
        among=candidates,
    )


def path_misfits(b: np.ndarray, q: np.ndarray, listed: np.ndarray, power: float) -> np.ndarray:
    """[K, P] `candidate_misfits`, or those of descent to the candidate where it fits better."""
    straight = candidate_misfits(b, q, listed, power)
    descent = js_divergence(q, fit_descent(b, q, b[listed]))
    better = descent.mean(axis=1) < straight.mean(axis=1)
    return np.where(better[:, None], descent, straight)


def candidate_misfits(b: np.ndarray, q: np.ndarray, listed: np.ndarray, power: float) -> np.ndarray:
    """[K, P] JS(answers, answers fitted by a path of prompt p to candidate k), in nats.

    Args:
        b: [P, C] the base's answers.
        q: [P, C] the answers now.
        listed: [K] indices of the candidates.
        power: of the coordinates.
    """
    weight = _choice_weights(b, q, power)
    start, now = _coordinates(b, power, weight), _coordinates(q, power, weight)
    ends = start[listed]
    part = _solve_shares(start, now, ends, weight)[..., None]
    return js_divergence(q, _probabilities((1 - part) * start + part * ends[:, None], power))


def extrapolate(b: np.ndarray, q: np.ndarray, powers: Sequence[float] = POWERS) -> Limit:
    """The common end of the paths from b [P, C] through q [P, C]; see the module's formula.

    Args:
        b: the base's answers.
        q: the answers now.
        powers: the coordinates to try.
    """
    fits = [_fit(b, q, power) for power in powers]
    return min(fits, key=lambda fit: fit.residual)


def _fit(b: np.ndarray, q: np.ndarray, power: float) -> Limit:
    alike = np.full((1, len(b)), 1.0 / len(b))
    weight = _choice_weights(b, q, power)
    start, now = _coordinates(b, power, weight), _coordinates(q, power, weight)
    share = np.full(len(b), _common_share(start, now, weight))
    end = _solve_limit(start, now, share, alike)[0]
    for _ in range(SWEEPS):
        share = _solve_shares(start, now, end, weight)
        end = _solve_limit(start, now, share, alike)[0]
    part = share[:, None]
    fitted = _probabilities((1 - part) * start + part * end, power)
    residual = float(js_divergence(q, fitted).mean())
    return Limit(_probabilities(end, power), residual, power, share, start, now)


def _choice_weights(b: np.ndarray, q: np.ndarray, power: float) -> np.ndarray:
    """[C] weights of the choices, summing to 1: the logarithm of a rare one counts for little."""
    if power:
        return np.full(b.shape[1], 1.0 / b.shape[1])
    weight = q.mean(axis=0) + b.mean(axis=0)
    return weight / weight.sum()


def _coordinates(rows: np.ndarray, power: float, weight: np.ndarray) -> np.ndarray:
    if power:
        return rows**power
    logs = np.log(np.maximum(rows, SMALLEST))
    return logs - (logs @ weight)[:, None]


def _probabilities(rows: np.ndarray, power: float) -> np.ndarray:
    """Back to the simplex; a limit may lie outside of it by noise."""
    if power:
        raw = np.maximum(rows, 0.0) ** (1.0 / power) + SMALLEST
    else:
        raw = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return raw / raw.sum(axis=-1, keepdims=True)


def _common_share(start: np.ndarray, now: np.ndarray, weight: np.ndarray) -> float:
    """1 − slope of `now` on `start` within choices."""
    x, y = start - start.mean(axis=0), now - now.mean(axis=0)
    spread = float(np.sum(weight * x * x))
    slope = float(np.sum(weight * x * y)) / spread if spread > 0 else 0.0
    return float(np.clip(1.0 - slope, *SHARE_RANGE))


def _solve_limit(
    start: np.ndarray, now: np.ndarray, share: np.ndarray, resamples: np.ndarray
) -> np.ndarray:
    """[R, C] least squares for t given the shares, for each row of weights."""
    target = share[:, None] * (now - (1 - share)[:, None] * start)
    return (resamples @ target) / (resamples @ share**2)[:, None]


def _solve_shares(
    start: np.ndarray, now: np.ndarray, end: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """[…, P] least squares for g given the limit [… , C], drawn towards the common share.

    A prompt that starts near the limit says nothing about its own share.
    """
    way = end[..., None, :] - start
    length = (way * way) @ weight
    gone = (way * (now - start)) @ weight
    common = gone.sum(axis=-1, keepdims=True) / np.maximum(
        length.sum(axis=-1, keepdims=True), 1e-300
    )
    pull = 0.1 * length.mean(axis=-1, keepdims=True) + 1e-300
    return np.clip((gone + pull * common) / (length + pull), *SHARE_RANGE)
