"""In which views a training is probed: as asked, or in the format of its training data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from crystalmon.runs.names import path_part
from crystalmon.runs.reference import find_reference, load_reference
from crystalmon.scoring.isolation import same_random_states
from crystalmon.scoring.plan import VIEWS, View, check_view
from crystalmon.scoring.ranks import attempt

AUTO = "auto"

ROWS = 64
"""Of the training data, from whose prompts the format is told."""
LEAST_ROWS = 8
"""Different prompts that it takes to tell a format from what few questions have in common."""
_BEFORE = re.compile(r"(?s).*[\n:>\]]\s*")
_AFTER = re.compile(r"(?s)[\s<\[].*")

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
        if view != AUTO:
            check_view(view)
        if [own for own, _ in pairs].count(name) > 1:
            raise ValueError(
                f"two views are named {name!r}. Name each once, as in "
                "view={'a': 'Q: {prompt}', 'b': 'User: {prompt}'}."
            )
    return dict(pairs)


def find_view(
    model_folder: str, run_folder: Path | None, tokenizer: Any, data: Any
) -> tuple[View, str]:
    """What `auto` stands for, and why.

    Args:
        model_folder: where the model comes from. One that was monitored is asked as before.
        run_folder: the output folder of a training that is resumed, or None.
        tokenizer, data: the trainer's tokenizer and its training data; see `data_view`.
    """
    for place, why in ((run_folder, "as before"), (model_folder, "as where the model came from")):
        found = find_reference(place) if place else None
        if found is not None and (known := attempt(lambda at=found: load_reference(at))[0]):
            return known.info.view, why
    view = data_view(data, tokenizer)
    return view, "no format is common to its training data" if view == "raw" else "as it is trained"


def data_view(data: Any, tokenizer: Any) -> View:
    """The view in which a prompt looks like those of some training data.

    Conversations give `chat`. Otherwise it is a template of the marks that all prompts have in
    common, before and after a text of their own: up to a line break, colon or bracket, and from a
    space or bracket. Without such marks it is `raw`.

    Args:
        data: what the trainer trains on, row by row as it prepared it.
        tokenizer: the trainer's.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    with same_random_states():
        rows, _ = attempt(lambda: [data[index] for index in range(min(len(data), ROWS))])
        found, _ = attempt(lambda: [_prompt(row, tokenizer) for row in rows or ()])
    told = found or []
    if any(text is None for text, _ in told) or _is_chat([text for text, _ in told], tokenizer):
        return "chat"
    texts = sorted({text for text, ends in told if text and ends})
    if len(texts) < LEAST_ROWS:
        return "raw"
    before = _common_start(texts)
    after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
    marks = _BEFORE.match(before), _AFTER.search(after)
    before, after = (mark[0] if mark and len(mark[0].strip()) > 1 else "" for mark in marks)
    fits = (before or after) and "{prompt}" not in before + after
    return f"{before}{{prompt}}{after}" if fits else "raw"


def _prompt(row: Mapping[str, Any], tokenizer: Any) -> tuple[str | None, bool]:
    """A row's text, or None for a conversation; and whether the text ends where the prompt does."""
    if isinstance(row.get("prompt"), list) or "messages" in row:
        return None, True
    if "prompt" in row:
        return row["prompt"], True
    ids = row.get("prompt_ids") or row.get("prompt_input_ids")
    if ids is None:
        ids, marks = row["input_ids"], row.get("completion_mask")
        if marks is None:
            marks = [label != -100 for label in row.get("labels", ())]
        length = next((place for place, mark in enumerate(marks) if mark), 0)
        ids, ends = (ids[:length], True) if length else (ids, False)
    else:
        ends = True
    return tokenizer.decode(ids).removeprefix(tokenizer.bos_token or ""), ends


def _common_start(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_chat(texts: Sequence[str | None], tokenizer: Any) -> bool:
    """Whether all texts have the chat template's mark of an answer in them."""
    if not texts or not getattr(tokenizer, "chat_template", None):
        return False
    asked = [{"role": "user", "content": "x"}]
    render = partial(tokenizer.apply_chat_template, asked, tokenize=False)
    with_mark, _ = attempt(lambda: render(add_generation_prompt=True))
    without, _ = attempt(lambda: render(add_generation_prompt=False))
    mark = (with_mark or "").removeprefix(without or "").strip()
    return bool(mark) and all(mark in (text or "") for text in texts)
