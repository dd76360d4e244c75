"""Landscape: how far alignment has moved a model from its base, by instruction and by depth.

For an instruction x and a response y, drawn at temperature 1, the alignment free energy per token
is F(x) = mean over t of F_t, F_t = KL(π_now(·|x, y_<t) ‖ π_base(·|x, y_<t)), in nats over the whole
vocabulary (`metrics/README.md`; the essay's F_align). The direction is the current model's from the
base's. Both models read the same tokens: the prompt in the aligned model's chat template.

**A pair of models** (`landscape_pair`): y is drawn from the aligned model, so that F_t summed
over a response estimates KL(π_now(y|x) ‖ π_base(y|x)) of whole responses. **Inside training**: y
is drawn once, from the base, so that only the model changes from one measurement to the next and
the base need not stay. These texts are off-policy: F_t is then the divergence where the base would
have gone; it misses what only the trained model says, and its sum is no divergence of responses.

Axes: N instructions, T tokens of a response, R replicates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from crystalmon.experiments.common import responses, statistics
from crystalmon.experiments.common.experiment import Experiment, check_whole
from crystalmon.experiments.common.instructions import Instructions, fingerprint, resolve
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import Drawn, KeptLogProbs
from crystalmon.experiments.common.subject import Subject
from crystalmon.metrics.vocabulary import kl_divergence
from crystalmon.runs.files import write_whole
from crystalmon.runs.results import Estimate, Result

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
        check_whole(self, tokens=1, seed=0)

    @property
    def settings(self) -> dict[str, Any]:
        """The instructions by their fingerprint."""
        return super().settings | {"instructions": fingerprint(resolve(self.instructions))}

    def begin(self, base: Subject, folder: Path) -> None:
        """Draw the texts from the base and keep its log-probabilities along them.

        What an earlier call with the same settings has left stays: when a run goes on, the model
        is no longer the base. For a new base, remove `<folder>/landscape` first.
        """
        kept = KeptLogProbs(folder / self.name)
        if base.ranks.on_main(lambda: self._kept_texts(kept)) is not None:
            return
        texts = responses.draw(base, resolve(self.instructions), self.tokens, self.seed, Parts())
        base.ranks.on_main(kept.remove)
        responses.keep(base, texts, kept.put)
        found = {"settings": self.settings, "base": base.name}
        found["texts"] = {each.id: each.to_json() for each in texts}
        block = json.dumps(found, ensure_ascii=False).encode() + b"\n"
        base.ranks.on_main(lambda: write_whole(kept.folder / TEXTS_FILE, block))

    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Compare the model with the base on the texts that `begin` has drawn.

        Raises:
            FileNotFoundError: if `begin` was not called with these settings.
        """
        kept = KeptLogProbs(folder / self.name)
        found = subject.ranks.on_main(lambda: self._kept_texts(kept))
        if found is None:
            raise FileNotFoundError(
                f"{kept.folder} must hold the base's texts for these settings, found none. "
                "Begin the experiment on the base first."
            )
        base, texts = found
        scores = free_energies(subject, texts, kept.get, parts, kept_is_base=True)
        return self.result(texts, scores, {"model": subject.name, "base": base}, "base")

    def _kept_texts(self, kept: KeptLogProbs) -> tuple[str | None, list[Drawn]] | None:
        """(the base's name, the texts) that `begin` has left for these settings."""
        file = kept.folder / TEXTS_FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found.get("settings") != self.settings:
            return None
        instructions = resolve(self.instructions)
        return found["base"], [Drawn.from_json(i, found["texts"][i.id]) for i in instructions]

    def result(
        self,
        texts: Sequence[Drawn],
        scores: Mapping[str, Sequence[float]],
        models: Mapping[str, str | None],
        drawn_from: str,
    ) -> Result:
        """What F_t along each text, by instruction id, comes to."""
        lengths = np.array([len(scores[each.id]) for each in texts])
        table = np.full((len(texts), int(lengths.max())), np.nan)
        for row, each in zip(table, texts, strict=True):
            row[: len(scores[each.id])] = scores[each.id]
        means = np.array([np.mean(scores[each.id]) for each in texts])
        groups = [each.instruction.category for each in texts]
        overall = statistics.nested_weights(groups, self.seed) @ means
        estimates = {
            "free_energy": statistics.weighted_estimate(overall, len(set(groups))),
            "early_share": self._early_share([scores[each.id] for each in texts]),
        }
        rows = [
            {"category": group, "tokens": len(each.response), "free_energy": float(mean)}
            for each, group, mean in zip(texts, groups, means, strict=True)
        ]
        detail = {
            "by_instruction": {each.id: row for each, row in zip(texts, rows, strict=True)},
            "by_category": self._by_category(groups, means),
            "depth": [
                {"token": t + 1, "texts": int((lengths > t).sum())}
                | self._divergence(column[lengths > t])
                for t, column in enumerate(table.T)
            ],
            "early": EARLY,
            "even_share": float(np.minimum(lengths, EARLY).sum() / lengths.sum()),
            "drawn_from": drawn_from,
        }
        return Result(self.name, self.settings, models, estimates, detail)

    def _early_share(self, scores: Sequence[Sequence[float]]) -> Estimate:
        """The first tokens' share of F, Σ_x Σ_{t<5} F_t / Σ_x Σ_t F_t, with its interval."""
        early = np.array([np.sum(own[:EARLY]) for own in scores])
        total = np.array([np.sum(own) for own in scores])
        weights = statistics.flat_weights(len(scores), self.seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            return statistics.weighted_estimate((weights @ early) / (weights @ total), len(scores))

    def _by_category(self, groups: Sequence[str], means: np.ndarray) -> dict[str, dict[str, Any]]:
        found = {}
        for name in dict.fromkeys(groups):
            own = means[[group == name for group in groups]]
            found[name] = {"instructions": len(own), "free_energy": self._divergence(own)}
        return found

    def _divergence(self, values: np.ndarray) -> dict[str, float]:
        """The mean of what is never negative, its interval cut at 0."""
        found = asdict(statistics.mean_estimate(values, self.seed))
        return found | {"low": np.maximum(found["low"], 0.0).item()}  # NaN stays NaN


def free_energies(
    subject: Subject,
    texts: Sequence[Drawn],
    other: Callable[[str], Tensor],
    parts: Parts,
    *,
    kept_is_base: bool,
    before: Callable[[Sequence[Drawn]], None] = lambda texts: None,
) -> dict[str, list[float]]:
    """F_t along each text, by instruction id.

    Args:
        subject: one of the two models.
        texts: what both have read.
        other: gives the other one's log-probabilities along a text, on the main rank.
        parts: what is finished.
        kept_is_base: whether the other one is the base.
        before: called with each group of texts before the subject reads it.
    """
    groups = responses.groups_of("scores", responses.by_length(texts))
    for key in parts.missing(groups, "free energy"):
        own = groups[key]
        found: dict[str, list[float]] = {}

        def compare(index: int, log_p: Tensor, own: list[Drawn] = own, found: Any = found) -> None:
            if subject.ranks.is_main:
                pair = responses.wide_pair(log_p, other(own[index].id))
                now, base = pair if kept_is_base else pair[::-1]
                found[own[index].id] = kl_divergence(now, base).tolist()

        before(own)
        subject.score([each.text for each in own], compare)
        parts.put(key, subject.ranks.broadcast(found))
    return {id_: values for key in groups for id_, values in parts[key].items()}
