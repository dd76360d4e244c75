"""When to prove again that a route gives the model's own answers, which training may change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crystalmon.monitor.asked import Asked

PROVEN_WITHIN = 0.1
"""Mean total variation of a model's answers, since its route was last proven, from which the route
is proven again."""


class RouteProof:
    """Says when a proof is due: at the 1st, 4th, 16th … probe, and when the answers have moved.

    Args:
        base_q: by task, the base's answers [P, C].

    Attributes:
        step: of the latest proof, -1 before the first.
    """

    def __init__(self, base_q: Mapping[str, np.ndarray]) -> None:
        self.step = -1
        self._probes, self._next = 0, 1
        self._proven = {name: b.copy() for name, b in base_q.items()}

    def count_probe(self, q: Mapping[str, np.ndarray], asked: Asked) -> bool:
        """Count a probe, with answers q [p, C] by task; return whether it needs a proof."""
        self._probes += 1
        moves = [
            np.abs(own - self._proven[name][asked[name]]).sum(axis=1) / 2 for name, own in q.items()
        ]
        moved = np.nan_to_num(np.concatenate(moves)).mean()
        return self._probes >= self._next or moved >= PROVEN_WITHIN

    def note(self, step: int, q: Mapping[str, np.ndarray], asked: Asked) -> None:
        """Note a proof at this step."""
        self._next = 4 * self._probes
        for name, own in q.items():  # of prompts not asked now, what was known before
            self._proven[name][asked[name]] = own
        self.step = step
