"""How a simulated model gets from one set of answers to another.

A path takes start [P, C], end [P, C] or [C] and each prompt's share of the way g [P] in [0, 1] to
answers [P, C]. `SCHEDULES` give the share over probes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crystalmon.scenarios.bases import softmax

Path = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def geometric(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """q ∝ start^(1−g) · end^g: the logits move on a straight line."""
    g = share[:, None]
    return softmax((1 - g) * np.log(start) + g * np.log(end))


def mixture(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """q = (1−g) · start + g · end: some answers come from the one, some from the other."""
    g = share[:, None]
    return (1 - g) * start + g * end


def hellinger(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """√q ∝ (1−g)·√start + g·√end: between the two above."""
    g = share[:, None]
    rows = ((1 - g) * np.sqrt(start) + g * np.sqrt(end)) ** 2
    return rows / rows.sum(axis=1, keepdims=True)


def descent(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Gradient flow of the cross-entropy in each prompt's own logits, dz/dt = end − softmax(z).

    The share is of the cross-entropy's excess KL(end ‖ q) at the start that has been worked off,
    to a resolution of 1/200; the common choices are learnt first, the rare ones last.
    """
    end = np.broadcast_to(end, start.shape)
    z, grid = np.log(start), [start]
    for _ in range(60):
        for _ in range(4):
            rate = 0.5 * 1.12 ** len(grid)
            z = z + np.clip(rate * (end - softmax(z)), -0.5, 0.5)
        grid.append(softmax(z))
    stack = np.stack(grid)
    excess = np.sum(end * (np.log(end) - np.log(stack)), axis=-1)
    done = np.maximum.accumulate(1 - excess / np.maximum(excess[0], 1e-12), axis=0)
    rows = []
    for p, g in enumerate(share):
        at = int(np.searchsorted(done[:, p], g))
        if at >= len(grid):
            rows.append(end[p])
        elif at == 0:
            rows.append(start[p])
        else:
            low, high = done[at - 1, p], done[at, p]
            part = (g - low) / (high - low)
            mid = (1 - part) * np.log(stack[at - 1, p]) + part * np.log(stack[at, p])
            rows.append(softmax(mid))
    return np.stack(rows)


PATHS: dict[str, Path] = {"geometric": geometric, "mixture": mixture}
HELD_OUT_PATHS: dict[str, Path] = {"hellinger": hellinger, "descent": descent}


def step_schedule(probes: np.ndarray, at: float, width: float) -> np.ndarray:
    """0 before `at`, 1 from there on."""
    return (probes >= at).astype(float)


def sigmoid_schedule(probes: np.ndarray, at: float, width: float) -> np.ndarray:
    """Logistic, from 12% to 88% in `width` probes."""
    return 1 / (1 + np.exp(-np.clip(4 * (probes - at) / width, -60, 60)))


def linear_schedule(probes: np.ndarray, at: float, width: float) -> np.ndarray:
    """A straight ramp of `width` probes around `at`."""
    return np.clip((probes - at) / width + 0.5, 0, 1)


def saturating_schedule(probes: np.ndarray, at: float, width: float) -> np.ndarray:
    """1 − exp(−(s − s₀)/τ): fast at first, as with a decaying learning rate."""
    return 1 - np.exp(-np.maximum(probes - at + width / 2, 0) * 3 / width)


SCHEDULES = {"sigmoid": sigmoid_schedule, "linear": linear_schedule}
HELD_OUT_SCHEDULES = {"saturating": saturating_schedule}
