"""Packs: prefix trees of many prompts as sequences, and the batches of them."""

from __future__ import annotations

import numpy as np
import pytest

from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.sequences import PACK_SIZES, ancestors, batches_of, pack_size, sequences_of
from crystalmon.scoring.trie import Trie


@pytest.fixture
def plan(suite, tokenizer):
    return build_plan(suite, tokenizer)


def path(sequence, position):
    """The tokens on the way to a position, by its parents."""
    tokens = []
    while position >= 0:
        tokens.append(sequence.tokens[position])
        position = sequence.parents[position]
    return tuple(reversed(tokens))


def test_trie_shares_what_begins_alike():
    trie = Trie()
    ends = [trie.add((1, 2, 3)), trie.add((1, 2, 4)), trie.add((1, 2)), trie.add((2,))]
    assert ends == [2, 3, 1, 4]
    assert (trie.tokens, trie.parents, trie.depths) == (
        [1, 2, 3, 4, 2],
        [-1, 0, 1, 1, -1],
        [0, 1, 2, 2, 0],
    )
    assert trie.missing((1, 2, 5, 6)) == 2
    assert trie.missing((1, 2)) == 0
    assert trie.add((9,), after=ends[0]) == 5
    assert trie.depths[5] == 3


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_every_row_ends_where_a_pack_says(plan, size):
    packs = sequences_of(plan, "tree", range(len(plan.rows)), size, size)
    rows = [row for pack in packs for row in pack.rows]
    assert sorted(rows) == list(range(len(plan.rows)))
    for pack in packs:
        for position, row in zip(pack.outputs, pack.rows, strict=True):
            assert path(pack, position) == plan.rows[row]
            assert pack.depths[position] == len(plan.rows[row]) - 1


def test_one_pack_holds_each_unique_token_once(plan):
    (pack,) = sequences_of(plan, "tree", range(len(plan.rows)), 10**6, 10**6)
    assert len(pack.tokens) == plan.num_unique_tokens < plan.num_tokens
    assert len({path(pack, position) for position in range(len(pack.tokens))}) == len(pack.tokens)


@pytest.mark.parametrize(("tokens", "outputs"), [(60, 10**6), (10**6, 7)])
def test_packs_keep_to_their_limits_unless_one_prompt_is_larger(plan, tokens, outputs):
    packs = sequences_of(plan, "tree", range(len(plan.rows)), tokens, outputs)
    assert len(packs) > 1
    for pack in packs:
        prompts = [row for row in pack.rows if plan.row_parent[row] < 0]
        within = len(pack.tokens) <= tokens and len(pack.rows) <= outputs
        assert within or len(prompts) == 1


def test_a_token_sees_its_ancestors_and_no_other(plan):
    batch = sequences_of(plan, "tree", range(len(plan.rows)), 60, 60)[:2]
    for table, pack in zip(ancestors(batch), batch, strict=True):
        for position in range(len(pack.tokens)):
            seen = tuple(np.array(pack.tokens)[table[position, : len(pack.tokens)]])
            assert seen == path(pack, position)
            assert not table[position, position + 1 :].any()


def test_some_rows_of_a_plan(plan):
    chosen = np.flatnonzero(np.isin(plan.row_prompt, [1, 4])).tolist()
    for method in ("tree", "rows"):
        found = sequences_of(plan, method, chosen, 100, 100)
        assert sorted(row for sequence in found for row in sequence.rows) == chosen


def test_a_wide_model_gets_larger_packs_than_a_narrow_one(plan):
    rows = range(len(plan.rows))
    assert pack_size(plan, 1) == min(PACK_SIZES)
    tokens = {
        size: sum(len(pack.tokens) for pack in sequences_of(plan, "tree", rows, size, size))
        for size in PACK_SIZES
    }
    assert tokens[pack_size(plan, 10**6)] == min(tokens.values())


def test_batches_keep_to_their_limits(plan):
    packs = sequences_of(plan, "tree", range(len(plan.rows)), 50, 50)
    for batch in batches_of(packs, 150, 60):
        width = max(len(pack.tokens) for pack in batch)
        assert len(batch) == 1 or len(batch) * width <= 150
        assert len(batch) == 1 or sum(len(pack.outputs) for pack in batch) <= 60


def test_a_row_is_read_from_a_longer_one_that_begins_with_it(plan):
    rows = range(len(plan.rows))
    found = sequences_of(plan, "rows", rows, 1, 1)
    ends = set(rows) - set(plan.row_parent.tolist())
    assert len(found) == len(ends) < len(rows)
    assert sorted(row for each in found for row in each.rows) == [*rows]
    for each in found:
        for at, row in zip(each.outputs, each.rows, strict=True):
            assert each.tokens[: at + 1] == plan.rows[row]


def test_a_row_is_not_read_from_one_beyond_the_switch_of_longrope(plan):
    rows = range(len(plan.rows))
    lengths = np.array([len(row) for row in plan.rows])
    switch = int(np.median(lengths))
    found = sequences_of(plan, "rows", rows, 1, 1, switch)
    assert sorted(row for each in found for row in each.rows) == [*rows]
    assert all(len(set(lengths[[*each.rows]] > switch)) == 1 for each in found)
    assert len(found) > len(sequences_of(plan, "rows", rows, 1, 1))
