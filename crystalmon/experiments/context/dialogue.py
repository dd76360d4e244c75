"""Contexts of a known adversarial ratio, and the model's own answers in them.

A context is a block of whole sentences, so many of the instruction and so many of the adversary,
then the last questions with the model's own answers, then the question again. From level to level
only the block changes, so that α is exact in every turn. From turn to turn only the answers carry
over, so that what depends on the way depends on them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from crystalmon.experiments.common.conflicts import Adversary, ClosedInstruction
from crystalmon.scoring.rendering import render_chat, text_tokenizer, with_chat_template

OPENING = "Answer:"
"""What every answer opens with, in a chat too: without it a model tends to begin a sentence rather
than say one of the closed answers."""
LENGTHS = (0.5, 4 / 3)
"""Shortest and longest block, as shares of the tokens asked for."""
_LENGTH_WEIGHT = 0.05
"""What a block of twice the length weighs against a unit of α when a level is composed."""

History = tuple[int, ...]
"""The answers so far, as indices into the instruction's answers."""


@dataclass(frozen=True)
class Level:
    """The sentences of one level of α.

    Args:
        copies: of the instruction.
        sentences: of the adversary, its texts over and over in their order.
        instruction_tokens, adversarial_tokens: in the block.
    """

    copies: int
    sentences: int
    instruction_tokens: int
    adversarial_tokens: int

    @property
    def alpha(self) -> float:
        """α = N_adversarial / (N_instruction + N_adversarial), in tokens."""
        return self.adversarial_tokens / (self.instruction_tokens + self.adversarial_tokens)


def compose_levels(own: int, against: Sequence[int], levels: int, tokens: int) -> tuple[Level, ...]:
    """Levels with α rising from 0 to 1, each as near as whole sentences come to an even grid.

    Of the numbers of copies whose length is within `LENGTHS` of the tokens asked for, and whose α
    is above the last level's, each level takes the one of least |α − target| + 0.05 · |length /
    tokens − 1|, and leaves enough of them for the levels that follow.

    Args:
        own: tokens of the instruction.
        against: tokens of each of the adversary's sentences.
        levels: how many.
        tokens: of a block.

    Raises:
        ValueError: if so many tokens do not allow so many levels.
    """
    found = _mixtures(own, against, tokens)
    alphas = sorted(found)
    if len(alphas) < levels or alphas[0] > 0 or alphas[-1] < 1:
        raise ValueError(
            f"tokens must be enough for {levels} levels of whole sentences ({own} tokens against "
            f"{', '.join(map(str, against))}), got {tokens}, which allow {len(alphas)}. Ask for "
            "more tokens."
        )

    def misfit(at: int, target: float) -> float:
        return abs(alphas[at] - target) + _LENGTH_WEIGHT * _misfit(found[alphas[at]], tokens)

    places = [0]
    for number, target in enumerate(np.linspace(0, 1, levels)[1:-1], start=1):
        left = range(places[-1] + 1, len(alphas) - levels + number + 1)
        places.append(min(left, key=lambda at: misfit(at, target)))
    return tuple(found[alphas[place]] for place in (*places, len(alphas) - 1))


def _mixtures(own: int, against: Sequence[int], tokens: int) -> dict[float, Level]:
    """By α, the level nearest in length of those within `LENGTHS`."""
    shortest, longest = (share * tokens for share in LENGTHS)
    found: dict[float, Level] = {}
    for sentences in range(int(longest // min(against)) + 1):
        said = sum(islice(cycle(against), sentences))
        for copies in range(int(max(0.0, longest - said) // own) + 1):
            if shortest <= own * copies + said <= longest and copies + sentences:
                level = Level(copies, sentences, own * copies, said)
                old = found.get(level.alpha)
                if old is None or _misfit(level, tokens) < _misfit(old, tokens):
                    found[level.alpha] = level
    return found


def _misfit(level: Level, tokens: int) -> float:
    return abs((level.instruction_tokens + level.adversarial_tokens) / tokens - 1)


class Dialogue:
    """One instruction against one adversary, as texts for one tokenizer.

    Args:
        instruction, adversary: the two.
        tokenizer: or a processor that has one. With a chat template, the block opens the user's
            first turn, and answers are the assistant's, whose turn is begun with `OPENING`; else
            there is a plain transcript.
        levels: of α; see `compose_levels`.
        tokens: of a block.
        random_seed: of the orders other than the first.

    Raises:
        ValueError: if the tokens do not allow so many levels.
    """

    def __init__(
        self,
        instruction: ClosedInstruction,
        adversary: Adversary,
        tokenizer: Any,
        levels: int,
        tokens: int,
        random_seed: int = 0,
    ) -> None:
        self.instruction, self.adversary = instruction, adversary
        self._tokenizer, self._random_seed = tokenizer, random_seed
        self._text_tokenizer = plain = text_tokenizer(tokenizer)
        own = _count(plain, instruction.text)
        against = [_count(plain, text) for text in adversary.against(instruction)]
        try:
            self.levels = compose_levels(own, against, levels, tokens)
        except ValueError as error:
            raise ValueError(f"{instruction.id} against {adversary.id}: {error}") from error

    def text(self, level: int, order: int = 0, history: History = ()) -> str:
        """What the model is shown.

        Args:
            level: index into the levels.
            order: 0 has the instruction first; every other one is a shuffle of its own.
            history: its last answers, the oldest first.
        """
        question = self.instruction.question
        turns = [(question, self.instruction.answers[answer]) for answer in history]
        block = " ".join(self._sentences(level, order))
        if with_chat_template(self._tokenizer) is not None:
            return self._chat(block, question, turns)
        told = "".join(f"Question: {asked}\n{OPENING} {answer}\n" for asked, answer in turns)
        return f"{block}\n\n{told}Question: {question}\n{OPENING}"

    def _sentences(self, level: int, order: int) -> list[str]:
        made = self.levels[level]
        against = islice(cycle(self.adversary.against(self.instruction)), made.sentences)
        sentences = [*[self.instruction.text] * made.copies, *against]
        if order:
            # the same shuffle whatever the pair, so that pairs differ in their words alone
            rng = np.random.default_rng([self._random_seed, order, level])
            sentences = [sentences[place] for place in rng.permutation(len(sentences))]
        return sentences

    def _chat(self, block: str, question: str, turns: Sequence[tuple[str, str]]) -> str:
        asked = f"{block}\n\n{question}"
        messages = []
        for _, answer in turns:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": f"{OPENING} {answer}"})
            asked = question
        messages.append({"role": "user", "content": asked})
        text = render_chat(self._tokenizer, messages)
        # a template writes the beginning itself, which the tokenizer would put there again
        plain, begin = self._text_tokenizer, getattr(self._text_tokenizer, "bos_token", None)
        if begin and plain("")["input_ids"][:1] == [plain.bos_token_id]:
            text = text.removeprefix(begin)
        return text + OPENING


def _count(tokenizer: Any, sentence: str) -> int:
    """Tokens of a sentence behind another one."""
    return len(tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"])
