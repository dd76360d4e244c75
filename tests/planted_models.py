"""Causal language models made of tables: every next-token distribution is known in closed form.

A law gives the logits after each token of a text from the tokens so far. The model generates like
any other of transformers, with a key-value cache (in which it keeps the tokens), and counts what
goes through it.

Axes: B texts, T tokens, V vocabulary, D depths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

Law = Callable[[Tensor], Tensor]
"""Takes tokens [B, T], returns logits [B, T, V] float64; row t may look at tokens[:, : t + 1]."""

MARKER = 0
"""The token of a line break, which ends a prompt; laws below never let it be drawn."""
NEVER = -60.0
"""The logit of what is never drawn."""


class PlantedConfig(PretrainedConfig):
    model_type = "planted"


class PlantedModel(PreTrainedModel, GenerationMixin):
    """A law as a causal language model.

    Args:
        law: its next-token logits.
        size: V.
        context: tokens that it takes; any number if None.
        shift: a constant that is added to all logits, and must change nothing.
    """

    config_class = PlantedConfig

    def __init__(self, law: Law, size: int, context: int | None = None, shift: float = 0.0) -> None:
        config = PlantedConfig(vocab_size=size, num_hidden_layers=1, hidden_size=size)
        config.max_position_embeddings = context
        super().__init__(config)
        self.law, self.shift = law, shift
        self.embeddings = nn.Embedding(size, size, dtype=torch.float64)
        self.head = nn.Linear(size, size, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(size))
        self.passes: list[int] = []  # the tokens of each forward pass, padding included

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    @property
    def forwarded(self) -> int:
        """Tokens that have gone through the model."""
        return sum(self.passes)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        cache: Any = None,  # the name of past_key_values from transformers 5.24 on
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        self.passes.append(input_ids.numel())
        tokens, kept = input_ids, past_key_values if cache is None else cache
        if use_cache:
            kept = DynamicCache() if kept is None else kept
            state = input_ids[:, None, :, None].double()
            tokens = kept.update(state, state, 0)[0][:, 0, :, 0].long()
        hidden = self.law(tokens)[:, -input_ids.shape[1] :] + self.shift
        return CausalLMOutputWithPast(
            logits=self.head(hidden), past_key_values=kept if use_cache else None
        )


class PlantedTokenizer:
    """Characters as tokens: a line break is `MARKER`, all else is 1 + code point mod (V − 1).

    Args:
        size: V.
        chat: render prompts as a conversation: `U` + text + `\\nA\\n`.
        eos: the token that ends a text, if any.
    """

    def __init__(self, size: int, chat: bool = False, eos: int | None = None) -> None:
        self.size, self.eos_token_id = size, eos
        self.chat_template = "planted" if chat else None

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        others = self.size - 1
        return {"input_ids": [MARKER if c == "\n" else 1 + ord(c) % others for c in text]}

    def apply_chat_template(
        self,
        turns: list[dict[str, str]],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
    ) -> str:
        shown = "".join(
            f"U{turn['content']}\n" if turn["role"] == "user" else f"A\n{turn['content']}\n"
            for turn in turns
        )
        return shown + "A\n" if add_generation_prompt else shown


def depths(tokens: Tensor) -> Tensor:
    """[B, T] tokens since the last marker: 0 at the end of a prompt."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    last = torch.where(tokens == MARKER, places, 0).cummax(dim=1).values
    return places - last


def by_depth(table: Tensor) -> Law:
    """The logits [D, V] at each depth; the last row from there on."""
    return lambda tokens: _unmarked(table[depths(tokens).clamp(max=len(table) - 1)])


def by_last(table: Tensor) -> Law:
    """The logits [V, V] after each token: a Markov chain, begun from the marker's row."""
    return lambda tokens: _unmarked(table[tokens])


def by_first(laws: dict[int, Law], otherwise: Law) -> Law:
    """A law of its own for texts that begin with certain tokens: kinds of prompts."""

    def law(tokens: Tensor) -> Tensor:
        found = otherwise(tokens)
        for first, own in laws.items():
            found = torch.where((tokens[:, 0] == first)[:, None, None], own(tokens), found)
        return found

    return law


def _unmarked(logits: Tensor) -> Tensor:
    marked = torch.zeros(logits.shape[-1], dtype=torch.bool)
    marked[MARKER] = True
    return logits.double().masked_fill(marked, NEVER)


def kl(log_p: Tensor, log_b: Tensor) -> Tensor:
    """KL(P ‖ B) of unnormalised logits, straight from the definition."""
    log_p, log_b = log_p.double().log_softmax(-1), log_b.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_b)).sum(-1)


def at_divergence(log_b: Tensor, direction: Tensor, target: float) -> Tensor:
    """log p ∝ log b + h · direction [V] with h ≥ 0 such that KL(P ‖ B) = target, by bisection.

    The marker's place is taken out of both.
    """
    base, direction = _unmarked(log_b), direction.double()
    if target == 0.0:  # rounding may put a divergence just below it, and the search beyond it
        return base.log_softmax(-1)
    low, high = 0.0, 1.0
    while kl(base + high * direction, base) < target:
        high *= 2
        if high > 1e6:
            raise ValueError(f"target must be within reach of the direction, got {target!r}.")
    for _ in range(100):
        middle = (low + high) / 2
        if kl(base + middle * direction, base) < target:
            low = middle
        else:
            high = middle
    return (base + high * direction).log_softmax(-1)
