"""Which precision a user asks for, and whether a model's own is good enough for `auto`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.precision import HALF

AskedPrecision = Literal["auto", "model", "float32"]
PRECISIONS = ("auto", "model", "float32")
"""What a user may ask for; see `choose_route`."""

MODEL_ERROR = 0.02
"""Largest error of an answer's probability, on the trial, at which `auto` takes the model's own
precision. SmolLM2-135M in bf16, with 60 prompts, erred by up to 0.05, which moved the suite's
`order` of 0.205 by 0.001; 4 wordings a task instead of all may move it by 0.03."""

FASTER = 1.5
"""How many times faster than float32 layers it must also be; timings differ by less."""


def check_precision(precision: str) -> AskedPrecision:
    """A precision that can be asked for.

    Raises:
        ValueError: if it is none.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    return cast(AskedPrecision, precision)


def compare_precisions(
    plan: ScoringPlan, prompts: Sequence[int], own: Tensor, wide: Tensor, seconds: dict[str, float]
) -> dict[str, float]:
    """The trial of a precision: `error`, and the seconds by the model's own and in float32.

    The error is the largest of an answer's probability, max |Δq|, where q is taken over the first
    tokens of a prompt's choices: all that is recorded comes from q.
    """
    error = 0.0
    for prompt, *pair in zip(prompts, own, wide, strict=False):
        tokens = np.unique(plan.edge_token[plan.edge_row == prompt])
        one, other = (log_p[torch.from_numpy(tokens)].double().softmax(dim=-1) for log_p in pair)
        error = max(error, float((one - other).abs().max()))
    times = {f"seconds_{precision}": taken for precision, taken in seconds.items()}
    return {"error": error, **times}


def suffices(trial: Mapping[str, float]) -> bool:
    """Whether the model's own precision is accurate, and really faster."""
    faster = trial["seconds_model"] * FASTER < trial["seconds_float32"]
    return faster and trial["error"] <= MODEL_ERROR


@contextlib.contextmanager
def noted_half(head: nn.Module) -> Iterator[list[bool]]:
    """Within, notes at each pass whether the model computes in half precision.

    Its weights need not: autocast and the mixed precision of FSDP cast them in the forward.
    """
    noted: list[bool] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        halves = [each.dtype in HALF for each in (inputs[0], module.weight)]
        noted.append(torch.is_autocast_enabled(inputs[0].device.type) or any(halves))

    hook = head.register_forward_pre_hook(note)
    try:
        yield noted
    finally:
        hook.remove()
