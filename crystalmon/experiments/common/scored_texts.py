"""Texts as token ids: where the next token's distribution is needed, and what shares a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """A token sequence, and where in it the next token's distribution is needed.

    Args:
        tokens: T token ids.
        positions: M positions; the distribution at t is that of the token after `tokens[: t + 1]`.
    """

    tokens: Tokens
    positions: tuple[int, ...]

    @classmethod
    def after(cls, prompt: Sequence[int], response: Sequence[int]) -> Text:
        """Prompt and response; needed is the distribution of each token of the response."""
        start = len(prompt) - 1
        positions = tuple(range(start, start + len(response)))
        return cls((*prompt, *response), positions)


def groups_to_generate(prompts: Sequence[Tokens], pad: bool, size: int) -> Iterator[list[int]]:
    """Prompts that are generated together: of one length, or of similar length if `pad`."""
    by_length: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        by_length.setdefault(0 if pad else len(prompts[index]), []).append(index)
    for indices in by_length.values():
        yield from (indices[at : at + size] for at in range(0, len(indices), size))
