"""What a scenario is, and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from crystalmon.metrics.answers import order
from crystalmon.metrics.bootstrap import uniform_weights

NULL_ORDER = 0.1
"""A null's noise-free `order` never passes this."""
TRUE_ONSET = 0.2
"""The onset is the first probe at which the noise-free `order` passes this."""
TRUE_MELT = 0.6
"""A crystal has melted at the first probe at which its noise-free `order` is under this."""


@dataclass(frozen=True)
class Scenario:
    """A simulated history of one task with its truth.

    Args:
        kind: name of its kind.
        held_out: whether its kind or parameters were kept out of calibration.
        family: of its base.
        base: [P, C] the reference's answers.
        q: [S, P, C] the answers as probed.
        clean: [S, P, C] the same without noise.
        steps: [S] training steps of the probes.
        coverage: [S] the choices' total probability.
        seed: the planted seed, an index into P, or None.
        expected: kind of event -> the probe (index into S) from which it is true.
        seedless: whether the collapse ends on what no base prompt shows.
        phase: the phase at the last probe, or "" where several words would do.
        tempo: `abrupt` or `gradual`, or "" where neither is planted.
    """

    kind: str
    held_out: bool
    family: str
    base: np.ndarray = field(repr=False)
    q: np.ndarray = field(repr=False)
    clean: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    coverage: np.ndarray = field(repr=False)
    seed: int | None = None
    expected: dict[str, int] = field(default_factory=dict)
    seedless: bool = False
    phase: str = ""
    tempo: str = ""

    @property
    def is_null(self) -> bool:
        """Whether nothing at all ought to be raised, format drift apart."""
        return not set(self.expected) - {"format_drift"}

    @property
    def onset(self) -> int | None:
        """The probe of the onset, an index into S, or None."""
        return self.expected.get("nucleation_onset")


def orders(q: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[S] `order` of a history [S, P, C]."""
    weights = uniform_weights(len(base))
    return np.array([float(order(rows, base, weights)) for rows in q])


def first(mask: np.ndarray) -> int | None:
    """Index of the first True, or None."""
    return int(np.argmax(mask)) if mask.any() else None
