"""What a way to run a model is tried on: some rows of a plan, and the model's answers to them.

Axes: M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import Route, score_rows
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import Ranks
from crystalmon.scoring.sequences import sequences_of
from crystalmon.scoring.trie import Trie


@dataclass(frozen=True)
class Trial:
    """Some rows of a plan, which a model answers by one route and by another.

    Args:
        model, plan, ranks: see `score`.
        compared: the rows whose answers are compared, ascending.
        packed: the rows that are run for them as trees, so that a pack is full.
    """

    model: nn.Module
    plan: ScoringPlan
    ranks: Ranks
    compared: list[int]
    packed: list[int]

    @property
    def prompts(self) -> list[int]:
        """Of `compared` those that are prompts, which come first."""
        return [row for row in self.compared if row < self.plan.num_prompts]

    def answers(self, route: Route, wanted: Sequence[int] | None = None) -> Tensor:
        """[M, V] log-probabilities after the rows that are wanted, `compared` if None."""
        wanted = self.compared if wanted is None else wanted
        found: dict[int, Tensor] = {}  # a batch comes twice where another rank was out of memory

        def keep(answered: np.ndarray, log_p: Tensor) -> None:
            pairs = zip(answered.tolist(), log_p, strict=True)
            found.update((row, each.cpu()) for row, each in pairs if row in wanted)

        rows = self.packed if route.method == "tree" else wanted
        score_rows(self.model, self.plan, route, keep, ranks=self.ranks, split=False, rows=rows)
        return torch.stack([found[row] for row in sorted(found)])


def varied_trial(model: nn.Module, plan: ScoringPlan, ranks: Ranks, pack: int) -> Trial:
    """A trial on prompts that differ as much as they can: are the trees of a pack honoured?

    They are the prompt with the longest row (a sliding window may be shorter), the one whose tree
    has branches and costs least in rows, and some from the first to the last place of a pack,
    since what a model does may depend on how far into a sequence a token stands. Compared are of
    each the prompt, its longest row, and its last, which comes after all its others in a pack.
    """
    _, lengths = _tree_sizes(plan)
    order = sorted(range(plan.num_prompts), key=lambda prompt: plan.rows[prompt])
    some = np.linspace(0, plan.num_prompts - 1, num=4, dtype=int)
    chosen = {int(np.argmin(_branch_costs(plan))), int(np.argmax(lengths))}
    chosen |= {order[place] for place in some}
    compared, packed = set[int](), set[int]()
    for prompt in _fitting(plan, [*sorted(chosen), *order], pack, len(chosen)):
        own = np.flatnonzero(plan.row_prompt == prompt).tolist()  # the prompt itself is first
        packed.update(own)
        if prompt in chosen:
            compared |= {own[0], max(own, key=lambda row: (len(plan.rows[row]), row)), own[-1]}
    return Trial(model, plan, ranks, sorted(compared), sorted(packed))


def proof_rows(plan: ScoringPlan, route: Route, rows: Sequence[int]) -> list[int]:
    """The rows on which a route in trees is proven: some of those run, and their prompts.

    Preferred are unfinished answers right after another one of their prompt: a token that saw its
    neighbour would show there most. Where there are fewer than three, any row that does not stand
    first in its pack will do. Taken are the one whose own tokens reach back farthest, beyond a
    window that counts places, and of the others the middle one and that farthest from a pack's
    start.

    Args:
        plan, route: what is scored, and how.
        rows: of the plan, those that are run; with each prompt all rows after it.

    Returns:
        Up to six rows, ascending; none of a route in rows, of which there is nothing to prove.
    """
    if route.method == "rows":
        return []
    branching, later, every = (list[tuple[int, int, int]]() for _ in range(3))
    for pack in sequences_of(plan, "tree", rows, route.pack, len(rows)):
        roots = list[int]()
        for at, parent in enumerate(pack.parents):
            roots.append(at if parent < 0 else roots[parent])
        for at, row in zip(pack.outputs, pack.rows, strict=True):
            place = (at, at - roots[at], row)
            every.append(place)
            if plan.row_prompt[row] != pack.rows[0]:
                later.append(place)
            if plan.row_parent[row] >= 0 and pack.parents[at] != at - 1:
                branching.append(place)
    some = sorted(next((found for found in (branching, later) if len(found) >= 3), every))
    reaching = max(some, key=lambda place: place[1])
    others = [place for place in some if place != reaching] or some
    taken = {row for *_, row in (reaching, others[(len(others) - 1) // 2], others[-1])}
    return sorted(taken | {int(plan.row_prompt[row]) for row in taken})


def _tree_sizes(plan: ScoringPlan) -> tuple[np.ndarray, np.ndarray]:
    """[N] by prompt: its rows, and the length of the longest."""
    lengths = np.zeros(plan.num_prompts, dtype=np.int64)
    np.maximum.at(lengths, plan.row_prompt, [len(row) for row in plan.rows])
    return np.bincount(plan.row_prompt, minlength=plan.num_prompts), lengths


def _branch_costs(plan: ScoringPlan) -> np.ndarray:
    """[N] tokens that the rows of a prompt take; much more for those whose tree has no branch."""
    unfinished, lengths = _tree_sizes(plan)
    costs = unfinished * lengths
    return np.where(unfinished > 2, costs, costs + costs.max() * len(costs))


def _fitting(plan: ScoringPlan, prompts: Sequence[int], pack: int, least: int) -> list[int]:
    """The prompts, in their order, whose trees fit into a pack; the first `least` anyway."""
    trie, found = Trie(), list[int]()
    unfinished, _ = _tree_sizes(plan)
    for place, prompt in enumerate(prompts):
        after = int(unfinished[prompt]) - 1
        tokens = trie.missing(plan.rows[prompt]) + after
        if prompt in found or (place >= least and len(trie) + tokens > pack):
            continue
        found.append(prompt)
        if len(plan.rows[prompt]) + after <= pack:  # else it is a pack of its own
            for row in np.flatnonzero(plan.row_prompt == prompt):
                trie.add(plan.rows[row])
    return found
