"""Model + plan → exact log-probabilities of the choices, and what an observer sees on the way.

Axes: P prompts, C choices, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.scoring.forward import Route, TooLargeInFloat32, score_rows
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.models import free_memory
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import ONE, Ranks
from crystalmon.scoring.route import choose_route

logger = logging.getLogger(__name__)

Observer = Callable[[np.ndarray, Tensor, Tensor], Mapping[str, Tensor]]
"""(prompt indices [b], log_p [b, V], first tokens of choices [b, V] bool) → [b, …] by key."""

MAX_OBSERVED = {"cpu": 2**19}
DEFAULT_OBSERVED = 2**23
"""Log-probabilities that an observer gets at once, b · V. Several float64 tables of that size are
held at once; a CPU is faster if they are near its caches, other devices with more to do."""

MAX_GATHERED = 2**22
"""Values that ranks send each other at once."""

_FELL_BACK = (
    "crystalmon: memory does not hold layers in float32; from here on they are computed in the "
    "model's own precision, whose rounding a base scored in float32 counts as a difference."
)


@dataclass(frozen=True)
class Scores:
    """What a model answers to a suite.

    Args:
        log_choice: per task [P, C], the log-probability that the completion is the choice; NaN of
            prompts that were not asked.
        observed: [n, …] values by key, one per prompt asked in suite order, from the observer.
        batch_tokens: the lowered limit of padded tokens per forward pass if memory ran out; else
            what was given.
        route: how the model was run.
        kept: by row, log-probabilities [V], float32 on the CPU: of the rows to keep, those that
            this rank has run.
    """

    log_choice: tuple[np.ndarray, ...]
    observed: Mapping[str, np.ndarray]
    batch_tokens: int | None
    route: Route
    kept: Mapping[int, Tensor] = field(default_factory=dict)


def score(
    model: nn.Module,
    plan: ScoringPlan,
    observe: Observer | None = None,
    *,
    route: Route | None = None,
    ranks: Ranks = ONE,
    max_batch_tokens: int | None = None,
    progress: Callable[[int], Any] | None = None,
    prompts: Sequence[int] | None = None,
    keep: Collection[int] = (),
) -> Scores:
    """Score a plan with one model, which is left as it was.

    Where memory does not hold layers in float32, all is scored in the model's own precision, in
    rows, with a warning.

    Args:
        observe: called with the prompts' full next-token log-probabilities, a few at a time.
        route: how to run it; found out by `choose_route` if None.
        ranks: the processes to split the prompts among; each of them gets the whole result.
        max_batch_tokens: padded tokens per forward pass, at most; see `score_rows`.
        progress: called with the number of rows done after each batch.
        prompts: ask these alone, ascending indices; all N if None.
        keep: rows, among those of these prompts, whose log-probabilities are given back whole.

    Raises:
        UnsupportedModel: if the model has no language-modelling head.
        RankError: if another rank has failed.
    """
    route = route or choose_route(model, plan, ranks)
    rows = None if prompts is None else np.flatnonzero(np.isin(plan.row_prompt, prompts)).tolist()

    def run(route: Route) -> tuple[_Seen, int | None]:
        seen = _Seen(plan, observe, progress, frozenset(keep))
        limit = score_rows(
            model,
            plan,
            route,
            seen.take,
            ranks=ranks,
            max_batch_tokens=max_batch_tokens,
            rows=rows,
        )
        return seen, limit

    with undisturbed(model):
        try:
            found = run(route)
        except TooLargeInFloat32:
            found = None  # outside of the handler nothing holds on to the failed pass
        if found is None:
            route = replace(route, method="rows", precision="model")
            if ranks.is_main:
                logger.warning(_FELL_BACK)
            free_memory()
            found = run(route)
    seen, limit = found
    edges = np.full(len(plan.edge_row), np.nan)
    merged = ranks.merge(seen.edge_log_p, len(edges))
    edges[[*merged]] = [*merged.values()]
    return Scores(_add_up(plan, edges), _gathered(ranks, seen.observed), limit, route, seen.kept)


@dataclass
class _Seen:
    """What one rank finds in its batches.

    Args:
        plan, observe, progress, keep: see `score`.
        edge_log_p: the log-probability of each edge.
        observed: what the observer gave, by key and prompt.
        kept: log-probabilities [V] after the rows to keep.
    """

    plan: ScoringPlan
    observe: Observer | None
    progress: Callable[[int], Any] | None
    keep: frozenset[int]
    edge_log_p: dict[int, float] = field(default_factory=dict)
    observed: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)

    def take(self, rows: np.ndarray, log_p: Tensor) -> None:
        """Take a batch; the same one again if it is run again."""
        edges, position, token = _edges_of(self.plan, rows, log_p.device)
        values = log_p[position, token].double().cpu().numpy()
        self.edge_log_p.update(zip(edges.tolist(), values.tolist(), strict=True))
        if self.observe is not None:
            for key, found in _observations(self.plan, self.observe, rows, log_p):
                self.observed.setdefault(key, {}).update(found)
        for place, row in enumerate(rows.tolist()):
            if row in self.keep:
                self.kept[row] = log_p[place].to("cpu", copy=True)  # not a view of the batch
        if self.progress is not None:
            self.progress(len(rows))


def _observations(
    plan: ScoringPlan, observe: Observer, rows: np.ndarray, log_p: Tensor
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """What an observer sees of a batch's prompts, a few at a time: a key, its values by prompt."""
    whole = np.flatnonzero(rows < plan.num_prompts)
    step = max(1, MAX_OBSERVED.get(log_p.device.type, DEFAULT_OBSERVED) // log_p.shape[1])
    for start in range(0, len(whole), step):
        part = whole[start : start + step]
        own = log_p[torch.from_numpy(part).to(log_p.device)]
        _, position, token = _edges_of(plan, rows[part], log_p.device)
        begins = torch.zeros_like(own, dtype=torch.bool)
        begins[position, token] = True
        for key, column in observe(rows[part], own, begins).items():
            yield key, dict(zip(rows[part].tolist(), column.cpu().numpy(), strict=True))


def _gathered(ranks: Ranks, observed: Mapping[str, dict[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the observers of all ranks have given, [n, …] by key, in the order of the prompts."""
    columns: dict[str, Any] = dict.fromkeys(observed)  # in the observer's order
    # a rank that had no batch of its own has seen no key
    for key in sorted(set().union(*ranks.gather([*observed]))):
        found = observed.get(key, {})
        largest = max(map(np.size, found.values()), default=1)
        merged = ranks.merge(found, max(1, MAX_GATHERED // max(1, largest)))
        columns[key] = np.stack([merged[prompt] for prompt in sorted(merged)])
    return columns


def _edges_of(
    plan: ScoringPlan, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, Tensor, Tensor]:
    """The edges read from these rows: their indices, each one's place in the batch, its token."""
    place = np.full(len(plan.rows), -1)
    place[rows] = np.arange(len(rows))
    edges = np.flatnonzero(place[plan.edge_row] >= 0)
    position = torch.from_numpy(place[plan.edge_row[edges]]).to(device)
    return edges, position, torch.from_numpy(plan.edge_token[edges]).to(device)


def _add_up(plan: ScoringPlan, edge_log_p: np.ndarray) -> tuple[np.ndarray, ...]:
    """Edges → per task [P, C] log-probability of each choice.

    A path's log-probability is the sum of its edges'; a path keeps what its nested longer paths
    do not take; a choice sums its paths.
    """
    reached = edge_log_p.copy()
    for edge in np.flatnonzero(plan.edge_parent >= 0):
        reached[edge] += reached[plan.edge_parent[edge]]
    mass = np.exp(reached[plan.path_edge])
    own = mass.copy()
    np.subtract.at(own, plan.nested[:, 1], mass[plan.nested[:, 0]])
    sizes = [prompts * choices for prompts, choices in plan.shapes]
    cells = np.zeros(sum(sizes))
    np.add.at(cells, plan.path_cell, np.maximum(own, 0.0))
    with np.errstate(divide="ignore"):
        tables = np.split(np.log(cells), np.cumsum(sizes)[:-1])
    return tuple(table.reshape(shape) for table, shape in zip(tables, plan.shapes, strict=True))
