"""The path that cross-entropy descent takes when every prompt has its own logits.

Supervised training on answers drawn from t moves the logits of a prompt by

    dz/dτ = t − softmax(z),

the gradient flow of KL(t ‖ softmax(z)): the common choices are learnt first, the rare ones last.
No power or logarithm makes this path straight, so it is integrated, and the answers are compared
with its points. That a shared network moves like free logits is an assumption.

Axes: P prompts, C choices, K ends, T times.
"""

from __future__ import annotations

import numpy as np

TIMES = 40
"""Times at which the path is kept; between them it is taken for straight in √q."""
FIRST_STEP, GROWTH = 0.2, 1.2
"""The first step in τ, and the factor from each to the next: rare choices take ever longer."""
LARGEST_MOVE = 0.5
"""Largest change of a logit in one step."""
SMALLEST = 1e-6
"""Probabilities below this are taken for this: their logarithm is no evidence."""


def descend(b: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[T, K, P, C] answers on the way from b [P, C] to ends [K, C], the start first.

    Euler steps, implicit in the diagonal of the Jacobian: long ones would overshoot the end.
    """
    z = np.tile(np.log(np.maximum(b, SMALLEST)).astype(np.float32), (len(ends), 1, 1))
    goal = ends[:, None, :].astype(np.float32)
    path = [softmax(z)]
    for step in range(TIMES):
        length = FIRST_STEP * GROWTH**step
        pull = length * (goal - path[-1]) / (1 + length * path[-1])
        z = z + np.clip(pull, -LARGEST_MOVE, LARGEST_MOVE)
        path.append(softmax(z))
    return np.stack(path)


def fit_descent(b: np.ndarray, q: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[K, P, C] the answers nearest to q [P, C] on the paths from b [P, C] to ends [K, C].

    Each prompt may be anywhere on its own path; nearest is meant in √q.
    """
    path = np.sqrt(descend(b, ends))
    start, way = path[:-1], np.diff(path, axis=0)
    left = np.sqrt(q, dtype=path.dtype) - start
    gone = np.einsum("tkpc,tkpc->tkp", left, way)
    length = np.einsum("tkpc,tkpc->tkp", way, way)
    part = np.clip(gone / np.maximum(length, 1e-30), 0.0, 1.0)
    away = np.einsum("tkpc,tkpc->tkp", left, left) - part * (2 * gone - part * length)
    nearest = away.argmin(axis=0)[None, :, :, None]
    at, on, share = (
        np.take_along_axis(x, nearest, axis=0)[0] for x in (start, way, part[..., None])
    )
    rows = np.square(at + share * on, dtype=np.float64)
    return rows / rows.sum(axis=-1, keepdims=True)


def softmax(z: np.ndarray) -> np.ndarray:
    """[…, C] probabilities from logits."""
    rows = np.exp(z - z.max(axis=-1, keepdims=True))
    return rows / rows.sum(axis=-1, keepdims=True)
