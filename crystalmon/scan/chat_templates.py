"""A chat template lent to stages that have none: base models are often released without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crystalmon.scan.stages import Stage
from crystalmon.scoring.models import load_tokenizer


def find_chat_template(source: str | None, stages: Sequence[Stage]) -> Any:
    """The template of a stage, by its name, or of any model: its text, or several texts by name.

    A folder of checkpoints, given as `NAME`, is its last stage, `NAME` or `NAME/checkpoint-N`.
    None for no source.

    Raises:
        FileNotFoundError: if no tokenizer can be loaded from there.
        ValueError: if the tokenizer has no template.
    """
    if source is None:
        return None
    named = (s for s in reversed(stages) if s.name == source or s.name.startswith(f"{source}/"))
    where = next((stage.where for stage in named), source)
    template = getattr(load_tokenizer(where), "chat_template", None)
    if not template:
        raise ValueError(
            f"chat_template_from must name a stage or a model with a chat template, got "
            f"{source!r}, which has none. Name another one."
        )
    return template


def check_chat_template(tokenizer: Any) -> None:
    """Refuse a stage without a template, its own or lent.

    Raises:
        ValueError: saying how to lend it one.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "view must be 'raw' for a tokenizer without a chat template, got 'chat'. Take another "
            "stage's with --chat-template-from NAME (in Python chat_template_from=)."
        )
