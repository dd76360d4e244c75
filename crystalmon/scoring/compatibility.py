"""compatibility."""

from __future__ import annotations

from typing import Any

from crystalmon.scoring.models import vocabulary_size
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import ONE, Ranks, current_ranks


def probing_ranks(model: Any) -> Ranks:
    """The ranks among which prompts may be split.

    Under tensor parallelism they hold parts of the same matrices and must all run the same ones.
    """
    return ONE if (getattr(model, "_tp_size", None) or 1) > 1 else current_ranks()


def check_fit(model: Any, plan: ScoringPlan) -> None:
    """Refuse what the model cannot be run on: on a device that would be an abort, not an error.

    Raises:
        ValueError: for adapters that learn a prompt, if a prompt is longer than the context, or if
            a token is not in the vocabulary.
    """
    adapters = getattr(model, "peft_config", None) or {}
    learned = [a for a in dict(adapters).values() if getattr(a, "is_prompt_learning", False)]
    if learned:
        kind = learned[0].peft_type.value
        raise ValueError(
            f"adapters must leave the prompt as it is, got {kind}, which puts learned tokens "
            "before it. Use LoRA or its like, or train without the callback."
        )
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    longest = max(plan.rows, key=len)
    if context is not None and len(longest) > context:
        raise ValueError(
            f"prompts must be at most {context} tokens long for this model, got one of "
            f"{len(longest)}. Shorten the suite's longest prompt."
        )
    vocabulary = vocabulary_size(model)
    largest = max(int(plan.edge_token.max()), *map(max, plan.rows))
    if largest >= vocabulary:
        raise ValueError(
            f"tokens must be below {vocabulary} for this model, got {largest}. "
            "Use the tokenizer that belongs to it."
        )
