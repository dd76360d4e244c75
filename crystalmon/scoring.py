"""Model + scoring plan → log-probabilities of the choices. Exact, and leaves no trace.

Axes: P prompts, C choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crystalmon.forward import Method, choose_method, next_token_log_probs, undisturbed
from crystalmon.tokentree import ScoringPlan

Observer = Callable[[np.ndarray, Tensor, Tensor], Mapping[str, Tensor]]
"""(prompt indices [b], log_p [b, V], first tokens of choices [b, V] bool) → [b] values by key."""


@dataclass(frozen=True)
class Scores:
    """What a model answers to a suite.

    Args:
        log_choice: per task [P, C], the log-probability that the completion is the choice.
        observed: [N] values by key, one per prompt in suite order, from the observer.
    """

    log_choice: tuple[np.ndarray, ...]
    observed: Mapping[str, np.ndarray]


def score(
    model: nn.Module,
    plan: ScoringPlan,
    observe: Observer | None = None,
    *,
    method: Method | None = None,
    max_batch_tokens: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Scores:
    """Score a whole plan with one model.

    Args:
        model: a causal language model that returns logits; its mode, RNG states and
            configuration are left as they were.
        plan: what to score.
        observe: called once per batch with the prompts' full next-token log-probabilities.
        method: how to run it, `tree` or `rows`; found out by `forward.choose_method` if None.
        max_batch_tokens: padded tokens per forward pass; chosen by device if None.
        progress: called with the number of rows done after each batch.

    Raises:
        TypeError: if the model has no language-modelling head.
    """
    method = method or choose_method(model, plan)
    edge_log_p = np.full(len(plan.edge_row), np.nan)
    observed: dict[str, np.ndarray] = {}
    with undisturbed(model):
        for rows, log_p in next_token_log_probs(
            model, plan, method, max_batch_tokens=max_batch_tokens
        ):
            edges, position, token = _edges_of(plan, rows, log_p.device)
            edge_log_p[edges] = log_p[position, token].double().cpu().numpy()
            prompts = np.flatnonzero(rows < plan.num_prompts)
            if observe is not None and len(prompts):
                begins = torch.zeros_like(log_p, dtype=torch.bool)
                begins[position, token] = True
                keep = torch.from_numpy(prompts).to(log_p.device)
                for key, value in observe(rows[prompts], log_p[keep], begins[keep]).items():
                    column = observed.setdefault(key, np.full(plan.num_prompts, np.nan))
                    column[rows[prompts]] = value.double().cpu().numpy()
            if progress is not None:
                progress(len(rows))
    return Scores(_add_up(plan, edge_log_p), observed)


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
