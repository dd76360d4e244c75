"""What a suite can measure with a model, by the answers that the model gives to each wording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from crystalmon.metrics.answers import (
    MEASURABLE,
    answer_distributions,
    is_measurable,
    is_ordered,
    liquidity,
)
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.monitor.probe import Monitor
from crystalmon.runs.json_values import Stored
from crystalmon.runs.plurals import counted
from crystalmon.suites.advice import few_wordings
from crystalmon.suites.tasks import Task

_MUCH = 0.5
"""A verdict says so when this much of the probability goes to answers that are not listed."""


@dataclass(frozen=True)
class CheckedWording(Stored):
    """How a model goes on after one prompt.

    Args:
        prompt: as the suite has it.
        coverage: probability of the listed answers.
        next_token, probability: the likeliest token.
    """

    prompt: str
    coverage: float
    next_token: str
    probability: float


@dataclass(frozen=True)
class CheckedTask(Stored):
    """What can be measured of one task.

    Args:
        name, wordings, choices: the task's.
        coverage: mean over the wordings.
        measurable: wordings with a coverage of at least `MEASURABLE`.
        liquidity: of the answers, in nats.
        verdict: what can be measured, in words.
        unmeasurable: the other wordings, the least covered first.
    """

    name: str
    wordings: int
    choices: int
    coverage: float
    measurable: int
    liquidity: float
    verdict: str
    unmeasurable: tuple[CheckedWording, ...]


def check_suite(monitor: Monitor, tokenizer: Any) -> list[CheckedTask]:
    """What a suite can measure, by the answers of a monitor's base.

    Args:
        monitor: of the suite, in the view that matters.
        tokenizer: the base's.
    """
    checked, start = [], 0
    for task in monitor.suite:
        q, coverage = answer_distributions(monitor.reference.log_choice[task.name])
        ascending = np.argsort(coverage, kind="stable")
        low = [int(index) for index in ascending if coverage[index] < MEASURABLE]
        unmeasurable = (
            CheckedWording(
                task.prompts[index],
                float(coverage[index]),
                *_likeliest(monitor, tokenizer, start + index),
            )
            for index in low
        )
        checked.append(
            CheckedTask(
                name=task.name,
                wordings=len(task.prompts),
                choices=len(task.choices),
                coverage=float(coverage.mean()),
                measurable=len(coverage) - len(low),
                liquidity=float(liquidity(q, uniform_weights(len(q)))),
                verdict=_verdict(task, q, coverage, monitor.reference.plain.get(task.name)),
                unmeasurable=tuple(unmeasurable),
            )
        )
        start += len(task.prompts)
    return checked


def _verdict(task: Task, q: np.ndarray, coverage: np.ndarray, plain: np.ndarray | None) -> str:
    """In words, what keeps a task from being measured in full; `fine` if nothing does."""
    if not is_measurable(coverage):
        low = f"{(coverage < MEASURABLE).sum()} of {counted(len(coverage), 'wording')}"
        found = f"not measurable: listed answers under {MEASURABLE:.0%} after {low}"
        if plain is None:
            return found
        share = f"{answer_distributions(plain)[1].mean():.0%}"
        return f"{found} (in view raw: {share}, which stands in for the base)"
    if len(q) > 1 and is_ordered(q):
        return "ordered: the base already answers alike, so no order"
    others = 1 - coverage.mean()
    much = f"{others:.0%} goes to other answers" if others >= _MUCH else ""
    return "; ".join(filter(None, (few_wordings(task), much))) or "fine"


def _likeliest(monitor: Monitor, tokenizer: Any, prompt: int) -> tuple[str, float]:
    """The likeliest token after one of the suite's prompts, and its probability."""
    (row,) = monitor.reference.log_p(np.array([prompt]))
    token = int(row.argmax())
    # in its place: alone, many a tokenizer drops the space that a token begins with
    before = [*monitor.plan.rows[prompt][-4:]]
    shorter, longer = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (before, [*before, token])
    )
    return longer.removeprefix(shorter), float(np.exp(row[token]))
