"""Compliance against the share of adversarial context, up and down again.

The model is asked one question after blocks of text in which more and more of the tokens work
against the instruction. Compliance is exact: the probability of the compliant answers among the
closed ones. A model is a function of its context, so that going up and going down can only differ
by what is left in the context: here the model's own most probable answers to the last questions,
and nothing else. Each loop opens with as many turns at its first level as are remembered, so that
every turn that counts has a history of the same length; a second loop that begins at α = 1 tells
what comes from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from crystalmon.experiments.common.conflicts import ClosedInstruction, Conflicts, load_conflicts
from crystalmon.experiments.common.experiment import Experiment, check_whole
from crystalmon.experiments.common.instructions import take_evenly
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.context.compliance import describe_pair
from crystalmon.experiments.context.context_summary import summarize
from crystalmon.experiments.context.dialogue import Dialogue, History
from crystalmon.runs.results import Result
from crystalmon.scoring.forward import Route
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score
from crystalmon.suites.tasks import Choice, Task, TaskSuite

LEAST_LEVELS = 8
CLIP = 60.0
"""Largest |log-odds|, in nats: beyond it a probability is 0 or 1 in float64."""

_Key = tuple[int, int, History]


@dataclass(frozen=True)
class Context(Experiment):
    """Compliance against α for every instruction × adversary.

    Args:
        levels: of α, from 0 to 1, at least 8.
        tokens: of a block, about; whole sentences only.
        instructions: ids; if None, `count` of them.
        adversaries: ids; all if None.
        count: how many instructions, from all categories alike; all if None.
        conflicts: a YAML file of one's own; the bundled `data/conflicts.yaml` if None.
        orders: of a block's sentences, of which the spread of the log-odds is taken; the loops
            run in the first, the instruction in front.
        memory: questions and own answers that stay in the context, the latest ones. Of more
            than one, mixtures have to be asked as they come up, which takes twice the time.
        seed: of the orders.
    """

    name: ClassVar[str] = "context"
    levels: int = 12
    tokens: int = 60
    count: int | None = 10
    instructions: tuple[str, ...] | None = None
    adversaries: tuple[str, ...] | None = None
    conflicts: str | None = None
    orders: int = 2
    memory: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, levels=LEAST_LEVELS, tokens=1, orders=1, memory=0, seed=0)
        if self.count is not None:
            check_whole(self, count=1)
        for key in ("instructions", "adversaries"):
            value = getattr(self, key)
            if isinstance(value, str):
                raise TypeError(f"{key} must be a tuple of ids, got {value!r}. Write ({value!r},).")
            if value is not None:
                object.__setattr__(self, key, tuple(value))
        self._chosen()

    def _chosen(self) -> Conflicts:
        found = load_conflicts(self.conflicts).chosen(self.instructions, self.adversaries)
        if self.instructions is not None:
            return found
        return replace(found, instructions=take_evenly(found.instructions, self.count))

    @property
    def settings(self) -> dict[str, Any]:
        """The conflicts by their fingerprint, as a file may change under its name."""
        return asdict(self) | {"conflicts": self._chosen().fingerprint}

    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Run every pair that is not finished, and analyse all of them."""
        routes: list[Route] = []
        conflicts, own = self._chosen(), (subject.tokenizer, self.levels, self.tokens)
        dialogues = {
            f"{instruction.id} × {adversary.id}": Dialogue(instruction, adversary, *own, self.seed)
            for instruction, adversary in product(conflicts.instructions, conflicts.adversaries)
        }
        for key in parts.missing(dialogues, self.name):
            asker = _Asker(subject, dialogues[key], routes)
            parts.put(key, _measure_pair(asker, self.orders, self.memory))
        pairs = [
            {
                "instruction": dialogue.instruction.id,
                "category": dialogue.instruction.category,
                "adversary": dialogue.adversary.id,
                **parts[key],
                **describe_pair(parts[key]),
            }
            for key, dialogue in dialogues.items()
        ]
        estimates, detail = summarize(pairs)
        detail = {"chat": subject.has_chat, **detail}
        return Result(self.name, self.settings, {"model": subject.name}, estimates, detail)


def _measure_pair(asker: _Asker, orders: int, memory: int) -> dict[str, Any]:
    """One pair's curves; see `compliance.describe_pair`."""
    count = len(asker.dialogue.levels)
    up, down = list(range(count)), list(range(count))[::-1]
    alone: list[_Key] = [(level, order, ()) for order in range(orders) for level in up]
    asker.ask([*alone, *_likely(asker.dialogue.instruction, up, memory)])
    there: list[float] = []
    back: list[float] = []
    loops = [
        _loop(asker, [*up, *down[1:]], memory, there),
        _loop(asker, [*down, *up[1:]], memory, back),
    ]
    while wanted := [key for loop in loops if (key := next(loop, None))]:
        asker.ask(wanted)
    log_odds = [[asker.log_odds((level, order, ())) for level in up] for order in range(orders)]
    return {
        "alpha": [level.alpha for level in asker.dialogue.levels],
        "levels": [asdict(level) for level in asker.dialogue.levels],
        "log_odds": log_odds,
        "coverage": [asker.coverage((level, 0, ())) for level in up],
        "up": there[:count],
        "down": there[count - 1 :][::-1],
        "reversed_down": back[:count][::-1],
        "reversed_up": back[count - 1 :],
    }


def _likely(instruction: ClosedInstruction, levels: Sequence[int], memory: int) -> Iterator[_Key]:
    """The histories that loops mostly pass through: asked together, they cost little.

    They have the same answer as often as is remembered, or fewer times in the turns that open a
    loop. If one answer is remembered, there are no others.
    """
    for level in levels:
        opening = range(1, memory) if level in (levels[0], levels[-1]) else ()
        for answer in range(len(instruction.answers)):
            for length in [*opening, memory] if memory else ():
                yield level, 0, (answer,) * length


def _loop(asker: _Asker, way: Sequence[int], memory: int, found: list[float]) -> Iterator[_Key]:
    """A conversation along some levels, whose log-odds are put into `found`.

    Yields each turn whose answer is not known yet: it must be asked before the loop goes on. The
    turns that open the loop, as many as are remembered, do not count.
    """
    history: History = ()
    for turn, level in enumerate([way[0]] * memory + list(way)):
        key = (level, 0, history)
        if key not in asker.known:
            yield key
        if turn >= memory:
            found.append(asker.log_odds(key))
        history = (*history, asker.answer(key))[-memory:] if memory else ()


@dataclass(frozen=True)
class _Asker:
    """A model's answers to one dialogue, each text asked once.

    Args:
        subject: the model.
        dialogue: instruction against adversary.
        routes: how the model is run, once that is known; shared among dialogues.
        known: log-probability of each answer, by level, order and history.
    """

    subject: Subject
    dialogue: Dialogue
    routes: list[Route]
    known: dict[_Key, np.ndarray] = field(default_factory=dict)

    def ask(self, keys: Iterable[_Key]) -> None:
        """Score what is not known yet."""
        texts = {key: self.dialogue.text(*key) for key in keys if key not in self.known}
        if not texts:
            return
        choices = tuple(Choice(answer) for answer in self.dialogue.instruction.answers)
        prompts = tuple(dict.fromkeys(texts.values()))
        suite = TaskSuite("context", (Task(self.dialogue.instruction.id, prompts, choices),))
        plan = build_plan(suite, self.subject.text_tokenizer)
        self.subject.check_room(max(map(len, plan.rows)))
        if not self.routes:
            self.routes.append(choose_route(self.subject.model, plan, self.subject.ranks))
        found = score(self.subject.model, plan, route=self.routes[0], ranks=self.subject.ranks)
        rows = dict(zip(prompts, found.log_choice[0], strict=True))
        self.known.update((key, rows[text]) for key, text in texts.items())

    def log_odds(self, key: _Key) -> float:
        """Log q(compliant) / q(other)."""
        split = len(self.dialogue.instruction.compliant)
        row = self.known[key]
        with np.errstate(invalid="ignore"):
            odds = np.logaddexp.reduce(row[:split]) - np.logaddexp.reduce(row[split:])
        return float(np.clip(odds, -CLIP, CLIP))

    def coverage(self, key: _Key) -> float:
        """Probability that the completion is one of the answers."""
        return float(np.exp(self.known[key]).sum())

    def answer(self, key: _Key) -> int:
        """The most probable answer."""
        return int(np.argmax(self.known[key]))
