"""Responses that a model gives to instructions, and log-probabilities along them on disk.

Texts are drawn and scored in groups of similar length; a finished group is a part, so that an
interrupted experiment goes on with the next one.

Axes: M positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from crystalmon.experiments.common.instructions import Instruction
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.scored_texts import Text, Tokens
from crystalmon.experiments.common.subject import Subject
from crystalmon.runs.files import explained

GROUP = 16
"""Texts of a part."""
T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """An instruction and a response to it.

    Args:
        instruction: what was asked.
        shown: the request as the model read it, before it became tokens.
        prompt, response: token ids.
    """

    instruction: Instruction
    shown: str
    prompt: Tokens
    response: Tokens

    @property
    def id(self) -> str:
        """The instruction's."""
        return self.instruction.id

    @property
    def text(self) -> Text:
        """What is scored: the distribution of each token of the response."""
        return Text.after(self.prompt, self.response)

    def to_json(self) -> list[Any]:
        """Without the instruction, whose id is the key."""
        return [self.shown, list(self.prompt), list(self.response)]

    @classmethod
    def from_json(cls, instruction: Instruction, value: Sequence[Any]) -> Drawn:
        """The inverse of `to_json`."""
        return cls(instruction, value[0], tuple(value[1]), tuple(value[2]))


def draw(
    subject: Subject,
    instructions: Sequence[Instruction],
    tokens: int,
    random_seed: int,
    parts: Parts,
) -> list[Drawn]:
    """A response to each instruction at temperature 1, in the order of the instructions."""
    requests = {each.id: subject.render(each.text) for each in instructions}
    special = not subject.has_chat
    prompts = {key: subject.encode(shown, special) for key, shown in requests.items()}
    groups = groups_of("texts", sorted(prompts, key=lambda key: len(prompts[key])))
    for key in parts.missing(groups, "texts"):
        ids = groups[key]
        own = [prompts[each] for each in ids]
        responses = subject.generate(own, tokens, random_seed_of(random_seed, key))
        triples = zip(ids, own, responses, strict=True)
        parts.put(key, {i: [requests[i], list(p), list(r)] for i, p, r in triples})
    return drawn_texts(instructions, parts)


def drawn_texts(instructions: Sequence[Instruction], parts: Parts) -> list[Drawn]:
    """The responses that `draw` has finished.

    Raises:
        KeyError: if it has not finished all.
    """
    found = {k: v for key in groups_of("texts", instructions) for k, v in parts[key].items()}
    return [Drawn.from_json(each, found[each.id]) for each in instructions]


def groups_of(what: str, items: Sequence[T], size: int | None = None) -> dict[str, list[T]]:
    """Items in groups of `GROUP` or another size, by the key of their part: `<what>/<number>`."""
    size = size or GROUP
    starts = range(0, len(items), size)
    return {f"{what}/{number}": list(items[at : at + size]) for number, at in enumerate(starts)}


def by_length(texts: Iterable[Drawn]) -> list[Drawn]:
    """Texts of similar length side by side."""
    return sorted(texts, key=lambda each: len(each.prompt) + len(each.response))


def random_seed_of(random_seed: int, key: str) -> int:
    """A random seed of its own for each key, in [0, 2³²)."""
    return int(hashlib.sha256(f"{random_seed}/{key}".encode()).hexdigest()[:8], 16)


class KeptLogProbs:
    """Log-probabilities of texts in a folder of their own, a file each, mapped when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, log_p: Tensor) -> None:
        """Keep log_p [M, V] as float32; there is all of it or nothing."""
        partial = self.folder / f"{key}.partial"
        with explained(self.folder, f"take {self._file(key).name}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"log_p": log_p.float().cpu().contiguous()}, str(partial))
            os.replace(partial, self._file(key))

    def get(self, key: str) -> Tensor:
        """[M, V] float32."""
        with safe_open(str(self._file(key)), framework="pt") as tensors:
            return tensors.get_tensor("log_p")

    def __contains__(self, key: str) -> bool:
        """Whether they are kept."""
        return self._file(key).is_file()

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def keep(subject: Subject, texts: Sequence[Drawn], put: Callable[[str, Tensor], None]) -> None:
    """Hand each text's id and the model's log-probabilities along it to `put`, on the main rank."""
    chosen = by_length(texts)

    def consume(index: int, log_p: Tensor) -> None:
        if subject.ranks.is_main:
            put(chosen[index].id, log_p)

    subject.score([each.text for each in chosen], consume)


def wide_pair(log_p: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the shared leading part of their vocabularies, normalised to rounding."""
    device = log_p.device if log_p.device.type in ("cpu", "cuda") else torch.device("cpu")
    shared = min(log_p.shape[-1], log_b.shape[-1])
    wide_p, wide_b = (
        each.to(device).double()[..., :shared].log_softmax(dim=-1) for each in (log_p, log_b)
    )
    return wide_p, wide_b
