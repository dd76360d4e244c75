"""A first draft of a suite of one's own: each question asked in a dozen formats."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from crystalmon.suites.advice import BUNDLED_WORDINGS, FEW_WORDINGS
from crystalmon.suites.checks import check_text, check_unique
from crystalmon.suites.forms import PARTS
from crystalmon.suites.tasks import Choice, SuiteError, Task

FORMS = ("capital",)
"""Of `PARTS`, what a draft counts too: models like to begin an answer in upper case."""

_CUE = re.compile(r"(?:question|q)\s*:\s*", re.IGNORECASE)


def draft_suite(file: Path, questions: Sequence[str], answers: Sequence[str]) -> str:
    """The text of a commented suite file with a task a question, for its user to edit.

    Args:
        file: where it will lie; the suite and its first task are named after it, the others
            `<name>-2`, `<name>-3` and so on.
        questions: what is asked; space around them goes.
        answers: at least two, of every question; space around them goes.

    Raises:
        SuiteError: for a name that no suite can have, a blank question or answer, a single answer,
            or a question or answer that comes twice.
    """
    questions = [question.strip() for question in questions]
    answers = [answer.strip() for answer in answers]
    for question in questions:
        check_text("question", question, SuiteError)
    for answer in answers:
        check_text("an answer", answer, SuiteError)
    check_unique("questions", questions, SuiteError)
    check_unique("answers", answers, SuiteError)
    if len(answers) < 2:
        raise SuiteError(
            f"answers must be at least 2, got {len(answers)}. A single answer has no distribution "
            "to watch."
        )
    tasks = [
        _task(file.stem if place == 1 else f"{file.stem}-{place}", question, answers)
        for place, question in enumerate(questions, start=1)
    ]
    parts = [
        _comment(file),
        f"name: {quoted(file.stem)}",
        f"forms: [{', '.join(FORMS)}]",
        "tasks:\n",
        "\n\n".join(tasks),
        *(_second(file, answers) if len(questions) == 1 else ()),
    ]
    return "\n".join(parts) + "\n"


def _task(name: str, question: str, answers: Sequence[str]) -> str:
    """One task as YAML."""
    free, listed = _free(question), _listed(question, answers)
    Task(name, (*free, *listed), tuple(map(Choice, answers)))  # refuses what is no task
    lines = [
        f"  - name: {quoted(name)}",
        f"    choices: [{', '.join(map(quoted, answers))}]",
        "    prompts:",
        "      # the choices are not listed",
        *(f"      - {quoted(prompt)}" for prompt in free),
        "      # the choices are listed, in one order or the other",
        *(f"      - {quoted(prompt)}" for prompt in listed),
    ]
    return "\n".join(lines)


def _second(file: Path, answers: Sequence[str]) -> list[str]:
    """How a second task is added, as comments; of two answers, why it is needed."""
    why = ["  # Another task goes here. A second --question drafts it too."]
    if len(answers) == 2:
        why = [
            "  # A judge needs two tasks: one that always gives the same answer looks perfect",
            "  # where that is right. A question whose right answer is the other one tells",
            "  # them apart. A second --question drafts it too; or write it here:",
        ]
    task = [
        f"- name: {quoted(f'{file.stem}-2')}",
        f"  choices: [{', '.join(map(quoted, answers))}]",
        "  prompts:",
        f"    - {quoted(chr(10).join(['The other question', 'Answer:']))}",
    ]
    return ["", *why, *(f"  # {line}" for line in task)]


def _free(question: str) -> list[str]:
    """Wordings that leave open what the answers are. After each, an answer is what comes next."""
    bare = _bare(question)
    return [
        f"{question}\nAnswer:",
        f"Q: {bare}\nA:",
        f"**Question:** {bare}\n\n**Answer:**",
        f'Someone asked: {bare}\nThe reply was "',
    ]


def _listed(question: str, answers: Sequence[str]) -> list[str]:
    """Wordings that list the answers, half of them in the order given, half backwards."""
    ahead, back = list(answers), list(answers[::-1])
    bare = _bare(question)
    asked = _json(bare)
    return [
        f"{question}\n\nAnswer with one of these: {', '.join(ahead)}.\n\nAnswer:",
        f"Question: {bare}\nChoices: {', '.join(back)}\nAnswer:",
        f"{question} [{'|'.join(ahead)}]:",
        "\n".join([question, *(f"- {answer}" for answer in back), "My choice:"]),
        f"User: {bare} Reply with {_either(ahead)}.\nAssistant: I would say",
        f"Ann: {bare} Which is it, {_either(back)}?\nBen: I say",
        f'{{"question": {asked}, "options": {_json(ahead)}, "answer": "',
        f'answer = ask({asked}, options={_json(back)})  # returns "',
    ]


def _bare(question: str) -> str:
    """Without a cue of its own, where the wording has one: `Q: Question: …` is asked by nobody."""
    return question[begins.end() :] if (begins := _CUE.match(question)) else question


def _either(answers: Sequence[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(answers[:-1])} or {answers[-1]}"


def _json(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def quoted(text: str) -> str:
    """A text as YAML on one line, in quotes, so that it is read back as it was."""
    style = "'" if '"' in text and text.isprintable() else '"'  # single ones know no escapes
    written = yaml.safe_dump(text, default_style=style, allow_unicode=True, width=math.inf)
    return written.removesuffix("\n")


def _comment(file: Path) -> str:
    more = ", ".join(part for part in PARTS if part not in FORMS)
    return f"""\
# Drafted by `crystalmon suite new`. Edit the prompts, then see what can be measured:
#
#   crystalmon suite validate {shlex.quote(file.name)} --model MODEL
#
# prompts: one question in many wordings. Each is sent as it stands, and its answer comes next.
#   They should differ in form, not in what is asked. Delete those that do not suit your model.
#   None may end in a space: most tokenizers make one token of a space and the word after it.
# choices: the answers that count, with or without a space before them. Keep the quotes, or YAML
#   reads yes, no and 7 as other things.
# forms: how else an answer may be written: capital counts Yes for yes. Each of the others makes
#   a probe dearer: {more}.
#
# How many prompts? One gives entropy and KL only, fewer than {FEW_WORDINGS} give wide intervals.
# The bundled suites have {BUNDLED_WORDINGS}. For another question, add another task: see the end.
"""
