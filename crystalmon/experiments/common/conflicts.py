"""Instructions and the texts that work against them: parse and validate.

An instruction is kept or broken in one closed answer, so that compliance is a probability and not
a judgement.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from crystalmon.suites.tasks import check_unique

CONFLICTS_FILE = Path(__file__).parent / "data" / "conflicts.yaml"
PLACES = ("question", "other")
"""What an adversary's text may leave open, in braces."""


class ConflictError(ValueError):
    """Conflicts that cannot be used; the message names the file and the place."""


@dataclass(frozen=True)
class Instruction:
    """Something that a model is told, and a question that shows whether it is kept.

    Args:
        id: unique over the bundled instructions of all experiments.
        category: such as `language`.
        text: one sentence.
        question: asked after it.
        compliant: the answers that keep it, at least one.
        other: those that break it, at least one; the first is the natural one.
    """

    id: str
    category: str
    text: str
    question: str
    compliant: tuple[str, ...]
    other: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in ("id", "category", "text", "question"):
            _check_text(f"instruction {self.id!r}: {key}", getattr(self, key))
        for key in ("compliant", "other"):
            _check_texts(f"instruction {self.id!r}: {key}", getattr(self, key))
        check_unique(f"instruction {self.id!r}: answers", self.answers, ConflictError)

    @property
    def answers(self) -> tuple[str, ...]:
        """The compliant answers, then the others."""
        return (*self.compliant, *self.other)


@dataclass(frozen=True)
class Adversary:
    """One way of working against an instruction.

    Args:
        id: unique.
        texts: sentences; `{question}` and `{other}` stand for the instruction's question and its
            first other answer.
    """

    id: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_text("adversary: id", self.id)
        _check_texts(f"adversary {self.id!r}: texts", self.texts)
        for text in self.texts:
            _check_places(f"adversary {self.id!r}: {text!r}", text)

    def against(self, instruction: Instruction) -> tuple[str, ...]:
        """The sentences as they are said against an instruction."""
        known = {"question": instruction.question, "other": instruction.other[0]}
        return tuple(text.format_map(known) for text in self.texts)


@dataclass(frozen=True)
class Conflicts:
    """Instructions and adversaries; every one of the latter goes against every one of the former.

    Args:
        instructions, adversaries: at least one of each, ids unique.
    """

    instructions: tuple[Instruction, ...]
    adversaries: tuple[Adversary, ...]

    def __post_init__(self) -> None:
        for what in ("instructions", "adversaries"):
            found = getattr(self, what)
            if not found:
                raise ConflictError(f"{what} must not be empty. Add at least one.")
            check_unique(f"{what}: ids", [each.id for each in found], ConflictError)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that they say, in order; 16 hex digits."""
        content = json.dumps(asdict(self), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def chosen(
        self, instructions: Sequence[str] | None, adversaries: Sequence[str] | None
    ) -> Conflicts:
        """Those of some ids, in the order given; all where None.

        Raises:
            ValueError: for an unknown id.
        """
        return Conflicts(
            tuple(_pick("instructions", self.instructions, instructions)),
            tuple(_pick("adversaries", self.adversaries, adversaries)),
        )


def load_conflicts(path: str | Path | None = None) -> Conflicts:
    """The bundled conflicts, or those of a YAML file.

    Args:
        path: a file with the keys `instructions` (`{id, category, text, question, compliant:
            [str], other: [str]}`) and `adversaries` (`{id, texts: [str]}`).

    Raises:
        FileNotFoundError: if there is no such file.
        ConflictError: if it is faulty; the message names the file and the place.
    """
    file = CONFLICTS_FILE if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"conflicts must be a YAML file, got {str(file)!r}. Check the path."
        )
    try:
        return _parse(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ConflictError(f"{file}: must be YAML in UTF-8: {said}") from error
    except ConflictError as error:
        raise ConflictError(f"{file}: {error}") from error


def _parse(data: Any) -> Conflicts:
    _check_keys("the file", data, ("instructions", "adversaries"))
    return Conflicts(
        tuple(
            Instruction(**_entry(f"instructions[{index}]", entry, _INSTRUCTION))
            for index, entry in enumerate(_list("instructions", data["instructions"]))
        ),
        tuple(
            Adversary(**_entry(f"adversaries[{index}]", entry, ("id", "texts")))
            for index, entry in enumerate(_list("adversaries", data["adversaries"]))
        ),
    )


_INSTRUCTION = ("id", "category", "text", "question", "compliant", "other")


def _entry(place: str, data: Any, keys: Sequence[str]) -> dict[str, Any]:
    _check_keys(place, data, keys)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _check_keys(place: str, data: Any, keys: Sequence[str]) -> None:
    if not isinstance(data, Mapping):
        raise ConflictError(f"{place} must be a mapping, got {type(data).__name__}.")
    if unknown := [key for key in data if key not in keys]:
        raise ConflictError(f"{place}: unknown key {unknown[0]!r}. Allowed: {', '.join(keys)}.")
    if missing := [key for key in keys if key not in data]:
        raise ConflictError(f"{place}: key {missing[0]!r} is missing. Add it.")


def _list(place: str, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise ConflictError(f"{place} must be a list, got {type(data).__name__}.")
    return data


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConflictError(f"{what} must be a non-blank string, got {value!r}. Quote or fill it.")


def _check_texts(what: str, values: Any) -> None:
    if not isinstance(values, tuple) or not values:
        raise ConflictError(f"{what} must be a list of at least one string, got {values!r:.60}.")
    for value in values:
        _check_text(what, value)
    check_unique(what, values, ConflictError)


def _check_places(what: str, text: str) -> None:
    try:
        named = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ConflictError(f"{what} must have its braces in pairs: {error}") from error
    if unknown := [name for name in named if name not in PLACES]:
        raise ConflictError(
            f"{what} must leave open no more than {', '.join(PLACES)}, got {{{unknown[0]}}}."
        )


def _pick(what: str, known: Sequence[Any], ids: Sequence[str] | None) -> list[Any]:
    if ids is None:
        return list(known)
    by_id = {each.id: each for each in known}
    if unknown := [name for name in ids if name not in by_id]:
        raise ValueError(f"{what} must be among {', '.join(by_id)}, got {unknown[0]!r}.")
    return [by_id[name] for name in ids]
