"""Texts as token ids: where the next token's distribution is needed, and what shares a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crystalmon.scoring.sequences import TokenSequence

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


def sequence_of(text: Text) -> TokenSequence:
    """A text as the forward pass takes it."""
    length = len(text.tokens)
    return TokenSequence(
        tokens=text.tokens,
        parents=tuple(range(-1, length - 1)),
        depths=tuple(range(length)),
        outputs=text.positions,
        rows=(0,) * len(text.positions),
    )


def batches_of(texts: Sequence[Text], limits: tuple[int, int]) -> Iterator[list[int]]:
    """Texts of similar length together: padded tokens and outputs within the limits, or alone."""
    max_tokens, max_outputs = limits
    batch: list[int] = []
    outputs = 0
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i].tokens)):
        text = texts[index]
        padded = len(text.tokens) * (len(batch) + 1)
        if batch and (padded > max_tokens or outputs + len(text.positions) > max_outputs):
            yield batch
            batch, outputs = [], 0
        batch.append(index)
        outputs += len(text.positions)
    if batch:
        yield batch


def groups_to_generate(prompts: Sequence[Tokens], pad: bool, size: int) -> Iterator[list[int]]:
    """Prompts that are generated together: of one length, or of similar length if `pad`."""
    by_length: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        by_length.setdefault(0 if pad else len(prompts[index]), []).append(index)
    for indices in by_length.values():
        yield from (indices[at : at + size] for at in range(0, len(indices), size))
