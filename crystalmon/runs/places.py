"""What a step is called, in a training and in a scan."""

from __future__ import annotations

import re
from collections.abc import Mapping

Stages = Mapping[int, str]
"""Of a scan, the names of its stages by step; empty for a training."""

_STEPS = re.compile(r"\bsteps? (\d+)(?: and (\d+))?")


def place(step: int, stages: Stages) -> str:
    """What a step is called.

    >>> place(3, {}), place(1, {0: "base", 1: "sft"})
    ('step 3', 'sft')
    """
    return stages.get(step, f"step {step}")


def told(message: str, stages: Stages) -> str:
    """An event's message, with the stages' names for their numbers.

    >>> told("order passed 0.2 between steps 0 and 1", {0: "base", 1: "sft"})
    'order passed 0.2 between base and sft'
    """
    if not stages:
        return message

    def named(found: re.Match[str]) -> str:
        return " and ".join(place(int(step), stages) for step in found.groups() if step)

    return _STEPS.sub(named, message)
