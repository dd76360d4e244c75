"""Which base prompt a collapse leads to, and how likely it is that it leads to any.

Three distances speak for a candidate k, all in nats and all smaller where it is the seed:

    m_k  mean over prompts of JS(answers, nearest answers on the prompt's path from b_p to b_k)
    d_k  JS(answers pooled over prompts, b_k)
    e_k  JS(end of the extrapolated paths, b_k)

In simulated collapses along one of the known paths, m and e tell the seed. In real training the
prompts first become alike and then move together, off all of those paths: there d tells. So the
candidate is the k with the smallest cost

    w₁ log m_k + w₂ log d_k + w₃ log e_k + w₄ · late · log d_k,

where late rises from 0 at `order` 0.8 to 1 at 1. The log-odds that it is the seed, rather than that
the collapse leads to nothing that the base shows, are linear in `FEATURES`. The weights of both
maximise the likelihood of collapses whose end was planted, simulated and trained, at probes from
their onset to their end, as many with a seed as without; `scripts/calibrate_seeds.py` prints them.
This is a construction of this project.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FEATURES = (
    *("contrast of m", "contrast of d", "excess", "unexplained", "d", "e"),
    *("way left", "choices", "constant"),
)
"""Of the candidate: log of the next one's m, and d, over its own; log of m over the residual of
paths with a free end, and over the movement; log of d, and e, in its noise floors. Of the collapse:
log of 1 − `order`, and of the number of choices; and 1."""
TELLING = 4
"""Choices from which the paths tell candidates apart: among fewer, any of them explains all."""


@dataclass(frozen=True)
class Weights:
    """What evidence is weighed by.

    Args:
        choosing: w₁ to w₄.
        believing: one of each of `FEATURES`; none may count what speaks for a seed against it.
    """

    choosing: tuple[float, ...]
    believing: tuple[float, ...]


WEIGHTS = {
    True: Weights(
        choosing=(3.93, 2.28, -0.6, -0.48),
        believing=(0.55, 0.43, -0.37, -0.99, -1.77, -0.23, 0.87, 1.55, -1.73),
    ),
    False: Weights(
        choosing=(0.08, 0.5, 0.65, 0.22),
        believing=(0.0, 0.0, -0.16, -0.45, -1.03, -0.75, 0.58, 0.0, -1.32),
    ),
}
"""By whether the choices are `TELLING`."""
LATE = 0.8
"""`order` from which the pooled answers count for more."""
RESOLVED = 0.02
"""Noise floors below which a distance counts as no smaller."""
MOST_CONTRAST = 6.0
"""Logarithm of the largest contrast that still says something."""
EXCESS_RANGE, UNEXPLAINED_RANGE, FLOORS_RANGE = (0.3, 300.0), (1e-3, 1.0), (0.05, 30.0)
WAY_RANGE = (0.01, 1.0)
"""What the features are held to before their logarithm is taken."""


@dataclass(frozen=True)
class Evidence:
    """What is known of K candidates.

    Args:
        misfits, pooled, ends: [K] m, d and e.
        floors: [K] noise floors.
        residual: mean over prompts of JS(answers, paths with a free end).
        moved: mean over prompts of JS(answers, the base's answers).
        order: of the answers.
        choices: number of choices.
        whole: whether all prompts were asked.
        weights: `WEIGHTS` unless others are tried.
    """

    misfits: np.ndarray = field(repr=False)
    pooled: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    floors: np.ndarray = field(repr=False)
    residual: float
    moved: float
    order: float
    choices: int
    whole: bool = True
    weights: Weights | None = None

    @property
    def tells(self) -> bool:
        """Whether there are enough choices for the paths to tell candidates apart."""
        return self.choices >= TELLING

    @property
    def _weights(self) -> Weights:
        return self.weights or WEIGHTS[self.tells]

    def terms(self) -> np.ndarray:
        """[K, 4] what the cost is linear in."""
        least = RESOLVED * max(float(np.median(self.floors)), 1e-12)
        m, d, e = np.log(np.maximum([self.misfits, self.pooled, self.ends], least))
        late = float(np.clip((self.order - LATE) / (1 - LATE), 0.0, 1.0))
        return np.stack([m, d, e, late * d], axis=1)

    def costs(self) -> np.ndarray:
        """[K] of the candidates; the smaller, the likelier."""
        return self.terms() @ np.array(self._weights.choosing)

    def best(self) -> int:
        """Index of the candidate of the smallest cost; of several, that of smallest d."""
        return int(np.lexsort((self.pooled, self.costs()))[0])

    def probabilities(self, twins: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """[K] that each candidate is the seed, [K] that it or a twin is, and that none is.

        softmax(−cost) · σ(log-odds of the candidate that is best), and 1 − σ.

        Args:
            twins: [K, K] whether one is the other's twin.
        """
        costs, best = self.costs(), self.best()
        seeded = 1 / (1 + np.exp(-self.log_odds(best, ~twins[best])))
        shares = np.exp(costs.min() - costs)
        own = seeded * shares / shares.sum()
        return own, twins @ own, float(1 - seeded)

    def excess(self, k: int) -> float:
        """m of a candidate, over the residual of paths with a free end."""
        least = RESOLVED * max(float(self.floors[k]), 1e-12)
        return float(self.misfits[k]) / max(self.residual, least)

    def unexplained(self, k: int) -> float:
        """The share of the movement that a candidate's paths do not explain."""
        return float(self.misfits[k]) / max(self.moved, 1e-12)

    def contrasts(self, k: int, rivals: np.ndarray) -> tuple[float, float]:
        """Log of the smallest m, and d, among rivals (mask [K]) over the candidate's; 0 without."""
        if not rivals.any():
            return 0.0, 0.0
        terms = self.terms()[:, :2]
        nearest = (terms[rivals] - terms[k]).min(axis=0)
        m, d = np.minimum(nearest, MOST_CONTRAST).tolist()
        return m, d

    def features(self, k: int, rivals: np.ndarray) -> np.ndarray:
        """[9] `FEATURES` of a candidate with these rivals (mask [K])."""
        floor = max(float(self.floors[k]), 1e-12)
        ratios = [
            np.clip(self.excess(k), *EXCESS_RANGE),
            np.clip(self.unexplained(k), *UNEXPLAINED_RANGE),
            *np.clip([self.pooled[k] / floor, self.ends[k] / floor], *FLOORS_RANGE),
            np.clip(1 - self.order, *WAY_RANGE),
            self.choices,
        ]
        return np.array([*self.contrasts(k, rivals), *np.log(ratios), 1.0])

    def log_odds(self, k: int, rivals: np.ndarray) -> float:
        """Of the candidate being the seed."""
        return float(self.features(k, rivals) @ np.array(self._weights.believing))
