"""Sampling temperature: entropy, heat capacity and reliability of the answers, from one pass.

A model's logits z at an answer's first token give its distribution softmax(z/T) at every
temperature T, so that a whole sweep costs one scoring of the suite.

Axes: b prompts at once, P prompts of a task, K temperatures, R resamples, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crystalmon.experiments.common.experiment import Experiment, check_whole
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.temperature.curves import summarize_sweep
from crystalmon.runs.results import Result
from crystalmon.scoring.compatibility import check_fit
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.rendering import View, check_view
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score
from crystalmon.suites.checks import is_number
from crystalmon.suites.tasks import TaskSuite, load_suite

DEFAULT_TEMPERATURES = tuple(float(f"{10 ** (k / 30):.4g}") for k in range(-39, 22))
"""61 of them from 0.05 to 5, evenly spaced in log T, 1 among them."""


@dataclass(frozen=True)
class Temperature(Experiment):
    """S(T), C(T) and R(T) of the answers to a suite, and the temperature that suits them best.

    With p = softmax(z/T) over the vocabulary at an answer's first token:

        S(T) = −Σ_v p_v log p_v          entropy, in nats
        C(T) = Var_p(z) / T² = d(−⟨z⟩_p)/dT   heat capacity
        R(T) = Σ_{v∈A} p_v               reliability; A the tokens that begin a listed choice

    all of which stay the same when a constant is added to the logits. R bounds from above the
    probability of a listed answer; one that is a single token is counted exactly. The best
    temperature maximises

        L(T) = mean over tasks of mean_p R_p(T) − λ · mean over tasks of Var_p S_p(T)

    with p over a task's prompts: the perturbation is another wording of the same request.
    Source: the essay's sections 2.1, 4.3 and 7.2, with C for U = −⟨z⟩ (`metrics/README.md`).

    Args:
        suite: a bundled suite's name, a path, or a `TaskSuite`.
        view: see `rendering.View`.
        temperatures: K of them, positive, increasing, at least 3.
        weight: λ ≥ 0, per nat².
        replicates: resamples of the prompts behind the intervals.

    Raises:
        ValueError: for settings outside these bounds.
        SuiteError: if the suite is faulty.
    """

    name: ClassVar[str] = "temperature"
    suite: str | Path | TaskSuite = "randomness"
    view: View = "raw"
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    weight: float = 1.0
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Check the settings, and read the suite."""
        object.__setattr__(self, "suite", load_suite(self.suite))
        object.__setattr__(self, "temperatures", tuple(map(float, self.temperatures)))
        steps = np.diff(self.temperatures)
        if len(steps) < 2 or not np.all(steps > 0) or self.temperatures[0] <= 0:
            raise ValueError(
                "temperatures must be at least 3 positive, increasing numbers, got "
                f"{self.temperatures!r:.80}."
            )
        if not np.isfinite(self.temperatures[-1]):
            raise ValueError(f"temperatures must be finite, got {self.temperatures[-1]!r}.")
        check_view(self.view)
        if not is_number(self.weight):
            raise TypeError(f"weight must be a number, got {self.weight!r}.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be finite and at least 0, got {self.weight!r}.")
        object.__setattr__(self, "weight", float(self.weight))  # JSON takes none of NumPy's
        check_whole(self, replicates=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The suite by its name and hash."""
        suite = load_suite(self.suite)
        return {
            "suite": suite.name,
            "suite_hash": suite.hash,
            "view": self.view,
            "temperatures": list(self.temperatures),
            "weight": self.weight,
            "replicates": self.replicates,
        }

    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Score the suite once, task by task, and sweep the temperature.

        Raises:
            ValueError: if the suite does not fit the model.
            TypeError: if the model has no language-modelling head.
        """
        suite, tokenizer = load_suite(self.suite), subject.text_tokenizer
        plan = build_plan(suite, tokenizer, self.view)
        check_fit(subject.model, plan)
        route = None
        for name in parts.missing([task.name for task in suite], self.name):
            route = route or choose_route(subject.model, plan, subject.ranks)
            own = build_plan(TaskSuite(name, (suite[name],)), tokenizer, self.view)
            found = score(
                subject.model, own, self._observe, route=route, ranks=subject.ranks
            ).observed["swept"]
            parts.put(name, found.tolist())
        tasks = {task.name: np.array(parts[task.name]) for task in suite}
        grid = np.array(self.temperatures)
        estimates, detail = summarize_sweep(tasks, grid, self.weight, self.replicates)
        return Result(self.name, self.settings, {"model": subject.name}, estimates, detail)

    def _observe(self, prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> Mapping[str, Tensor]:
        return {"swept": swept(log_p, begins, self.temperatures)}


def swept(log_p: Tensor, begins: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """S(T), C(T) and R(T) of some prompts.

    Args:
        log_p: [b, V] log-probabilities, or logits: a constant makes no difference.
        begins: [b, V] bool, the tokens that begin a listed choice.
        temperatures: K.

    Returns:
        [b, 3, K] in float64 where the device has it.

    >>> swept(torch.zeros(1, 4), torch.tensor([[True, False, False, False]]), (1.0,)).tolist()
    [[[1.3862943611198906], [0.0], [0.25]]]
    """
    exact = log_p.dtype if log_p.device.type == "mps" else torch.float64
    z = log_p.to(exact)
    z = z - z.amax(dim=-1, keepdim=True)
    energy = torch.where(z == -torch.inf, 0.0, z)  # of what has no probability
    columns = [_at_one(z, energy, begins, temperature) for temperature in temperatures]
    return torch.stack(columns, dim=-1)


def _at_one(z: Tensor, energy: Tensor, begins: Tensor, temperature: float) -> Tensor:
    """[b, 3] S, C and R at one temperature; z [b, V] is at most 0."""
    p = (z / temperature).exp()
    total = p.sum(dim=-1, keepdim=True)
    p = p / total
    mean = (p * energy).sum(dim=-1, keepdim=True)
    entropy = (total.log() - mean / temperature).squeeze(-1)
    heat_capacity = (p * (energy - mean) ** 2).sum(dim=-1) / temperature**2
    return torch.stack([entropy, heat_capacity, (p * begins).sum(dim=-1)], dim=-1)
