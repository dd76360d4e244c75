"""Does a chain of stages show the paper's picture: liquid, nucleated on a base seed, settled in it?

Three claims, each with a verdict and its evidence, from a run folder alone. A claim about tasks
holds if at least half of them speak for it and more than against it; it does not hold if at least
half speak against it and more than for it. A scan has few stages, so successive probes need not
have confirmed a seed as in a live run: where the detector has confirmed neither a seed nor that
there is none, each crystallized stage is judged alone, by the same rules. Axes: P prompts,
C choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from crystalmon.metrics.answers import ORDERED_LIQUIDITY, is_ordered
from crystalmon.metrics.bootstrap import (
    REPLICATES,
    bootstrap_interval,
    bootstrap_weights,
    expansion,
)
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor, support
from crystalmon.phases.order import COMPLETE
from crystalmon.phases.seed import SEEDLESS, judge_probe
from crystalmon.phases.support import LEAK
from crystalmon.runs.compared_answers import read_base_answers
from crystalmon.runs.json_values import Stored
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import Event, ProbeRecord, TaskRecord
from crystalmon.runs.run import Run

HOLDS, FAILS, OPEN = "holds", "does not hold", "undetermined"
NUCLEATED = "nucleated on a base seed"
_LOCKS, _UNSEEDED = ("seed_locked", "recrystallization"), ("seedless_collapse", "melting")
"""Events that give a task a seed, and those after which it has none."""


@dataclass(frozen=True)
class Verdict(Stored):
    """One claim about a run.

    Args:
        claim: what is claimed.
        verdict: `holds`, `does not hold` or `undetermined`.
        reason: one sentence.
        evidence: the numbers behind it.
    """

    claim: str
    verdict: str
    reason: str
    evidence: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class TaskSeed:
    """What a task's answers have crystallized onto.

    Args:
        state: `seeded` on a base prompt, `seedless`, `open`, or `not crystallized`.
        seed: the base prompt, or None.
        step: the stage from which on it is so, or None.
        locked: whether successive probes have confirmed the seed.
        p_value: of the seed; see `Candidates.chance`.
        distance: JS of the answers' end from the seed or the likeliest candidate, in nats.
    """

    state: Literal["seeded", "seedless", "open", "not crystallized"]
    seed: int | None = None
    step: int | None = None
    locked: bool = False
    p_value: float | None = None
    distance: float | None = None


def judge_run(run: Run) -> tuple[Verdict, ...]:
    """The three verdicts on a run with the base as its first probe, in the order of the phases.

    Raises:
        ValueError: if the run has no probe, or it or its reference is damaged.
        FileNotFoundError: if its reference is gone.
    """
    run.check_probed()
    base = read_base_answers(run.folder, run.records[0].tasks)
    seeds = find_seeds(run, base)
    return judge_liquid(run.records[0]), judge_nucleation(seeds), judge_support(run, base, seeds)


def judge_liquid(first: ProbeRecord) -> Verdict:
    """Whether the base gives different answers to different wordings.

    A task is liquid where the whole 95% interval of its liquidity lies above
    `ORDERED_LIQUIDITY` · log C, and ordered where it lies below; one that is not measurable is
    neither.
    """
    liquid, ordered = [], []
    for name, task in first.tasks.items():
        if task.phase == NOT_MEASURABLE:
            continue
        bar = ORDERED_LIQUIDITY * np.log(task.q.shape[1])
        low, high = task.ci["liquidity"]
        (liquid if low > bar else ordered if high < bar else []).append(name)
    value, (low, high) = first.metrics["liquidity"], first.ci["liquidity"]
    mixture = first.metrics["entropy_mixture"]
    reason = (
        f"liquidity {value:.3f} [{low:.3f}, {high:.3f}] of {mixture:.3f} nats; {len(liquid)} of "
        f"{counted(len(first.tasks), 'task')} liquid beyond doubt, {len(ordered)} ordered"
    )
    evidence = {"liquidity": value, "interval": (low, high), "entropy_mixture": mixture}
    evidence |= {"liquid": liquid, "ordered": ordered, "tasks": len(first.tasks)}
    verdict = _majority(len(liquid), len(ordered), len(first.tasks))
    return Verdict("the base is liquid", verdict, reason, evidence)


def find_seeds(run: Run, base: Mapping[str, np.ndarray]) -> dict[str, TaskSeed]:
    """By task that takes part (its base is liquid), what its answers have crystallized onto."""
    taking_part = [name for name in run.records[0].tasks if not is_ordered(base[name])]
    return {name: _find_seed(run, name, base[name]) for name in taking_part}


def _find_seed(run: Run, name: str, b: np.ndarray) -> TaskSeed:
    """What the detector has confirmed; else what the stages say, each judged alone."""
    seen = [r for r in run.records[1:] if _is_known(r.tasks[name])]
    if not seen:
        return TaskSeed("open")
    crystallized = {
        r.step: r.tasks[name] for r in seen if r.tasks[name].metrics["order"] >= COMPLETE
    }
    told = [e for e in run.events if e.task == name and e.kind in (*_LOCKS, *_UNSEEDED)]
    if (locked := seen[-1].tasks[name].seed) is not None:
        return _locked_seed(locked, told, next(iter(crystallized), None))
    if told and told[-1].kind == "seedless_collapse" and seen[-1].tasks[name].phase != "liquid":
        found = told[-1].evidence.get("p_value"), told[-1].evidence.get("distance")
        return TaskSeed("seedless", None, told[-1].step, False, *found)
    if not crystallized:
        high = seen[-1].tasks[name].ci["order"][1]
        return TaskSeed("not crystallized" if high < COMPLETE else "open")
    return judge_stages(b, {step: (task.rows, task.q) for step, task in crystallized.items()})


def _is_known(task: TaskRecord) -> bool:
    """Whether a stage's answers say something."""
    return task.phase != NOT_MEASURABLE and bool(np.isfinite(task.q).all())


def _locked_seed(seed: int, told: Sequence[Event], crystallized: int | None) -> TaskSeed:
    """The seed that the detector holds, dated to the stage that was the first to be crystallized.

    If the task had another seed before, had none, or melted, it is dated to the last lock.
    """
    locks = [e for e in told if e.kind in _LOCKS and e.evidence.get("candidate") == seed]
    evidence = locks[-1].evidence if locks else {}
    step = locks[-1].step if locks and (crystallized is None or len(told) > 1) else crystallized
    return TaskSeed("seeded", seed, step, True, evidence.get("p_value"), evidence.get("distance"))


def judge_stages(b: np.ndarray, stages: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> TaskSeed:
    """What one task's answers have crystallized onto, each stage judged alone.

    The last stage that names a seed decides; a later one that names none has left the seed, which
    is another claim's matter. The seed is dated to the first stage from which on no other is
    named. Without one the task is seedless if a stage says so, and else open.

    Args:
        b: [P, C] the base's answers.
        stages: by step, in its order, of each crystallized stage the prompts asked [p] and their
            answers [p, C]; at least one.
    """
    judged = {s: judge_probe(b, q, asked) for s, (asked, q) in stages.items()}
    named = {s: verdict for s, (verdict, _) in judged.items() if verdict not in (None, SEEDLESS)}
    seedless = [s for s, (verdict, _) in judged.items() if verdict == SEEDLESS]
    if not named and not seedless:
        return TaskSeed("open", step=min(stages))
    seed = list(named.values())[-1] if named else None
    others = [s for s, each in named.items() if each != seed]
    own = [s for s in named if not others or s > others[-1]] or seedless
    evidence = judged[own[0]][1]
    found = evidence["p_value"], evidence["distance"]
    return TaskSeed("seeded" if named else "seedless", seed, own[0], False, *found)


def judge_nucleation(seeds: Mapping[str, TaskSeed]) -> Verdict:
    """Whether the tasks have crystallized, each onto the answers of one base prompt.

    Seedless tasks and those that have not crystallized speak against it.
    """
    by_state = {
        state: [name for name, seed in seeds.items() if seed.state == state]
        for state in ("seeded", "seedless", "not crystallized", "open")
    }
    evidence = {"tasks": {name: asdict(seed) for name, seed in seeds.items()}, **by_state}
    if not seeds:
        return Verdict(NUCLEATED, OPEN, "no task has a base that is liquid", evidence)
    seeded = [seeds[name] for name in by_state["seeded"]]
    chances = [seed.p_value for seed in seeded if seed.p_value is not None]
    reason = f"{len(seeded)} of {counted(len(seeds), 'task')} on a seed"
    if seeded:
        reason += f", {sum(seed.locked for seed in seeded)} of them locked"
    if chances:
        reason += f" (p from {min(chances):.3f} to {max(chances):.3f}, median "
        reason += f"{np.median(chances):.3f})"
    counts = [f"{len(names)} {state}" for state, names in by_state.items() if state != "seeded"]
    against = len(by_state["seedless"]) + len(by_state["not crystallized"])
    verdict = _majority(len(seeded), against, len(seeds))
    return Verdict(NUCLEATED, verdict, f"{reason}; {', '.join(counts)}", evidence)


def judge_support(
    run: Run, base: Mapping[str, np.ndarray], seeds: Mapping[str, TaskSeed]
) -> Verdict:
    """Whether later stages keep the probability on the support of the seed.

    The claim holds if the mean fall of the mass on it is at most `phases.support.LEAK`, with its
    whole 95% bootstrap interval over prompts, and does not if that lies above. A task leaks where
    its own interval lies above. Tasks count that have a seed, a later stage, and a choice outside
    the seed's support; with fewer than half of them the claim is open.
    """
    claim = "settles inside the seed's support"
    rng = np.random.default_rng(0)  # one for all: the tasks' resamples must not be the same
    changes = {n: _support_change(run, n, base[n], seed, rng) for n, seed in seeds.items()}
    found = {name: change for name, change in changes.items() if change is not None}
    tasks = {name: numbers for name, (numbers, _) in found.items()}
    leaking = [name for name, numbers in tasks.items() if numbers["interval"][0] > LEAK]
    moved = [name for name, numbers in tasks.items() if numbers["moved"]]
    evidence: dict[str, Any] = {"leaking": leaking, "moved": moved, "tasks": tasks}
    if not found or 2 * len(found) < len(seeds):
        reason = (
            f"{len(found)} of {counted(len(seeds), 'task')} with a seed, a stage after it, and a "
            "choice outside the seed's support"
        )
        return Verdict(claim, OPEN, reason, evidence)
    fall = float(np.mean([numbers["fall"] for numbers in tasks.values()]))
    replicates = [drawn for _, drawn in found.values()]
    wider = expansion([numbers["prompts"] for numbers in tasks.values()])
    low, high = bootstrap_interval(fall, np.mean(replicates, axis=0), wider)
    reason = (
        f"mass on the support changed by {-fall:+.3f} [{-high:+.3f}, {-low:+.3f}] on average over "
        f"{counted(len(found), 'task')} (from the seed's own at most); {len(moved)} left the seed, "
        f"{', '.join(leaking) + ' left' if leaking else 'none left'} its support beyond doubt"
    )
    evidence |= {"fall": fall, "interval": (low, high)}
    verdict = HOLDS if high <= LEAK else FAILS if low > LEAK else OPEN
    return Verdict(claim, verdict, reason, evidence)


def _support_change(
    run: Run, name: str, b: np.ndarray, seed: TaskSeed, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray] | None:
    """What happened to the mass on a seed's support after the task had crystallized.

    Returns:
        `before` and `after`, the pooled answers' mass on it then and at the last stage, before at
        most what the seed itself holds; the `fall` and its 95% `interval`; and whether the pooled
        answers `moved` away: farther from the seed than its noise floor, and than before; over
        how many `prompts`. With it the fall's replicates [R]. None without a seed, a later stage,
        or a choice outside.
    """
    if seed.seed is None or seed.step is None:
        return None
    since = [r for r in run.records if r.step >= seed.step and _is_known(r.tasks[name])]
    end, mask = b[seed.seed], support(b[seed.seed])
    if len(since) < 2 or mask.all():
        return None
    first, last = (record.tasks[name] for record in (since[0], since[-1]))
    common = np.intersect1d(first.rows, last.rows)  # prompts that both asked
    first_q, last_q = (task.whole(len(b))[common] for task in (first, last))
    own = float(end[mask].sum())
    then, now = first_q[:, mask].sum(axis=1), last_q[:, mask].sum(axis=1)
    before, after = min(own, float(then.mean())), float(now.mean())
    weights = bootstrap_weights(len(common), REPLICATES, rng)
    replicates = np.minimum(own, weights @ then) - weights @ now
    started, ended = (float(js_divergence(q.mean(axis=0), end)) for q in (first_q, last_q))
    fall = before - after
    interval = bootstrap_interval(fall, replicates, expansion([len(common)]))
    moved = ended > max(started, noise_floor(b, seed.seed))
    numbers = {"before": before, "after": after, "fall": fall, "interval": interval}
    return numbers | {"moved": moved, "prompts": len(common)}, replicates


def _majority(yes: int, no: int, total: int) -> str:
    """The verdict on a claim, given how many of the tasks speak for and against it."""
    if 2 * yes >= total and yes > no:
        return HOLDS
    return FAILS if 2 * no >= total and no > yes else OPEN


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as lines of text."""
    width = max(len(verdict.claim) for verdict in verdicts)
    return "\n".join(f"{v.claim:<{width}}  {v.verdict}: {v.reason}" for v in verdicts)
