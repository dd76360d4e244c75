"""The landscape of a pair of models, one in memory at a time or both together.

The responses are the aligned model's; its log-probabilities along them wait on disk for the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from crystalmon.experiments.common import responses
from crystalmon.experiments.common.instructions import resolve
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import Drawn, KeptLogProbs
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.landscape.free_energies import Landscape, free_energies
from crystalmon.runs.results import Result
from crystalmon.scoring.models import free_memory, vocabulary_size


def measure_landscape(
    load_model: Callable[[], Subject],
    load_base: Callable[[], Subject],
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
        settings, folder, parts: see `Landscape.measure`.
        together: hold both models, and write nothing.

    Raises:
        ValueError: if the two do not read the same tokens.
    """
    kept = KeptLogProbs(folder / f"{Landscape.name}-{parts.mark}.work")
    if together:
        model, base = load_model(), load_base()
        texts = _draw(model, settings, parts)
        check_same_tokens(base, texts)
        held: dict[str, Tensor] = {}
        before = partial(responses.keep, model, put=held.__setitem__)
        scores = free_energies(base, texts, held.pop, parts, kept_is_base=False, before=before)
        names = {"model": model.name, "base": base.name}
    else:
        texts = _all_kept(settings, kept, parts)
        if texts is None:
            texts = keep_model(load_model(), settings, kept, parts)
            free_memory()
        base = load_base()
        check_same_tokens(base, texts)
        scores = free_energies(base, texts, kept.get, parts, kept_is_base=False)
        names = {"model": parts["model"], "base": base.name}
    kept.remove()
    return settings.result(texts, scores, names, "model")


def _draw(model: Subject, settings: Landscape, parts: Parts) -> list[Drawn]:
    """The model's responses to all instructions."""
    return responses.draw(
        model, resolve(settings.instructions), settings.tokens, settings.seed, parts
    )


def keep_model(
    model: Subject, settings: Landscape, kept: KeptLogProbs, parts: Parts
) -> list[Drawn]:
    """Draw from the model, and keep its log-probabilities along the texts that lack them."""
    parts.put("model", model.name)
    texts = _draw(model, settings, parts)
    groups = responses.groups_of("kept", responses.by_length(texts))
    lost = [key for key, own in groups.items() if not all(each.id in kept for each in own)]
    for key in [*(key for key in lost if key in parts), *parts.missing(groups, "model")]:
        responses.keep(model, groups[key], kept.put)
        parts.put(key, True)
    return texts


def _all_kept(settings: Landscape, kept: KeptLogProbs, parts: Parts) -> list[Drawn] | None:
    """The model's texts, if it has nothing left to do."""
    instructions = resolve(settings.instructions)
    keys = [key for what in ("texts", "kept") for key in responses.groups_of(what, instructions)]
    if all(key in parts for key in keys) and all(each.id in kept for each in instructions):
        return responses.drawn_texts(instructions, parts)
    return None


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
