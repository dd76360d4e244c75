"""In which views a training is probed: as asked, or in the format of its training data."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from crystalmon.runs.find_reference import references_at
from crystalmon.runs.names import path_part
from crystalmon.runs.reference import Reference, load_reference
from crystalmon.scoring.isolation import same_random_states
from crystalmon.scoring.ranks import attempt, describe
from crystalmon.scoring.rendering import VIEWS, View, check_view, text_tokenizer, with_chat_template
from crystalmon.suites.tasks import TaskSuite

logger = logging.getLogger(__name__)

AUTO = "auto"

ROWS = 64
"""Of the training data, from whose prompts the format is told."""
LEAST_ROWS = 8
"""Different prompts that it takes to tell a format from what few questions have in common."""
_TURN = "\ue000"
"""A user's turn, which no template has in it."""
_BEFORE = r"(?s).*[\n:>\]]\s*"
_AFTER = (r"(?s)\n.*", r"(?s)\s?[<\[].*", r"(?s)\s.*")
"""What of common text is a format; of the last, the first that is found."""
_PROMPTS = ("prompt_ids", "prompt_input_ids")
_COLUMNS = (*_PROMPTS, "input_ids", "attention_mask", "completion_mask", "labels")
"""Of the trainers' datasets, those with the tokens of a prompt alone first."""

Views = View | Sequence[View] | Mapping[str, View]
"""One view or several; a mapping names them."""


def name_views(views: Views) -> dict[str, View]:
    """The views that were asked for, by name: that of a template is `template`.

    Raises:
        TypeError: if they are neither texts nor a mapping of names to texts.
        ValueError: if there is none, one is no view, or two have the same name.
    """
    if isinstance(views, str):
        views = [views]
    if not isinstance(views, Mapping | Sequence):
        raise TypeError(f"view must be a text, a list or a mapping, got {type(views).__name__}.")
    if isinstance(views, Mapping):
        pairs = [(path_part(str(name)), view) for name, view in views.items()]
    else:
        pairs = [(view if view in (AUTO, *VIEWS) else "template", view) for view in views]
    if not pairs:
        raise ValueError("view must name at least one view, got none.")
    for name, view in pairs:
        check_view(view, (AUTO,))
        if [own for own, _ in pairs].count(name) > 1:
            raise ValueError(
                f"two views are named {name!r}. Name each once, as in "
                "view={'a': 'Q: {prompt}', 'b': 'User: {prompt}'}."
            )
    return dict(pairs)


def find_view(
    suite: TaskSuite,
    others: Sequence[View],
    known: Sequence[View],
    places: Sequence[str | Path | Reference | None],
    tokenizer: Any,
    data: Any,
) -> tuple[View, str]:
    """What `auto` stands for, and why: how the model was asked before, or how its data is written.

    Args:
        suite: that the model is asked.
        others: views that are asked for by name.
        known: in which this process has asked the model before it was trained.
        places: where runs or references of an earlier time may be, the most telling first.
        tokenizer, data: the trainer's tokenizer and its training data; see `data_view`.
    """
    stored = (view for place in places for view in _stored_views(place, suite))
    for view in (*known, *stored):
        if view not in others:
            return view, "as the model was asked before"
    if data is None:
        return "raw", "the training data is not known"
    return data_view(data, tokenizer)


def _stored_views(place: str | Path | Reference | None, suite: TaskSuite) -> list[View]:
    """In which a suite was asked, by the references that a place holds, in their order."""
    if isinstance(place, Reference):
        return [place.info.view]
    found, _ = attempt(lambda: [load_reference(each).info for each in references_at(place or "")])
    return [info.view for info in found or () if info.suite_hash == suite.hash]


def data_view(data: Any, tokenizer: Any) -> tuple[View, str]:
    """The view in which a prompt looks like those of some training data, and why.

    If most rows are conversations, that is `chat`. Otherwise it is a template of the marks that all
    prompts have in common, before and after a text of their own: up to a line break, colon or
    bracket, and from a line break, bracket or space. Without such marks it is `raw`; so it is for a
    chat template that cannot be used or tells the date, with which a run could not be resumed the
    next day.

    Args:
        data: what the trainer trains on, row by row as it prepared it.
        tokenizer: the trainer's, or its processor.
    """
    with same_random_states():
        found, failure = attempt(lambda: _view_of_rows(data, tokenizer))
    return found or ("raw", f"the training data cannot be read ({describe(failure)})")


def _view_of_rows(data: Any, processor: Any) -> tuple[View, str]:
    if not hasattr(data, "__len__"):
        return "raw", "the training data is streamed"
    if hasattr(data, "with_format"):
        data = data.with_format(None)  # a transform may have a state of its own
    elif not isinstance(data, list | tuple):  # and so may a class of the user's
        return "raw", f"the training data is a {type(data).__name__}, which only the trainer reads"
    count, tokenizer = len(data), text_tokenizer(processor)
    places = np.linspace(0, count - 1, min(count, ROWS)).astype(int).tolist()
    told = [_prompt(data[place], tokenizer) for place in places]
    mark, unfit = _answer_mark(with_chat_template(processor))
    chats = sum(text is None or bool(mark and mark in text) for text, _ in told)
    if chats > len(told) / 2:  # some may be cut off before the answer
        return ("raw", unfit) if unfit else ("chat", "as it is trained")
    texts = sorted({text for text, ends in told if text and ends})
    view = "raw" if len(texts) < LEAST_ROWS else _common_template(texts)
    found = "no common format was found in the training data"
    return view, found if view == "raw" else "as it is trained"


def _common_template(texts: Sequence[str]) -> View:
    """The marks that all texts have in common, as a template; `raw` without any."""
    before = _common_start(texts)
    after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
    begins = re.match(_BEFORE, before)
    ends = [found[0] for pattern in _AFTER if (found := re.search(pattern, after))]
    before = begins[0] if begins else ""
    after = ends[0] if ends and re.search(r"[\n:>\]]", ends[0]) else ""
    before, after = (each if len(each.strip()) > 1 else "" for each in (before, after))
    fits = (before or after) and "{prompt}" not in before + after
    return f"{before}{{prompt}}{after}" if fits else "raw"


def _prompt(row: Mapping[str, Any], tokenizer: Any) -> tuple[str | None, bool]:
    """A row's text, or None for a conversation; and whether the text ends where the prompt does."""
    if "messages" in row or isinstance(row.get("prompt"), list | np.ndarray):
        return None, True
    if "prompt" in row:
        if not isinstance(text := row["prompt"], str):
            raise TypeError(f"a prompt must be a text or a conversation, got {type(text).__name__}")
        return text, True
    columns = {key: np.asarray(value).ravel() for key, value in row.items() if key in _COLUMNS}
    ids = next((columns[key] for key in _PROMPTS if key in columns), None)
    if ends := ids is not None:
        kept = np.ones(len(ids), dtype=bool)
    else:
        ids = columns["input_ids"]
        kept = columns.get("attention_mask", np.ones(len(ids))) != 0
        kept &= ids != (-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        answer = columns.get("completion_mask", np.zeros(len(ids))) != 0
        answer |= columns.get("labels", np.full(len(ids), -100)) != -100
        first = int(np.argmax(answer & kept)) if (answer & kept).any() else 0
        if ends := bool(kept[:first].any()):
            kept[first:] = False
    return tokenizer.decode(ids[kept].tolist()).removeprefix(tokenizer.bos_token or ""), ends


def _answer_mark(templated: Any) -> tuple[str, str]:
    """What the chat template writes before an answer, one line; why it cannot be used, or ''."""
    if templated is None:
        return "", "the training data are conversations, and there is no chat template"
    dated = "strftime" in str(templated.chat_template)
    unfit = "the chat template tells the date, which would change the prompts" if dated else ""
    for content in (_TURN, [{"type": "text", "text": _TURN}]):  # some take a list of parts alone
        asked = [{"role": "user", "content": content}]
        render = partial(templated.apply_chat_template, asked, tokenize=False)
        ready, _ = attempt(partial(render, add_generation_prompt=True))
        asked_only, _ = attempt(partial(render, add_generation_prompt=False))
        if ready:
            written = ready.rpartition(_TURN)[2]
            if asked_only and ready.startswith(asked_only):
                written = ready.removeprefix(asked_only) or written
            return written.strip().partition("\n")[0], unfit
    return "", "the chat template does not take a user's turn alone"


def _common_start(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
