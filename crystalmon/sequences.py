"""What a forward pass takes: the rows of a plan as sequences, alone or as trees, in batches.

**tree**: a prompt and all unfinished answers after it are one sequence, in which each token sees
only its ancestors (a 4-D attention mask and position ids), so that the prompt is computed once.
**rows**: every unfinished answer is a sequence of its own; it costs the prompt again each time and
works with any causal model.

Axes: B sequences of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crystalmon.tokentree import ScoringPlan

Method = Literal["tree", "rows"]


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to run.

    Args:
        tokens: T token ids.
        parents: T positions, the token before each one; −1 at the start. A chain for a row.
        depths: T distances from the start: the position ids.
        outputs: positions whose next-token distribution is needed.
        rows: the plan's row at each of these positions.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: tuple[int, ...]


def sequences_of(plan: ScoringPlan, method: Method, prompts: Iterable[int]) -> list[TokenSequence]:
    """The sequences that score some of a plan's prompts."""
    return (_trees if method == "tree" else _rows)(plan, prompts)


def batches_of(
    sequences: Sequence[TokenSequence], max_tokens: int, max_outputs: int
) -> Iterator[list[TokenSequence]]:
    """Longest first, at most so many padded tokens and so many needed positions each.

    A sequence that is larger than that on its own is a batch of its own.
    """
    batch: list[TokenSequence] = []
    outputs = 0
    for sequence in sorted(sequences, key=lambda s: -len(s.tokens)):
        full = batch and (
            (len(batch) + 1) * len(batch[0].tokens) > max_tokens
            or outputs + len(sequence.outputs) > max_outputs
        )
        if full:
            yield batch
            batch, outputs = [], 0
        batch.append(sequence)
        outputs += len(sequence.outputs)
    if batch:
        yield batch


def padded(batch: Sequence[TokenSequence]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and position ids, [B, T] each, padded on the right with each one's last value.

    No causal model sees what lies to the right, and with no padding token in sight rows need no
    mask, which keeps the model's fastest attention.
    """
    width = max(len(sequence.tokens) for sequence in batch)
    tokens = np.array([_pad(sequence.tokens, width) for sequence in batch])
    return tokens, np.array([_pad(sequence.depths, width) for sequence in batch])


def ancestors(batch: Sequence[TokenSequence]) -> np.ndarray:
    """[B, T, T] bool: which tokens each token sees, its ancestors and itself."""
    width = max(len(sequence.tokens) for sequence in batch)
    allowed = np.broadcast_to(np.eye(width, dtype=bool), (len(batch), width, width)).copy()
    for table, sequence in zip(allowed, batch, strict=True):
        for position, parent in enumerate(sequence.parents):
            if parent >= 0:
                table[position] |= table[parent]
    return allowed


def _rows(plan: ScoringPlan, prompts: Iterable[int]) -> list[TokenSequence]:
    chosen = set(prompts)
    return [
        TokenSequence(
            tokens=tokens,
            parents=tuple(range(-1, len(tokens) - 1)),
            depths=tuple(range(len(tokens))),
            outputs=(len(tokens) - 1,),
            rows=(row,),
        )
        for row, tokens in enumerate(plan.rows)
        if plan.row_prompt[row] in chosen
    ]


def _trees(plan: ScoringPlan, prompts: Iterable[int]) -> list[TokenSequence]:
    members: dict[int, list[int]] = {prompt: [prompt] for prompt in prompts}
    for row in range(plan.num_prompts, len(plan.rows)):
        if plan.row_prompt[row] in members:
            members[int(plan.row_prompt[row])].append(row)
    return [_tree(plan, rows) for rows in members.values()]


def _tree(plan: ScoringPlan, rows: Sequence[int]) -> TokenSequence:
    """One prompt's tokens and, after them, the last token of each further row."""
    prompt = plan.rows[rows[0]]
    place = {row: len(prompt) - 1 + index for index, row in enumerate(rows)}
    further = rows[1:]
    return TokenSequence(
        tokens=(*prompt, *(plan.rows[row][-1] for row in further)),
        parents=(
            *range(-1, len(prompt) - 1),
            *(place[int(plan.row_parent[row])] for row in further),
        ),
        depths=(*range(len(prompt)), *(len(plan.rows[row]) - 1 for row in further)),
        outputs=tuple(place.values()),
        rows=tuple(rows),
    )


def _pad(values: tuple[int, ...], length: int) -> tuple[int, ...]:
    return values + values[-1:] * (length - len(values))
