"""Target distributions: how probable each choice of each task shall become."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from crystalmon.metrics import seeds
from crystalmon.suites.checks import is_number

Targets = Mapping[str, Mapping[str, float]]
"""Task -> choice -> probability."""


def load_truth() -> dict[str, dict[str, Any]]:
    """The planted world of `liquid-tiny`: task name -> its part of `truth.json`.

    Keys of each task: `choices` [C], `seed` (index into `prompts`), `prompts` [P], `planted`
    [P][C], `held_out_prompts` [R], `held_out_planted` [R][C]; probabilities to six digits.
    """
    path = Path(__file__).parents[1] / "assets" / "liquid-tiny" / "truth.json"
    return json.loads(path.read_text(encoding="utf-8"))["tasks"]


def load_targets(name_or_path: str | Path) -> dict[str, dict[str, float]]:
    """Read the target distribution of every task.

    Args:
        name_or_path: `liquid-tiny` (each task's planted seed), or a YAML or JSON file that maps
            a task to its choices and their weights, `{coin: {heads: 3, tails: 1}}`. Weights are
            normalised to sum to 1.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if the file is no such mapping; see `normalised` for its weights.
    """
    if str(name_or_path) == "liquid-tiny":
        return {
            name: normalised(dict(zip(task["choices"], task["planted"][task["seed"]], strict=True)))
            for name, task in load_truth().items()
        }
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"targets must be 'liquid-tiny' or a file, got {str(path)!r}.")
    text = path.read_text(encoding="utf-8")
    data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise TypeError(f"{path}: targets must be a mapping of task to weights, got {kind}.")
    if not data:
        raise ValueError(f"{path}: targets must name at least one task, got none. Add a task.")
    targets = {}
    for task, weights in data.items():
        if not isinstance(weights, dict):
            raise TypeError(
                f"{path}: target of task {task!r} must be {{choice: weight}}, got {weights!r}."
            )
        try:
            targets[str(task)] = normalised({str(c): w for c, w in weights.items()})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: task {task!r}: {error}") from None
    return targets


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Non-negative weights over their sum.

    Raises:
        TypeError: if one is no number.
        ValueError: if there are none, if one is negative or not finite, or if all are zero.
    """
    if not weights:
        raise ValueError("weights must name at least one choice, got none. Add a choice.")
    for choice, weight in weights.items():
        if not is_number(weight):
            raise TypeError(
                f"weight of {choice!r} must be a number, got {weight!r}. Write it without quotes."
            )
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight of {choice!r} must be finite and at least 0, got {weight!r}.")
    total = math.fsum(weights.values())
    if total <= 0:
        raise ValueError("weights must have a positive sum, got 0. Give one choice a weight.")
    return {choice: weight / total for choice, weight in weights.items()}


def support(target: Mapping[str, float]) -> list[str]:
    """The choices in the target's `metrics.seeds.support`, the most probable first.

    Example:
        >>> support({"red": 0.3, "blue": 0.65, "green": 0.05})
        ['blue', 'red']
    """
    held = seeds.support(np.array(list(target.values())))
    return sorted(compress(target, held), key=lambda choice: -target[choice])
