"""The landscape of a pair of models, one in memory at a time or both together.

The responses are the aligned model's; its log-probabilities along them wait on disk for the base.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from crystalmon.experiments.common.instructions import Instruction, resolve
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import (
    Drawn,
    HeldLogProbs,
    KeptLogProbs,
    are_drawn,
    by_length,
    draw,
    drawn_texts,
    groups_of,
    keep,
)
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.landscape.free_energies import Landscape, free_energies
from crystalmon.runs.results import Result
from crystalmon.scoring.models import vocabulary_size

Loader = Callable[[], Subject]


def measure_landscape(
    load_model: Loader,
    load_base: Loader,
    settings: Landscape,
    folder: Path,
    parts: Parts,
    *,
    together: bool = False,
) -> Result:
    """F_align of a model against its base, on responses of the model.

    One model is in memory at a time: the first one's log-probabilities go to
    `<folder>/landscape-<mark>.work` (4 bytes for each token of vocabulary and response: 0.5 GB for
    96 responses of 24 tokens with 49,152), which is removed at the end.

    Args:
        load_model, load_base: load the aligned model, and the base.
        settings: of the experiment.
        folder: where to work.
        parts: what an interrupted call has finished.
        together: hold both models, and write nothing.

    Raises:
        ValueError: if the two do not read the same tokens.
    """
    start = time.perf_counter()
    instructions = resolve(settings.instructions)
    kept = KeptLogProbs(folder / f"{Landscape.name}-{parts.mark}.work")
    if together:
        names, texts, scores = _measure_together(load_model, load_base, settings, parts)
    else:
        if not (are_drawn(instructions, parts) and _all_kept(instructions, kept, parts)):
            _keep_model(load_model(), settings, kept, parts)
            _free()
        base = load_base()
        texts = drawn_texts(instructions, parts)
        check_same_tokens(base, texts)
        names = {"model": parts["model"], "base": base.name}
        scores = free_energies(base, texts, kept, parts, kept_is_base=False)
    kept.remove()
    seconds = time.perf_counter() - start
    return settings.result(texts, scores, names, "model", seconds)


def _measure_together(
    load_model: Loader, load_base: Loader, settings: Landscape, parts: Parts
) -> tuple[dict[str, str | None], list[Drawn], dict[str, list[float]]]:
    model, base = load_model(), load_base()
    texts = draw(model, resolve(settings.instructions), settings.tokens, settings.seed, parts)
    check_same_tokens(base, texts)
    scores = free_energies(base, texts, HeldLogProbs(), parts, kept_is_base=False, first=model)
    return {"model": model.name, "base": base.name}, texts, scores


def _keep_model(model: Subject, settings: Landscape, kept: KeptLogProbs, parts: Parts) -> None:
    """Draw from the model and keep what it says."""
    parts.put("model", model.name)
    texts = draw(model, resolve(settings.instructions), settings.tokens, settings.seed, parts)
    groups = dict(groups_of("kept", by_length(texts)))
    lost = [key for key, own in groups.items() if not all(each.id in kept for each in own)]
    for key in [*(key for key in lost if key in parts), *parts.missing(groups, "model")]:
        keep(model, groups[key], kept)
        parts.put(key, True)


def _all_kept(instructions: Sequence[Instruction], kept: KeptLogProbs, parts: Parts) -> bool:
    groups = groups_of("kept", list(instructions))
    return all(key in parts for key, _ in groups) and all(each.id in kept for each in instructions)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_same_tokens(base: Subject, texts: Sequence[Drawn]) -> None:
    """Refuse a base that does not read the model's texts as the same tokens.

    Raises:
        ValueError: naming the instruction at which they part.
    """
    size = vocabulary_size(base.model)
    advice = "F compares the two token by token: name a base with the model's own tokenizer."
    for each in texts:
        shown = base.encode(each.shown), base.encode(each.shown, special=True)
        if each.prompt not in shown:
            raise ValueError(
                f"the base's tokenizer must give the model's tokens, got others for instruction "
                f"{each.id!r} ({base.name}). {advice}"
            )
        if (largest := max((*each.prompt, *each.response))) >= size:
            raise ValueError(
                f"every token must be among the base's {size}, got {largest} in the response to "
                f"{each.id!r}. {advice}"
            )
