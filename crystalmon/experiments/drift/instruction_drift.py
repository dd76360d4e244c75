"""Drift: how far generated text moves a model from what it says to the instruction alone.

After t tokens of a response y to an instruction x, D(t) = KL(π(·|x, y_<t) ‖ π(·|x)) in nats over
the whole vocabulary (`metrics/README.md`): the next token's distribution given everything so far,
from that given the instruction alone. Its slope is fitted by least squares over t, text by text.

**Cost.** A text is generated with the key-value cache and then run through once, so that the
tokens that go through the model are linear in the tokens of the text.

**Burn-in.** D(0) = 0 by definition, and D rises at once with the first tokens, since a sentence
goes on with other words than a response begins with: that is form, not drift. The fits leave out
the first tokens after each start, of the response or of the answer to the repeated instruction.

**Length.** Every text has all its tokens: those that end a text are not drawn. The distributions
that are measured contain them.

**Repetition.** Halfway through, the instruction is given again, as a new turn of the conversation
(on a line of its own without a chat template), and the model goes on; t counts generated tokens.

Axes: N instructions, S points of t, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from crystalmon.experiments.common.experiment import Experiment, check_whole
from crystalmon.experiments.common.instructions import (
    Instruction,
    Instructions,
    fingerprint,
    resolve,
    take_evenly,
)
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import groups_of, random_seed_of, wide_pair
from crystalmon.experiments.common.scored_texts import Text
from crystalmon.experiments.common.statistics import mean_estimate
from crystalmon.experiments.common.subject import Subject
from crystalmon.metrics.vocabulary import kl_divergence
from crystalmon.runs.results import Result

SCORED = 4
"""Texts of a part that are scored together."""

_Texts = Mapping[str, Mapping[str, list[int]]]


@dataclass(frozen=True)
class Drift(Experiment):
    """D(t) along generated text, with and without the instruction repeated midway.

    Args:
        tokens: of a response.
        every: t goes in steps of so many tokens.
        burn_in: tokens after each start that the fits leave out.
        repeat: measure the repetition too.
        count: instructions, as evenly as possible from all categories; all if None.
        instructions: to take them from; the bundled ones if None.
        seed: of the responses.
    """

    name: ClassVar[str] = "drift"
    tokens: int = 256
    every: int = 4
    burn_in: int = 32
    repeat: bool = True
    count: int | None = 16
    instructions: Instructions = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that leave no slope to fit."""
        check_whole(self, tokens=1, every=1, burn_in=0, seed=0)
        if self.count is not None:
            check_whole(self, count=1)
        if self.tokens // 2 < self.burn_in + 3 * self.every:
            raise ValueError(
                f"tokens must leave three points in each half after {self.burn_in} tokens of "
                f"burn-in, got {self.tokens}. Ask for more tokens."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The instructions by their fingerprint."""
        found = {key: getattr(self, key) for key in ("tokens", "every", "burn_in", "repeat")}
        return found | {"instructions": fingerprint(self._chosen), "seed": self.seed}

    @property
    def _chosen(self) -> tuple[Instruction, ...]:
        return take_evenly(resolve(self.instructions), self.count)

    @property
    def half(self) -> int:
        """Generated tokens before the repetition."""
        return self.tokens // 2

    @property
    def points(self) -> np.ndarray:
        """[S] values of t, in generated tokens: every, 2 · every, …, up to `tokens`."""
        return np.arange(self.every, self.tokens + 1, self.every)

    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Draw the texts, run each of them once, and fit.

        Raises:
            ValueError: if the model's context is too short for them.
        """
        texts = self._draw(subject, parts)
        kinds = ("plain", "repeated") if self.repeat else ("plain",)
        scores = {kind: self._score(subject, kind, texts, parts) for kind in kinds}
        return self._result(scores, subject.name)

    def _draw(self, subject: Subject, parts: Parts) -> _Texts:
        """By instruction, token ids: `prompt`, `plain`, and `again` with what is `repeated`."""
        groups = groups_of("texts", self._chosen)
        for key in parts.missing(groups, "drift: texts"):
            asked = [each.text for each in groups[key]]
            prompts = [subject.prompt(text) for text in asked]
            first, second = (random_seed_of(self.seed, part) for part in (key, f"{key}/repeated"))
            plain = subject.generate(prompts, self.tokens, first, past_end=True)
            columns = {"prompt": prompts, "plain": plain}
            if self.repeat:
                again = [subject.request_again(text) for text in asked]
                triples = zip(prompts, plain, again, strict=True)
                starts = [(*start, *text[: self.half], *more) for start, text, more in triples]
                rest = subject.generate(starts, self.tokens - self.half, second, past_end=True)
                columns |= {"again": again, "repeated": rest}
            found = {
                each.id: {name: column[i] for name, column in columns.items()}
                for i, each in enumerate(groups[key])
            }
            parts.put(key, found)
        return {id_: text for key in groups for id_, text in parts[key].items()}

    def _text(self, kind: str, text: Mapping[str, list[int]]) -> Text:
        """What is scored: the prompt's end first, then each t; of a repetition, t after it."""
        prompt, plain = text["prompt"], text["plain"]
        start = len(prompt) - 1
        if kind == "plain":
            return Text((*prompt, *plain), (start, *(start + self.points).tolist()))
        again = text["again"]
        tokens = (*prompt, *plain[: self.half], *again, *text["repeated"])
        after = self.points[self.points > self.half] + start + len(again)
        return Text(tokens, (start, *after.tolist()))

    def _score(self, subject: Subject, kind: str, texts: _Texts, parts: Parts) -> np.ndarray:
        """[N, S] D(t) of each text; of a repetition, the points after it."""
        groups = groups_of(kind, sorted(texts), SCORED)
        for key in parts.missing(groups, f"drift: {kind}"):
            found: dict[str, list[float]] = {}
            ids = groups[key]

            def compare(index: int, log_p: Tensor, ids: list[str] = ids, to: Any = found) -> None:
                wide, alone = wide_pair(log_p[1:], log_p[:1])
                to[ids[index]] = kl_divergence(wide, alone).tolist()

            subject.score([self._text(kind, texts[id_]) for id_ in ids], compare)
            parts.put(key, subject.ranks.broadcast(found))
        scores = {id_: values for key in groups for id_, values in parts[key].items()}
        return np.array([scores[each.id] for each in self._chosen], dtype=np.float64)

    def _result(self, scores: Mapping[str, np.ndarray], model: str | None) -> Result:
        """What D(t) comes to; scores by kind, `plain` and `repeated`."""
        plain, points = scores["plain"], self.points
        late = points > self.burn_in
        values = {"slope": slopes(points[late], plain[:, late])}
        values["level"] = plain[:, late].mean(axis=1)
        detail: dict[str, Any] = {"profile": self._profile(points, plain)}
        if self.repeat:
            values |= self._repetition(plain, scores["repeated"])
            detail["repeated"] = self._profile(points[points > self.half], scores["repeated"])
        rows = {
            each.id: {"category": each.category}
            | {key: float(value[i]) for key, value in values.items()}
            for i, each in enumerate(self._chosen)
        }
        detail |= {"by_instruction": rows, "burn_in": self.burn_in, "half": self.half}
        estimates = {key: mean_estimate(value, self.seed) for key, value in values.items()}
        return Result(self.name, self.settings, {"model": model}, estimates, detail)

    def _repetition(self, plain: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
        """What the repetition changes, [N] each, paired by instruction.

        `slope_repeated` is fitted over the first half and what follows the repetition, burn-ins
        left out; `repeat_effect` is the mean over the second half, after its burn-in, of D with
        the repetition less D without it.
        """
        points = self.points
        whole = np.concatenate([plain[:, points <= self.half], second], axis=1)
        late, settled = points > self.burn_in, points > self.half + self.burn_in
        used = (late & (points <= self.half)) | settled
        repeated = slopes(points[used], whole[:, used])
        return {
            "slope_repeated": repeated,
            "slope_change": repeated - slopes(points[late], plain[:, late]),
            "repeat_effect": (whole - plain)[:, settled].mean(axis=1),
        }

    def _profile(self, points: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
        """The mean over instructions at each t, with its interval."""
        return [
            {"t": int(t)} | asdict(mean_estimate(column, self.seed))
            for t, column in zip(points, values.T, strict=True)
        ]


def slopes(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[N] least-squares slopes of values [N, S] over points [S].

    >>> slopes(np.array([4, 8, 12]), np.array([[0.0, 1.0, 2.0]])).tolist()
    [0.25]
    """
    centred = points - points.mean()
    return values @ centred / (centred @ centred)
