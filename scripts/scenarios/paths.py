"""How a simulated model gets from one set of answers to another.

A path takes start [P, C], end [P, C] or [C] and every prompt's share of the way [S, P] in [0, 1]
at S probes, to answers [S, P, C]. `SCHEDULES` give the share over probes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scenarios.bases import softmax

Path = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def geometric(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """q ∝ start^(1−g) · end^g: the logits move on a straight line."""
    g = share[..., None]
    return softmax((1 - g) * np.log(start) + g * np.log(end))


def mixture(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """q = (1−g) · start + g · end: some answers come from the one, some from the other."""
    g = share[..., None]
    return (1 - g) * start + g * end


def hellinger(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """√q ∝ (1−g)·√start + g·√end: between the two above."""
    g = share[..., None]
    rows = ((1 - g) * np.sqrt(start) + g * np.sqrt(end)) ** 2
    return rows / rows.sum(axis=-1, keepdims=True)


def descent(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Gradient flow of the cross-entropy in each prompt's own logits, dz/dt = end − softmax(z).

    The share is of the cross-entropy's excess KL(end ‖ q) at the start that has been worked off;
    the common choices are learnt first, the rare ones last.
    """
    end = np.broadcast_to(end, start.shape)
    z, grid = np.log(start), [start]
    for _ in range(60):
        for _ in range(4):
            rate = 0.5 * 1.12 ** len(grid)
            z = z + np.clip(rate * (end - softmax(z)), -0.5, 0.5)
        grid.append(softmax(z))
    stack = np.stack([*grid, end])
    excess = np.sum(end * (np.log(end) - np.log(stack)), axis=-1)
    done = np.maximum.accumulate(1 - excess / np.maximum(excess[0], 1e-12), axis=0)
    found = np.empty((*share.shape, start.shape[1]))
    for p in range(len(start)):
        grid_share = np.maximum.accumulate(done[:, p] + 1e-12 * np.arange(len(done)))
        at = np.clip(np.searchsorted(grid_share, share[:, p]), 1, len(done) - 1)
        low, high = grid_share[at - 1], grid_share[at]
        part = np.clip((share[:, p] - low) / (high - low), 0, 1)[:, None]
        found[:, p] = softmax((1 - part) * np.log(stack[at - 1, p]) + part * np.log(stack[at, p]))
    return found


def harmonic(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """1/q ∝ (1−g)/start + g/end: what either thinks rare is rare."""
    g = share[..., None]
    rows = 1 / ((1 - g) / start + g / end)
    return rows / rows.sum(axis=-1, keepdims=True)


def blend(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Half geometric, half a mixture that lags behind it."""
    return 0.5 * geometric(start, end, share) + 0.5 * mixture(start, end, share**2)


def sharpened(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Geometric, with a temperature that falls by a quarter half-way and comes back."""
    g = share[..., None]
    rows = np.log(geometric(start, end, share))
    return softmax((1 + g * (1 - g)) * rows)


PATHS: dict[str, Path] = {
    "geometric": geometric,
    "mixture": mixture,
    "hellinger": hellinger,
    "descent": descent,
}
HELD_OUT_PATHS: dict[str, Path] = {"harmonic": harmonic, "blend": blend, "sharpened": sharpened}


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


def paused_schedule(probes: np.ndarray, at: float, width: float) -> np.ndarray:
    """Half of the way, a pause of `width` / 2 probes, and the rest."""
    first = sigmoid_schedule(probes, at, width / 3)
    return 0.5 * first + 0.5 * sigmoid_schedule(probes, at + 0.8 * width, width / 3)


SCHEDULES = {
    "sigmoid": sigmoid_schedule,
    "linear": linear_schedule,
    "saturating": saturating_schedule,
}
HELD_OUT_SCHEDULES = {"paused": paused_schedule}
