"""What is asked of a model before it is run: can it be measured, and does a plan fit it?"""

from __future__ import annotations

from typing import Any

from crystalmon.scoring.models import UnsupportedModel, context_length, vocabulary_size
from crystalmon.scoring.plan import ScoringPlan


def check_kind(model: Any) -> None:
    """Refuse a model of a kind that cannot be measured, whatever it is asked.

    Raises:
        UnsupportedModel: for an encoder-decoder, for adapters that learn a prompt, and for RWKV
            that rescales its weights.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"model must be decoder-only, got the encoder-decoder {type(model).__name__}."
        )
    if getattr(config, "model_type", None) == "rwkv" and getattr(config, "rescale_every", 0) > 0:
        raise UnsupportedModel(
            "RWKV must not rescale its weights, as it does in evaluation mode. "
            "Set model.config.rescale_every = 0 before training, or train without the callback."
        )
    adapters = getattr(model, "peft_config", None) or {}
    learned = [a for a in dict(adapters).values() if getattr(a, "is_prompt_learning", False)]
    if learned:
        raise UnsupportedModel(
            f"adapters must leave the prompt as it is, got {learned[0].peft_type.value}, which "
            "puts learned tokens before it. Use LoRA or its like, or train without the callback."
        )


def check_fit(model: Any, plan: ScoringPlan) -> None:
    """Refuse what the model cannot run: on a GPU it would abort the process.

    Raises:
        UnsupportedModel: see `check_kind`.
        ValueError: if a prompt is longer than the context, or a token is not in the vocabulary.
    """
    check_kind(model)
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
