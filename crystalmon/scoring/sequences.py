"""What a forward pass takes: the rows of a plan as sequences, alone or packed as trees, in batches.

**tree**: prompts and the unfinished answers after them are packed into sequences that are prefix
trees. Each token sees only its ancestors (by a 4-D attention mask and position ids), so what rows
have in common is computed once a pack, and little is padded. Prompts that begin alike are packed
side by side; a prompt's rows are all in one pack.
**rows**: every unfinished answer is a sequence of its own, from which those that it begins with are
read too. It costs the prompt again each time, and works with any causal model.

Axes: B sequences of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.trie import Trie

Method = Literal["tree", "rows"]

PACK_SIZES = (128, 256, 512, 1024)
"""Tokens of a packed tree, among which `pack_size` chooses. A pack's mask has their square."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to run.

    Args:
        tokens: T token ids.
        parents: T positions, the token before each one; −1 at a start. A chain for a row.
        depths: T distances from the start: the position ids.
        outputs: positions whose next-token distribution is needed.
        rows: the plan's row at each of these positions.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: tuple[int, ...]


def sequences_of(
    plan: ScoringPlan,
    method: Method,
    rows: Iterable[int],
    max_tokens: int,
    max_outputs: int,
    switch: int | None = None,
) -> list[TokenSequence]:
    """The sequences that score some rows of a plan.

    Args:
        rows: which ones; as trees, with each prompt all rows after it.
        max_tokens, max_outputs: of a pack, unless a single prompt's tree is larger.
        switch: a row up to this length is not read from a longer one; see `models.longrope_switch`.
    """
    if method == "tree":
        return list(_packs(plan, rows, max_tokens, max_outputs))
    return list(_chains(plan, rows, switch))


def chain(tokens: tuple[int, ...], outputs: tuple[int, ...], row: int) -> TokenSequence:
    """A sequence in which every token follows the one before it."""
    length = len(tokens)
    parents, depths = tuple(range(-1, length - 1)), tuple(range(length))
    return TokenSequence(tokens, parents, depths, outputs, (row,) * len(outputs))


def pack_size(plan: ScoringPlan, width: int, context: int | None = None) -> int:
    """The size of packs, of `PACK_SIZES`, at which a plan costs least.

    Small packs repeat more of what prompts have in common; in large ones attention costs more. In
    a transformer's layer, whose matrices hold 12 · width² weights, attention over T tokens costs
    T / (6 · width) of all else.

    Args:
        plan, width: what to score, and the model's hidden size.
        context: the model's longest sequence, if it says; no pack is longer.
    """
    sizes = [size for size in PACK_SIZES if context is None or size <= context]

    def cost(size: int) -> float:
        packs = sequences_of(plan, "tree", range(len(plan.rows)), size, size)
        lengths = np.array([len(pack.tokens) for pack in packs])
        return float(np.sum(lengths * (1 + lengths / (6 * width))))

    return min(sizes, key=cost, default=context or PACK_SIZES[0])


def batches_of(
    sequences: Sequence[TokenSequence],
    max_tokens: int,
    max_outputs: int,
    switch: int | None = None,
) -> Iterator[list[TokenSequence]]:
    """Batches of at most so many padded tokens and needed positions, longest sequences first.

    A sequence that is larger on its own is a batch of its own. Sequences longer than `switch` are
    not in one batch with others; see `models.longrope_switch`.
    """
    batch: list[TokenSequence] = []
    outputs = 0
    for sequence in sorted(sequences, key=lambda s: -len(s.tokens)):
        if batch and (
            (len(batch) + 1) * len(batch[0].tokens) > max_tokens
            or (switch is not None and len(batch[0].tokens) > switch >= len(sequence.tokens))
            or outputs + len(sequence.outputs) > max_outputs
        ):
            yield batch
            batch, outputs = [], 0
        batch.append(sequence)
        outputs += len(sequence.outputs)
    if batch:
        yield batch


def padded(batch: Sequence[TokenSequence]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and position ids, [B, T] each, padded on the right with each one's last value.

    A causal model does not look to the right, and rows without a padding token need no mask, so
    the model may use its fastest attention.
    """
    width = max(len(sequence.tokens) for sequence in batch)

    def pad(values: tuple[int, ...]) -> tuple[int, ...]:
        return values + values[-1:] * (width - len(values))

    tokens = np.array([pad(sequence.tokens) for sequence in batch])
    return tokens, np.array([pad(sequence.depths) for sequence in batch])


def ancestors(batch: Sequence[TokenSequence]) -> np.ndarray:
    """[B, T, T] bool: which tokens each token sees, its ancestors and itself."""
    width = max(len(sequence.tokens) for sequence in batch)
    allowed = np.broadcast_to(np.eye(width, dtype=bool), (len(batch), width, width)).copy()
    for table, sequence in zip(allowed, batch, strict=True):
        for position, parent in enumerate(sequence.parents):
            if parent >= 0:
                table[position] |= table[parent]
    return allowed


def _chains(plan: ScoringPlan, rows: Iterable[int], switch: int | None) -> Iterator[TokenSequence]:
    """The longest rows, and with each those that it begins with."""
    left = set(rows)
    for row in sorted(left, key=lambda row: (-len(plan.rows[row]), row)):
        if row not in left:
            continue
        read, length, at = list[int](), len(plan.rows[row]), row
        while at >= 0:
            same = switch is None or (len(plan.rows[at]) > switch) == (length > switch)
            if same and at in left:
                left.remove(at)
                read.insert(0, at)
            at = int(plan.row_parent[at])
        ends = tuple(len(plan.rows[each]) - 1 for each in read)
        yield replace(chain(plan.rows[row], ends, row), rows=tuple(read))


def _packs(
    plan: ScoringPlan, rows: Iterable[int], max_tokens: int, max_outputs: int
) -> Iterator[TokenSequence]:
    """Trees of as many prompts as fit, prompts that begin alike side by side."""
    members: dict[int, list[int]] = {}
    for row in sorted(rows):  # a prompt comes before the rows after it
        members.setdefault(int(plan.row_prompt[row]), []).append(row)
    trie, place = Trie(), dict[int, int]()
    for prompt in sorted(members, key=lambda prompt: plan.rows[prompt]):
        own = members[prompt]
        tokens = len(trie) + trie.missing(plan.rows[prompt]) + len(own) - 1
        if place and (tokens > max_tokens or len(place) + len(own) > max_outputs):
            yield _packed(trie, place)
            trie, place = Trie(), {}
        place[prompt] = trie.add(plan.rows[prompt])
        for row in own[1:]:
            place[row] = trie.add(plan.rows[row][-1:], after=place[int(plan.row_parent[row])])
    if place:
        yield _packed(trie, place)


def _packed(trie: Trie, place: dict[int, int]) -> TokenSequence:
    return TokenSequence(
        *map(tuple, (trie.tokens, trie.parents, trie.depths, place.values(), place))
    )
