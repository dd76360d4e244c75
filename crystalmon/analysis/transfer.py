"""Do two families crystallize onto the same seeds? A's seeds, looked for in B's answers.

A's seed of a task is the base prompt whose answers have won in A's last stages. If B's stages come
nearer to those answers than to A's base at any other prompt, the seed is not A's own. Answers are
matched by the text of the choice, so vocabularies need not agree. Axes: P prompts, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crystalmon.analysis.stage_measures import stage_names
from crystalmon.analysis.verdicts import find_seeds
from crystalmon.metrics.divergences import js_divergence
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.json_values import Stored
from crystalmon.runs.plurals import counted
from crystalmon.runs.run import Run

NOTABLE = 0.05
"""P-values up to this are counted."""
RANK_DRAWS = 20_000
"""Simulated sums of ranks behind a joint p-value."""


@dataclass(frozen=True)
class TaskTransfer:
    """One task at one stage of B.

    Args:
        seed: A's, an index into its base's prompts.
        distance: mean over B's prompts of JS(q_p, a_seed), in nats.
        null: the median of the same for A's base at its other prompts.
        p_value: (1 + #{j ≠ seed: d_j ≤ d_seed}) / P, the rank of the seed among A's prompts.
        others: [P − 1] the distances d_j of A's other prompts, in nats.
    """

    seed: int
    distance: float
    null: float
    p_value: float
    others: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class StageTransfer(Stored):
    """All tasks at one stage of B.

    Args:
        name, step: of the stage.
        tasks: by name.
        p_value: of the sum of their ranks, if A's seeds were prompts drawn at random.
    """

    name: str
    step: int
    tasks: Mapping[str, TaskTransfer] = field(repr=False)
    p_value: float

    @property
    def at_bound(self) -> bool:
        """Whether no simulated draw was as small, so that the p-value is an upper bound."""
        return self.p_value * RANK_DRAWS < 1.5


def find_transfer(a: Run, b: Run) -> list[StageTransfer]:
    """A's seeds in B's stages, B's base first: nearness there is no effect of B's training.

    The null is that A's seed might have been any prompt. A seed that lies in the middle of all
    answers is near to everything, so compare a stage with B's base.

    Args:
        a: whose seeds are looked for; see `verdicts.find_seeds`.
        b: a scan, all of whose stages are taken, or a run: its last probe. The base is its
            reference, which a run's first probe need not be.

    Raises:
        ValueError: if A has no seed in a task that B has too, a run has no probe or does not tell
            its choices, or the two were measured in different views.
        FileNotFoundError: if a reference is gone.
    """
    a.check_probed()
    b.check_probed()
    ours, theirs = ({task.view for task in run.records[0].tasks.values()} for run in (a, b))
    if ours != theirs:
        raise ValueError(
            f"both runs must be of one view, got {' '.join(ours)} in {a.folder} and "
            f"{' '.join(theirs)} in {b.folder}. Scan both in the same view."
        )
    base = read_base_answers(a.folder, a.records[0].tasks)
    seeds = {n: s.seed for n, s in find_seeds(a, base).items() if s.seed is not None}
    orders = {name: _choice_order(a, b, name) for name in seeds if name in b.records[0].tasks}
    shared = {name: order for name, order in orders.items() if order is not None}
    if not shared:
        raise ValueError(
            f"{b.folder} must have a task, with the same choices, in which {a.folder} has a seed, "
            f"got none; seeds are in {', '.join(seeds) or 'no task'}. Name scans of one suite."
        )
    names, scanned = stage_names(b), "stages" in b.info
    later = [r for r in b.records if r.step > 0] if scanned else b.records[-1:]
    first = names.get(0, "base") if scanned else "base"
    stages = [(first, 0, read_base_answers(b.folder, shared))]
    stages += [(names[r.step], r.step, {n: t.q for n, t in r.tasks.items()}) for r in later]
    found = []
    for name, step, answers in stages:
        tasks = {
            task: seed_transfer(answers[task][:, order], base[task], seeds[task])
            for task, order in shared.items()
            if np.isfinite(answers[task]).all()
        }
        ranks, sizes = [t.p_value for t in tasks.values()], [len(base[task]) for task in tasks]
        found.append(StageTransfer(name, step, tasks, joint_p_value(ranks, sizes)))
    return found


def _choice_order(a: Run, b: Run, task: str) -> list[int] | None:
    """For each of A's choices its place among B's; None if they are not the same texts."""
    ours, theirs = (_words(run, task) for run in (a, b))
    return [theirs.index(text) for text in ours] if sorted(ours) == sorted(theirs) else None


def _words(run: Run, task: str) -> list[str]:
    """The texts of a task's choices.

    Raises:
        ValueError: if `run.json` does not hold them.
    """
    try:
        words = run.info["suite_texts"][task]["choices"]
    except (KeyError, TypeError):
        words = None
    count = run.records[0].tasks[task].q.shape[1]
    if not isinstance(words, list) or [type(word) for word in words] != [str] * count:
        raise ValueError(
            f"run.json must hold the {count} choices of task {task!r}, got none or others in "
            f"{run.folder}. Measure it again."
        )
    return words


def seed_transfer(q: np.ndarray, a: np.ndarray, seed: int) -> TaskTransfer:
    """How near answers are to one base prompt of another model, against its other prompts.

    Args:
        q: [P_b, C] the answers of B's stage.
        a: [P_a, C] the answers of A's base, choices in the same order.
        seed: index into A's prompts.

    >>> a = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.1, 0.9]])
    >>> seed_transfer(a[:1], a, seed=0).p_value  # the nearest of four
    0.25
    """
    distances = js_divergence(q[:, None], a[None]).mean(axis=0)
    others = np.delete(distances, seed)
    nearer = int(np.sum(others <= distances[seed]))
    null = float(np.median(others)) if len(others) else float("nan")
    rank = (1 + nearer) / len(a)
    return TaskTransfer(seed, float(distances[seed]), null, rank, tuple(others.tolist()))


def joint_p_value(p_values: Sequence[float], sizes: Sequence[int]) -> float:
    """P-value of the sum of the tasks' rank p-values; NaN without any.

    Under the null each is uniform on {1/P, …, 1}, with P from `sizes`. That is simulated.
    """
    if not p_values:
        return float("nan")
    rng = np.random.default_rng(0)
    drawn = sum(rng.integers(1, size + 1, RANK_DRAWS) / size for size in sizes)
    return float((1 + np.sum(drawn <= sum(p_values) + 1e-9)) / (RANK_DRAWS + 1))


def format_transfer(a: Run, stages: Sequence[StageTransfer]) -> str:
    """A table, a line for each stage of B."""
    width = max(len("stage"), *(len(stage.name) for stage in stages))
    lines = [
        f"seeds of {a.name} in {counted(len(stages[0].tasks), 'task')}",
        f"{'stage':<{width}}{'distance':>10}{'null':>8}{f'p ≤ {NOTABLE:g}':>10}{'median p':>10}"
        f"{'joint p':>10}",
    ]
    for stage in stages:
        found = list(stage.tasks.values())
        if not found:
            lines.append(f"{stage.name:<{width}}  no finite answers")
            continue
        chances = [task.p_value for task in found]
        joint = f"< {1 / RANK_DRAWS:.0e}" if stage.at_bound else f"{stage.p_value:.4f}"
        few = f"{sum(chance <= NOTABLE for chance in chances)}/{len(found)}"
        distance = np.mean([task.distance for task in found])
        null = np.mean([task.null for task in found])
        lines.append(
            f"{stage.name:<{width}}{distance:>10.3f}{null:>8.3f}{few:>10}"
            f"{np.median(chances):>10.3f}{joint:>10}"
        )
    return "\n".join(lines)
