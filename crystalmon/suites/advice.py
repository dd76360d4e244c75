"""What the text of a valid suite tells of its limits, without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from crystalmon.suites.tasks import Task, TaskSuite

FEW_WORDINGS = 8
"""Wordings of a task below which a user is told that its intervals will be wide."""

BUNDLED_WORDINGS = 24
"""Of each task of the suite `randomness`."""

JUDGEMENTS = ({"yes", "no"}, {"true", "false"}, {"correct", "incorrect"}, {"right", "wrong"})
"""Pairs of answers that judge something."""

SHOWN = 80
"""Characters of a prompt in a line for people."""


def few_wordings(task: Task) -> str:
    """What a task has too few wordings for, in a few words; empty if it has enough."""
    count = len(task.prompts)
    if count == 1:
        return "one wording: entropy and KL only"
    return f"{count} wordings: wide intervals" if count < FEW_WORDINGS else ""


def one_sided(suite: TaskSuite) -> Iterator[str]:
    """A sentence for a judge that is asked one question: it may give its answer to anything."""
    if len(suite) > 1:
        return
    (task,) = suite
    if len(task.choices) == 2 and {text.lower() for text in task.choice_texts} in JUDGEMENTS:
        one, other = task.choice_texts
        yield (
            f"{task.name} is the only task: a judge that always says {one} looks perfect where "
            f"{one} is right. Add a task whose right answer is {other}, which tells them apart."
        )


def lists_answers(questions: Sequence[str], answers: Sequence[str]) -> Iterator[str]:
    """A sentence for each question that names all its answers, as most formats of a draft do.

    >>> list(lists_answers(["Heads or tails?"], ["heads", "tails"]))[0][:46]
    '"Heads or tails?" names all the answers itself'
    """
    for question in questions:
        named = (rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers)
        if all(re.search(each, question, re.IGNORECASE) for each in named):
            yield (
                f"{shortened(question)} names all the answers itself. Take them out of it, or out "
                "of the formats that list them again."
            )


def trailing_space(suite: TaskSuite) -> Iterator[str]:
    """A sentence for each task with prompts that end in white space."""
    for task in suite:
        if ending := [prompt for prompt in task.prompts if prompt != prompt.rstrip()]:
            which = f"a prompt of {task.name} ends"
            if len(ending) > 1:
                which = f"{len(ending)} prompts of {task.name} end"
            yield (
                f"{which} in white space, such as {shortened(ending[0])}. Take it out: most "
                "tokenizers make one token of a space and the word after it."
            )


def shortened(prompt: str) -> str:
    r"""A prompt as a JSON string on one line; of a long one, its beginning and its end.

    >>> print(shortened("Heads\nor tails?"))
    "Heads\nor tails?"
    """
    if len(prompt) > SHOWN:
        half = SHOWN // 2
        prompt = f"{prompt[:half]} … {prompt[-half:]}"
    return json.dumps(prompt, ensure_ascii=False)
