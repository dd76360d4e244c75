"""What probing adds: fast jitter of the weights, unlike the movement itself."""

from __future__ import annotations

import numpy as np

from crystalmon.metrics.answers import round_significant
from scenarios.bases import softmax


def observe(rng: np.random.Generator, clean: np.ndarray, held_out: bool) -> np.ndarray:
    """[S, P, C] a history as probed: clean logits plus jitter, new at every probe.

    Each logit's own jitter has a standard deviation of 0 to 0.1 (held out: 0.15, or Student's t
    with 3 degrees of freedom), the temperature's common one of 0 to 2%.
    """
    size = clean.shape
    scale = float(rng.choice([0.0, 0.02, 0.05, 0.1]))
    jitter = scale * rng.standard_normal(size)
    if held_out:
        scale = float(rng.choice([0.05, 0.15]))
        jitter = scale * rng.standard_normal(size)
        if rng.random() < 0.5:
            jitter = 0.05 * rng.standard_t(3, size=size)
    heat = 1 + rng.choice([0.0, 0.01, 0.02]) * rng.standard_normal((len(clean), 1, 1))
    return round_significant(softmax(heat * np.log(clean) + jitter))
