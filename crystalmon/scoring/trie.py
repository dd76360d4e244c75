"""A prefix tree of token sequences: what begins alike is there once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Trie:
    """Token sequences that share their beginnings.

    A node is a token after all those before it. Nodes are numbered in the order of adding, a parent
    before its children.

    Attributes:
        tokens, parents, depths: [T] by node its token, the node before it (−1 at a start), and its
            distance from the start.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], after: int = -1) -> int:
        """Add a sequence after some node, and return the node that it ends at."""
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
        """The last node that is there, and how many of the tokens lead to it."""
        for done, token in enumerate(tokens):
            child = self._children.get((node, token))
            if child is None:
                return node, done
            node = child
        return node, len(tokens)


def count_tree(rows: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Nodes of the prefix tree over all rows, and their (node, ancestor or itself) pairs."""
    trie = Trie()
    for row in rows:
        trie.add(row)
    return len(trie), len(trie) + sum(trie.depths)
