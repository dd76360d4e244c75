"""A prefix tree of token sequences: what begins alike is there once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile


class Trie:
    """Token sequences that share their beginnings.

    A node is a token after all those before it, numbered in the order of adding; −1 stands before
    the first token. A parent's number is below its children's.

    Attributes:
        tokens: [T] the token at each node.
        parents: [T] the node before it, −1 at a start.
        depths: [T] its distance from the start.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], after: int = -1) -> int:
        """The node that a sequence after some node ends at; makes what is missing on the way."""
        node, done = self._follow(tokens, after)
        for token in tokens[done:]:
            child = len(self.tokens)
            self._children[node, token] = child
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
            node = child
        return node

    def missing(self, tokens: Sequence[int]) -> int:
        """How many nodes adding a sequence would make."""
        return len(tokens) - self._follow(tokens)[1]

    def _follow(self, tokens: Sequence[int], node: int = -1) -> tuple[int, int]:
        """(the last node that is there, how many of the tokens lead to it)."""
        for done, token in enumerate(tokens):
            child = self._children.get((node, token))
            if child is None:
                return node, done
            node = child
        return node, len(tokens)


def count_tree(rows: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """Nodes of the prefix tree over all rows, and their depths added up.

    A node at depth d = 1, 2, … attends to d tokens: its ancestors and itself.
    """
    nodes = pairs = 0
    before: tuple[int, ...] = ()
    for row in sorted(rows):  # neighbours then share the longest prefix that any two share
        same = zip(before, row, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))
        nodes += len(row) - shared
        pairs += (len(row) * (len(row) + 1) - shared * (shared + 1)) // 2
        before = row
    return nodes, pairs
