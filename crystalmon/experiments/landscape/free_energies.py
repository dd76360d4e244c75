"""Landscape: how far alignment has moved a model from its base, by instruction and by depth.

For an instruction x and a response y, drawn at temperature 1, the alignment free energy per token
is F(x) = mean over t of F_t, F_t = KL(π_now(·|x, y_<t) ‖ π_base(·|x, y_<t)), in nats over the whole
vocabulary (spec section 8; the essay's F_align). The direction is the current model's from the
base's. Both models read the same tokens: the prompt in the aligned model's chat template.

**A pair of models** (`landscape_pair`): y is drawn from the aligned model, so that F_t summed
over a response estimates KL(π_now(y|x) ‖ π_base(y|x)) of whole responses. **Inside training**: y
is drawn once, from the base, so that only the model changes from one measurement to the next and
the base need not stay. These texts are off-policy: F_t is then the divergence where the base would
have gone; it misses what the model says only since, and its sum is no divergence of responses.

Axes: N instructions, T tokens of a response, R replicates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from crystalmon.experiments.common.experiment import Experiment, check_whole
from crystalmon.experiments.common.instructions import Instructions, fingerprint, resolve
from crystalmon.experiments.common.intervals import (
    estimate,
    flat_weights,
    mean_estimate,
    nested_weights,
    row_of,
)
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import (
    Drawn,
    KeptLogProbs,
    LogProbsByText,
    by_length,
    draw,
    groups_of,
    keep,
    wide_pair,
)
from crystalmon.experiments.common.subject import Subject
from crystalmon.metrics.vocabulary import kl_divergence
from crystalmon.runs.files import write_whole
from crystalmon.runs.results import Estimate, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARLY = 5
"""Tokens of a response that count as its beginning."""
TEXTS_FILE = "texts.json"


@dataclass(frozen=True)
class Landscape(Experiment):
    """F_align per token over instructions, by category and by depth.

    Args:
        tokens: of a response, at most.
        instructions: what is asked; the bundled ones if None.
        seed: of the responses.
    """

    name: ClassVar[str] = "landscape"
    tokens: int = 24
    instructions: Instructions = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that measure nothing."""
        check_whole(self, "tokens", "seed")
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens!r}. Ask for more.")

    @property
    def settings(self) -> dict[str, Any]:
        """The instructions by their fingerprint."""
        marks = fingerprint(resolve(self.instructions))
        return {"tokens": self.tokens, "instructions": marks, "seed": self.seed}

    def begin(self, base: Subject, folder: Path) -> None:
        """Draw the texts from the base and keep its log-probabilities along them.

        What an earlier call with the same settings has left stays: when a run goes on, the model
        is no longer the base. For a new base, remove `<folder>/landscape` first.
        """
        kept = KeptLogProbs(folder / self.name)
        if base.ranks.on_main(lambda: self._kept_texts(kept)) is not None:
            return
        texts = draw(base, resolve(self.instructions), self.tokens, self.seed, Parts())
        base.ranks.on_main(kept.remove)
        keep(base, texts, kept)
        found = {"settings": self.settings, "base": base.name}
        found["texts"] = {each.id: each.to_json() for each in texts}
        block = json.dumps(found, ensure_ascii=False).encode() + b"\n"
        base.ranks.on_main(lambda: write_whole(kept.folder / TEXTS_FILE, block))

    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Compare the model with the base on the texts that `begin` has drawn.

        Raises:
            FileNotFoundError: if `begin` was not called with these settings.
        """
        start = time.perf_counter()
        kept = KeptLogProbs(folder / self.name)
        found = subject.ranks.on_main(lambda: self._kept_texts(kept))
        if found is None:
            raise FileNotFoundError(
                f"{kept.folder} must hold the base's texts for these settings, found none. "
                "Begin the experiment on the base first."
            )
        base, texts = found
        scores = free_energies(subject, texts, kept, parts, kept_is_base=True)
        models = {"model": subject.name, "base": base}
        return self.result(texts, scores, models, "base", time.perf_counter() - start)

    def _kept_texts(self, kept: KeptLogProbs) -> tuple[str | None, list[Drawn]] | None:
        """(the base's name, the texts) that `begin` has left for these settings."""
        file = kept.folder / TEXTS_FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found.get("settings") != self.settings:
            return None
        instructions = resolve(self.instructions)
        texts = [Drawn.from_json(each, found["texts"][each.id]) for each in instructions]
        return found["base"], texts

    def result(
        self,
        texts: Sequence[Drawn],
        scores: Mapping[str, Sequence[float]],
        models: Mapping[str, str | None],
        drawn_from: str,
        seconds: float | None = None,
    ) -> Result:
        """What F_t along each text, by instruction id, comes to."""
        detail = summary(texts, scores, self.seed) | {"drawn_from": drawn_from}
        groups = [each.instruction.category for each in texts]
        means = np.array([np.mean(scores[each.id]) for each in texts])
        overall = estimate(nested_weights(groups, self.seed) @ means, len(set(groups)))
        estimates = {"free_energy": overall, "early_share": early_share(texts, scores, self.seed)}
        return Result(self.name, self.settings, models, estimates, detail, seconds=seconds)

    @staticmethod
    def table(result: Result) -> str:
        """By category; the overall mean; the share of the first tokens."""
        from crystalmon.experiments.landscape.landscape_views import table

        return table(result)

    @staticmethod
    def figure(result: Result) -> Figure:
        """By category, and by depth."""
        from crystalmon.experiments.landscape.landscape_views import figure

        return figure(result)


def free_energies(
    subject: Subject,
    texts: Sequence[Drawn],
    other: LogProbsByText,
    parts: Parts,
    *,
    kept_is_base: bool,
    first: Subject | None = None,
) -> dict[str, list[float]]:
    """F_t along each text, by instruction id.

    Args:
        subject: one of the two models.
        texts: what both have read.
        other: the other one's log-probabilities, on the main rank.
        parts: what is finished.
        kept_is_base: whether the other one is the base.
        first: the other one itself, to be run just before.
    """
    groups = dict(groups_of("scores", by_length(texts)))
    for key in parts.missing(groups, "free energy"):
        own = groups[key]
        found: dict[str, list[float]] = {}

        def compare(index: int, log_p: Tensor, own: list[Drawn] = own, found: Any = found) -> None:
            if subject.ranks.is_main:
                pair = wide_pair(log_p, other.get(own[index].id))
                now, base = pair if kept_is_base else pair[::-1]
                found[own[index].id] = kl_divergence(now, base).tolist()

        if first is not None:
            keep(first, own, other)
        subject.score([each.text for each in own], compare)
        parts.put(key, subject.ranks.broadcast(found))
    return {id_: values for key in groups for id_, values in parts[key].items()}


def early_share(texts: Sequence[Drawn], scores: Mapping[str, Sequence[float]], seed: int) -> Any:
    """The first tokens' share of F: Σ_x Σ_{t<5} F_t / Σ_x Σ_t F_t, with its interval."""
    early = np.array([np.sum(scores[each.id][:EARLY]) for each in texts])
    total = np.array([np.sum(scores[each.id]) for each in texts])
    weights = flat_weights(len(texts), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate((weights @ early) / (weights @ total), len(texts))


def _divergence(values: np.ndarray, seed: int) -> Estimate:
    """The mean of what is never negative, its interval cut at 0."""
    found = mean_estimate(values, seed)
    return replace(found, low=max(found.low, 0.0)) if len(values) > 1 else found


def summary(
    texts: Sequence[Drawn], scores: Mapping[str, Sequence[float]], seed: int
) -> dict[str, Any]:
    """By instruction, by category and by depth; JSON values."""
    lengths = np.array([len(scores[each.id]) for each in texts])
    table = np.full((len(texts), int(lengths.max())), np.nan)
    for row, each in zip(table, texts, strict=True):
        row[: len(scores[each.id])] = scores[each.id]
    means = np.array([np.mean(scores[each.id]) for each in texts])
    categories = dict.fromkeys(each.instruction.category for each in texts)
    by_category = {}
    for name in categories:
        own = [i for i, each in enumerate(texts) if each.instruction.category == name]
        by_category[name] = {
            "instructions": len(own),
            "free_energy": row_of(_divergence(means[own], seed)),
        }
    by_instruction = {
        each.id: {
            "category": each.instruction.category,
            "tokens": len(each.response),
            "free_energy": float(means[i]),
        }
        for i, each in enumerate(texts)
    }
    depth = [
        {"token": t + 1, "texts": int((lengths > t).sum())}
        | row_of(_divergence(column[lengths > t], seed))
        for t, column in enumerate(table.T)
    ]
    return {
        "by_instruction": by_instruction,
        "by_category": by_category,
        "depth": depth,
        "early": EARLY,
        "even_share": float(np.minimum(lengths, EARLY).sum() / lengths.sum()),
    }
