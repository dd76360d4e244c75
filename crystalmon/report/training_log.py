"""The trainer's own log as the page draws it: which curves come first, and each with few points.

A curve of an evaluation, such as `eval_loss`, stands with that of the training, `loss`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from crystalmon.report.experiment_cards import rounded
from crystalmon.report.frames import extremes
from crystalmon.report.lanes import Lane
from crystalmon.runs.run import Run

FIRST = (
    "loss",
    "loss/policy_avg",
    "reward",
    "objective/scores",
    "rewards/margins",
    "kl",
    "objective/kl",
)
"""What people look at, under the names of transformers and TRL; shown unless the reader chooses."""
MOST_FIRST = 4
MAX_LOGGED = 600
"""Points up to which a curve of one run is drawn whole."""
EVAL = "eval_"

_NO_CURVE = re.compile(r"(^|_)(runtime|flos)$|_per_second$|^train_loss$")
"""What a trainer sums up of the whole run, or of how long an evaluation took."""


def log_panels(lanes: Sequence[Lane]) -> list[dict[str, Any]]:
    """The panels that the logs of all runs can fill, those to show first in front.

    Returns:
        `{"key", "keys", "first"}` each: its name, the curves on it, and whether it is shown at
        first.
    """
    keys = list(dict.fromkeys(key for lane in lanes for run in lane.runs for key in _keys(run)))
    panels: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: key.startswith(EVAL)):  # stable
        trained = key.removeprefix(EVAL)
        panels.setdefault(trained if trained in panels else key, []).append(key)
    liked = [name for name in (*FIRST, *(EVAL + name for name in FIRST)) if name in panels]
    first = (liked or list(panels))[:MOST_FIRST]
    ordered = [*first, *(name for name in panels if name not in first)]
    return [{"key": name, "keys": panels[name], "first": name in first} for name in ordered]


def log_curves(run: Run) -> dict[str, dict[str, list[Any]]]:
    """A run's curves by key: `step`, and `v` with None where a value is not finite."""
    found: dict[str, dict[str, list[Any]]] = {}
    for key in _keys(run):
        steps, values = run.log_series(key)
        kept = few(values)
        found[key] = {"step": steps[kept].tolist(), "v": rounded(values[kept].tolist())}
    return found


def few(values: np.ndarray, limit: int = MAX_LOGGED) -> np.ndarray:
    """At most `limit` places of a curve, ascending; no peak is lost.

    If not all fit: the first and the last, and the lowest and the highest of equal stretches.

    >>> few(np.array([3.0, 1.0, 9.0, 2.0, 2.0, 2.0]), limit=4).tolist()
    [0, 1, 2, 5]
    """
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1} | extremes(values[None], (limit - 2) // 2)
    return np.array(sorted(kept))


def _keys(run: Run) -> list[str]:
    """What the trainer has logged of a run, in the order in which it did first."""
    keys = dict.fromkeys(key for row in run.trainer_log for key in row.values)
    return [key for key in keys if not _NO_CURVE.search(key)]
