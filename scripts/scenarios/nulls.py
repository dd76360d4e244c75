"""Histories that move and yet do not collapse: noise-free `order` stays under 0.1."""

from __future__ import annotations

import numpy as np

from scenarios.bases import softmax
from scenarios.collapse import Draft, draw_path
from scenarios.truth import NULL_ORDER, first, orders


def _history(
    rng: np.random.Generator, base: np.ndarray, z: np.ndarray, **more: object
) -> Draft | None:
    """A draft of logits moved by z [S, P, C] or broadcastable, shrunk until it is a null."""
    for shrink in (1.0, 0.7, 0.5, 0.35, 0.2):
        clean = softmax(np.log(base) + shrink * z)
        if orders(clean, base).max() < NULL_ORDER:
            coverage = more.pop("coverage", np.full(len(clean), rng.uniform(0.4, 0.95)))
            return Draft(clean=clean, coverage=coverage, phase="liquid", **more)  # type: ignore[arg-type]
    return None


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """[S, 1, 1] from 0 to 1, started and ended anywhere."""
    probes = int(rng.integers(36, 52))
    start, length = rng.uniform(0, 15), rng.uniform(2, 25)
    return np.clip((np.arange(probes) - start) / length, 0, 1)[:, None, None]


def _autoregression(rng: np.random.Generator, shape: tuple[int, ...], memory: float) -> np.ndarray:
    """[S, …] AR(1) of unit variance, started from 0."""
    path = np.zeros(shape)
    for s in range(1, shape[0]):
        step = np.sqrt(1 - memory**2) * rng.standard_normal(shape[1:])
        path[s] = memory * path[s - 1] + step
    return path


def white(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Nothing but the jitter of every probe."""
    return _history(rng, base, np.zeros((int(rng.integers(36, 52)), 1, 1)))


def drift(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """All prompts are tilted alike: new answers, as varied as before."""
    tilt = rng.uniform(0.2, 1.2) * rng.standard_normal(base.shape[1])
    return _history(rng, base, _ramp(rng) * tilt)


def own_learning(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Every prompt learns answers of its own."""
    return _history(rng, base, _ramp(rng) * rng.uniform(0.2, 1.5) * rng.standard_normal(base.shape))


def wander(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Autocorrelated movement, of each prompt and of all alike."""
    probes = int(rng.integers(36, 52))
    own = _autoregression(rng, (probes, *base.shape), rng.uniform(0.7, 0.98))
    common = _autoregression(rng, (probes, 1, base.shape[1]), rng.uniform(0.7, 0.98))
    return _history(rng, base, rng.uniform(0, 0.3) * own + rng.uniform(0, 0.5) * common)


def sharpening(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """Every prompt becomes surer of its own answer, or a little less sure."""
    power = rng.uniform(-0.05, 1.0)
    return _history(rng, base, _ramp(rng) * power * np.log(base))


def near_miss(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """A collapse that begins and comes to rest at an order of 0.03 … 0.1."""
    path, target = draw_path(rng, held_out), base[rng.integers(len(base))]
    ramp = _ramp(rng)[:, 0, 0]
    goal = rng.uniform(0.03, 0.095)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        found = orders(path(base, target, np.full((1, len(base)), middle)), base)[0]
        low, high = (middle, high) if found < goal else (low, middle)
    clean = path(base, target, np.tile(low * ramp[:, None], len(base)))
    coverage = np.full(len(clean), rng.uniform(0.4, 0.95))
    return Draft(clean=clean, coverage=coverage, phase="liquid")


def format_drift(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """The model stops writing the listed answers; those it writes are as varied as ever."""
    start = rng.uniform(0.4, 0.95)
    ramp = _ramp(rng)[:, 0, 0]
    coverage = start * (1 - rng.uniform(0.65, 0.95) * ramp)
    true = first(coverage < 0.5 * start)
    if true is None or true > len(coverage) - 4:
        return None
    clean = np.tile(base, (len(ramp), 1, 1))
    return Draft(clean, coverage, {"format_drift": true}, phase="liquid")


def ordered_base(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """A base that answers every prompt alike, whatever it then learns."""
    row = base[rng.integers(len(base))]
    start = softmax(np.log(row) + 0.01 * rng.standard_normal(base.shape))
    path, ramp = draw_path(rng, False), _ramp(rng)[:, 0, 0]
    moves = path(start, base[0], np.tile(ramp[:, None], len(base)))
    clean = np.concatenate([start[None], moves])
    return Draft(clean, np.full(len(clean), 0.8), phase="ordered")


def brownian(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """A random walk of every prompt's logits, and of all alike."""
    shape = (int(rng.integers(36, 52)), *base.shape)
    own = rng.uniform(0.02, 0.08) * rng.standard_normal(shape).cumsum(axis=0)
    common = rng.uniform(0.02, 0.1) * rng.standard_normal((shape[0], 1, shape[2])).cumsum(axis=0)
    return _history(rng, base, own + common)


def oscillation(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """A temperature that swings: all prompts flatter, then sharper, then flatter."""
    time = np.arange(int(rng.integers(36, 52)))
    swing = rng.uniform(0.01, 0.3) * np.sin(2 * np.pi * time / rng.uniform(4, 30))
    return _history(rng, base, swing[:, None, None] * np.log(base))


def few_prompts(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
    """One or two prompts go over to another's answers, the others stay."""
    gone = rng.permutation(len(base))[: int(rng.integers(1, 3))]
    move = np.zeros(base.shape)
    move[gone] = np.log(base[rng.integers(len(base))]) - np.log(base[gone])
    return _history(rng, base, _ramp(rng) * move)


NULLS = {
    "jitter alone": white,
    "drift": drift,
    "prompt-specific learning": own_learning,
    "autocorrelated": wander,
    "sharpening": sharpening,
    "near miss": near_miss,
    "format drift": format_drift,
}
HELD_OUT_NULLS = {
    "random walk": brownian,
    "swinging temperature": oscillation,
    "few prompts": few_prompts,
    "near miss, other dynamics": near_miss,
}
