"""Models whose log-odds of complying are a known function of what stands in the context.

Words are tokens. Instruction k is `i i i …`, the adversary says `a a …`, question k is `q<k>`, and
the answers are `yes` (compliant) and `no`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import yaml
from planted_models import PlantedModel

SIZE = 64
FIXED = ("i", "a", "yes", "no", "Question:", "Answer:", "<s>", "user", "assistant", "end")
FIRST_QUESTION = 40
OTHERS = 1e-3  # the share of all other tokens

Odds = Callable[[int, float, int], float]
"""(question, α, last answer: 1 compliant, −1 other, 0 none) → log-odds of complying."""


class WordTokenizer:
    """A word is a token.

    Args:
        chat: have a template, which begins with `<s>`, as the tokenizer itself does then.
    """

    def __init__(self, chat: bool = False) -> None:
        self.eos_token_id, self.chat_template = None, "planted" if chat else None
        self.bos_token, self.bos_token_id = ("<s>", FIXED.index("<s>")) if chat else (None, None)

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            found = [self(each, add_special_tokens)["input_ids"] for each in text]
            return {"input_ids": found}
        ids = [self._id(word) for word in text.split()]
        begin = [self.bos_token_id] if add_special_tokens and self.bos_token else []
        return {"input_ids": begin + ids}

    def _id(self, word: str) -> int:
        if word in FIXED:
            return FIXED.index(word)
        if word.startswith("q") and word[1:].isdigit():
            return FIRST_QUESTION + int(word[1:])
        return len(FIXED)

    def apply_chat_template(self, turns, add_generation_prompt=False, tokenize=False):
        shown = "".join(f"{turn['role']} {turn['content']} end " for turn in turns)
        return f"<s> {shown}assistant " if add_generation_prompt else f"<s> {shown}"


def conflicting_model(odds: Odds, context: int | None = None, shift: float = 0.0) -> PlantedModel:
    """A model that complies by a law of α, counted in what stands before each token."""

    def law(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, SIZE, dtype=torch.float64)
        for b, row in enumerate(tokens.tolist()):
            question, own, against, last = -1, 0, 0, 0
            for t, token in enumerate(row):
                own += token == FIXED.index("i")
                against += token == FIXED.index("a")
                if token in (FIXED.index("yes"), FIXED.index("no")):
                    last = 1 if token == FIXED.index("yes") else -1
                if token >= FIRST_QUESTION:
                    question = token - FIRST_QUESTION
                alpha = against / max(own + against, 1)
                if question >= 0:  # before it, nothing is asked of the model
                    logits[b, t] = _next(odds(question, alpha, last))
        return logits

    model = PlantedModel(law, SIZE, context, shift)
    model.config._attn_implementation = "eager"
    return model


def _next(log_odds: float) -> torch.Tensor:
    own = torch.full((SIZE,), OTHERS / (SIZE - 2), dtype=torch.float64).log()
    sides = torch.tensor([log_odds, 0.0], dtype=torch.float64).log_softmax(0)
    own[[FIXED.index("yes"), FIXED.index("no")]] = sides + torch.tensor(1 - OTHERS).log()
    return own


def write_conflicts(folder, instructions: int = 1, own: int = 4, against: tuple[int, ...] = (4,)):
    """A file of conflicts in these words: sentences of so many tokens."""
    file = folder / "conflicts.yaml"
    told = [
        {
            "id": f"k{number}",
            "category": "planted",
            "text": " ".join(["i"] * own),
            "question": f"q{number}",
            "compliant": ["yes"],
            "other": ["no"],
        }
        for number in range(instructions)
    ]
    adversary = {"id": "against", "texts": [" ".join(["a"] * each) for each in against]}
    file.write_text(yaml.safe_dump({"instructions": told, "adversaries": [adversary]}))
    return str(file)
