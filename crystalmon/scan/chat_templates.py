"""A chat template lent to stages that have none: base models are often released without one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crystalmon.scan.stages import Stage
from crystalmon.scoring.models import load_tokenizer


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and where it was taken from.

    Args:
        source: a stage's name, or a model.
        content: what the tokenizer there has: the text, or several by name.
    """

    source: str
    content: Any = field(repr=False)

    def to_json(self) -> dict[str, str]:
        """What `run.json` says of it: its source, and a hash that another text would not have."""
        text = json.dumps(self.content, sort_keys=True)
        return {
            "chat_template_from": self.source,
            "chat_template": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def lend(self, tokenizer: Any) -> None:
        """Give a tokenizer this template if it has none."""
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = self.content


def find_chat_template(source: str, stages: Sequence[Stage]) -> ChatTemplate:
    """The template of a stage, by its name, or of any model.

    A folder of checkpoints, given as `NAME`, is its last stage, `NAME` or `NAME/checkpoint-N`.

    Raises:
        FileNotFoundError: if no tokenizer can be loaded from there.
        ValueError: if that one has no template either.
    """
    named = (s for s in reversed(stages) if s.name == source or s.name.startswith(f"{source}/"))
    where = next((stage.where for stage in named), source)
    content = getattr(load_tokenizer(where), "chat_template", None)
    if not content:
        raise ValueError(
            f"chat_template_from must name a stage or a model with a chat template, got "
            f"{source!r}, which has none. Name another one."
        )
    return ChatTemplate(source, content)


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
