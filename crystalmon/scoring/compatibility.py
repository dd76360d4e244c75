"""What is asked of a model before it is run: does a plan fit it?"""

from __future__ import annotations

from typing import Any

from crystalmon.scoring.models import context_length, vocabulary_size
from crystalmon.scoring.plan import ScoringPlan


def check_fit(model: Any, plan: ScoringPlan) -> None:
    """Refuse what the model cannot run: on a GPU it would abort the process.

    Raises:
        TypeError: for an encoder-decoder.
        ValueError: for adapters that learn a prompt, for RWKV that rescales its weights, if a
            prompt is longer than the context, or if a token is not in the vocabulary.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(
            f"model must be decoder-only, got the encoder-decoder {type(model).__name__}."
        )
    kind = getattr(model.config, "model_type", None)
    if kind == "rwkv" and getattr(model.config, "rescale_every", 0) > 0:
        raise ValueError(
            "RWKV must not rescale its weights, as it does in evaluation mode. "
            "Set model.config.rescale_every = 0 before training, or train without the callback."
        )
    adapters = getattr(model, "peft_config", None) or {}
    learned = [a for a in dict(adapters).values() if getattr(a, "is_prompt_learning", False)]
    if learned:
        raise ValueError(
            f"adapters must leave the prompt as it is, got {learned[0].peft_type.value}, which "
            "puts learned tokens before it. Use LoRA or its like, or train without the callback."
        )
    context, longest = context_length(model), max(map(len, plan.rows))
    if context is not None and longest > context:
        raise ValueError(
            f"prompts must be at most {context} tokens long for this model, got one of {longest}. "
            "Shorten the suite's longest prompt."
        )
    vocabulary = vocabulary_size(model)
    largest = max(int(plan.edge_token.max()), *map(max, plan.rows))
    if largest >= vocabulary:
        raise ValueError(
            f"tokens must be below {vocabulary} for this model, got {largest}. "
            "Use the tokenizer that belongs to it."
        )
