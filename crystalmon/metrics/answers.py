"""What is measured on the answers to one task: pure functions, one formula each.

Axes: P prompts, C choices. `q` [P, C] holds a distribution over the choices in each row; `b` is the
same from the base. Prompts are averaged with weights `w` [..., P] that sum to 1: uniform weights
give the estimate, multinomial ones a bootstrap replicate, so that a metric and its interval come
from one formula. Entropies and divergences are in nats, in float64. `README.md` beside this file
has every definition and its source.
"""

from __future__ import annotations

import numpy as np

from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import entropy, ratio
from crystalmon.metrics.seeds import seed_distances

LEFT = 0.2
"""Share of its liquidity to the plain prompts that a view is taken to leave a base at the least:
with less, its answers are as alike as those of a crystallized task."""
ORDERED_LIQUIDITY = 0.01
"""A base is already ordered when its liquidity is under this share of log C: there is too
little liquidity left to lose."""

MEASURABLE = 0.1
"""Coverage from which a wording's answers tell what the model answers."""
MAJORITY = 0.5
"""Share of a task's wordings that must be measurable for the task to be, and of a suite's tasks."""


def liquidity(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Generalised Jensen–Shannon divergence among the prompts, in nats; at least 0.

    H(Σ_p w_p q_p) − Σ_p w_p H(q_p): the mutual information between prompt and answer (Lin 1991).
    0 when every prompt answers alike, at most min(log P, log C).

    >>> float(liquidity(np.eye(2), uniform_weights(2)))  # the prompt decides the answer: log 2
    0.6931471805599453
    >>> float(liquidity(np.full((2, 2), 0.5), uniform_weights(2)))  # the prompt does not matter
    0.0
    """
    return np.maximum(entropy(w @ q) - w @ entropy(q), 0.0)


def is_ordered(b: np.ndarray) -> bool:
    """Whether the base itself is too ordered for `order` to mean anything.

    True when liquidity(b) < ORDERED_LIQUIDITY · log C.

    >>> is_ordered(np.eye(2)), is_ordered(np.full((2, 2), 0.5))
    (False, True)
    """
    return bool(liquidity(b, uniform_weights(len(b))) < ORDERED_LIQUIDITY * np.log(b.shape[1]))


def order(
    q: np.ndarray, b: np.ndarray, w: np.ndarray, in_view: np.ndarray | None = None
) -> np.ndarray:
    """1 − liquidity(q) / liquidity(b): 0 as liquid as the base, 1 all prompts alike.

    Negative when the prompts differ more than in the base; NaN when liquidity(b) is 0
    to rounding. With `in_view` it is relative to `held_against`.

    >>> alike, unlike, w = np.full((2, 2), 0.5), np.eye(2), uniform_weights(2)
    >>> float(order(unlike, unlike, w)), float(order(alike, unlike, w))
    (0.0, 1.0)
    """
    before = held_against(q, b, w, in_view)
    return ratio(before - liquidity(q, w), before)


def held_against(
    q: np.ndarray, b: np.ndarray, w: np.ndarray, in_view: np.ndarray | None = None
) -> np.ndarray:
    """The base's liquidity that q's is held against, in nats: L(b), unless there is `in_view`.

    A base that does not answer in the view of a run is asked the plain prompts too: b. Between its
    liquidity there and in the view, what the format does cannot be told from what training does. So
    q is held against the nearest value of that range: within it `order` is 0, outside it counts
    from the nearer end. The range ends at `LEFT` · L(b): the few answers that a base gives in the
    view may be all alike, and answers that have become so are alike whatever has made them so.

    Args:
        q, b, w: see `order`.
        in_view: [P, C] the base's answers in the view, if b are those to the plain prompts.

    >>> b, w = np.array([[0.9, 0.1], [0.1, 0.9]]), uniform_weights(2)
    >>> half = np.array([[0.7, 0.3], [0.3, 0.7]])
    >>> found = held_against(half, b, w, in_view=np.full((2, 2), 0.5))
    >>> bool(found == liquidity(half, w)), round(float(held_against(half, b, w)), 3)
    (True, 0.368)
    """
    plain = liquidity(b, w)
    if in_view is None:
        return plain
    other = np.maximum(liquidity(in_view, w), LEFT * plain)
    return np.clip(liquidity(q, w), np.minimum(plain, other), np.maximum(plain, other))


def is_measurable(coverage: np.ndarray) -> bool:
    """Whether at least `MAJORITY` of a task's wordings have a coverage of `MEASURABLE`.

    >>> is_measurable(np.array([0.9, 0.01])), is_measurable(np.array([0.9, 0.01, 0.01]))
    (True, False)
    """
    return bool((coverage >= MEASURABLE).mean() >= MAJORITY)


def variety(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over pairs of prompts of JS(q_p, q_r), in nats; NaN for a single prompt.

    P / (P − 1) · Σ_p Σ_r w_p w_r JS(q_p, q_r): a pair drawn without replacement when the weights
    are uniform. `w` [..., P] → [...].

    >>> round(float(variety(np.array([[1.0, 0.0], [0.0, 1.0]]), uniform_weights(2))), 4)
    0.6931
    """
    count = len(q)
    pairs = count / (count - 1) if count > 1 else np.nan
    return np.einsum("...p,pr,...r->...", w, seed_distances(q, q), w) * pairs


def round_significant(values: np.ndarray, digits: int = 8) -> np.ndarray:
    """Values to `digits` significant decimal digits; NaN stays NaN.

    >>> round_significant(np.array([0.123456789, 12345.6789]), 3).tolist()
    [0.123, 12300.0]
    """
    rounded = [float(f"{value:.{digits}g}") for value in values.ravel()]
    return np.array(rounded, dtype=np.float64).reshape(values.shape)


def answer_distributions(log_choice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of choices as what is stored and detected on.

    Args:
        log_choice: [P, C], of each choice after each prompt.

    Returns:
        q [P, C], renormalised, to 8 significant digits; coverage [P], the choices' total.

    >>> q, coverage = answer_distributions(np.log([[0.1, 0.3]]))
    >>> q.tolist(), coverage.round(6).tolist()
    ([[0.25, 0.75]], [0.4])
    """
    coverage = np.minimum(np.exp(log_choice).sum(axis=1), 1.0)
    top = log_choice.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        q = np.exp(log_choice - top)
    return round_significant(q / q.sum(axis=1, keepdims=True)), coverage
