"""Instructions with closed answers, and adversaries: texts that work against an instruction.

A closed instruction is kept or broken in one of a few answers, so that compliance is a probability
and needs no judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from crystalmon.experiments.common.instructions import (
    CONFLICTS_FILE,
    Instruction,
    InstructionError,
    check_texts,
    entries,
    read_file,
    short_hash,
)
from crystalmon.suites.checks import check_keys, check_text, check_unique


@dataclass(frozen=True)
class ClosedInstruction(Instruction):
    """Something that a model is told, and a question that shows whether it is kept.

    Args:
        id: unique over the bundled instructions of all experiments; unlike an open instruction's
            it names no file, so that it and the category may be any text.
        category: such as `language`.
        text: one sentence.
        question: asked after it.
        compliant: the answers that keep it, at least one.
        other: those that break it, at least one; the first is the natural one.
    """

    question: str
    compliant: tuple[str, ...]
    other: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in ("id", "category", "text", "question"):
            check_text(f"instruction {self.id!r}: {key}", getattr(self, key), InstructionError)
        for key in ("compliant", "other"):
            check_texts(f"instruction {self.id!r}: {key}", getattr(self, key))
        check_unique(f"instruction {self.id!r}: answers", self.answers, InstructionError)

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
        check_text("adversary: id", self.id, InstructionError)
        check_texts(f"adversary {self.id!r}: texts", self.texts)
        for text in self.texts:
            try:
                named = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
            except ValueError as error:
                raise InstructionError(
                    f"adversary {self.id!r}: {text!r} must have its braces in pairs: {error}."
                ) from error
            if unknown := named - {"question", "other"}:
                raise InstructionError(
                    f"adversary {self.id!r}: {text!r} may hold {{question}} and {{other}} alone, "
                    f"got {{{min(unknown)}}}."
                )

    def against(self, instruction: ClosedInstruction) -> tuple[str, ...]:
        """The sentences as they are said against an instruction."""
        known = {"question": instruction.question, "other": instruction.other[0]}
        return tuple(text.format(**known) for text in self.texts)


@dataclass(frozen=True)
class Conflicts:
    """Instructions and adversaries; each adversary goes against each instruction.

    Args:
        instructions, adversaries: at least one of each, ids unique.
    """

    instructions: tuple[ClosedInstruction, ...]
    adversaries: tuple[Adversary, ...]

    def __post_init__(self) -> None:
        for what in ("instructions", "adversaries"):
            found = getattr(self, what)
            if not found:
                raise InstructionError(f"{what} must not be empty. Add at least one.")
            check_unique(f"{what}: ids", [each.id for each in found], InstructionError)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that they say, in order; 16 hex digits."""
        return short_hash(asdict(self))

    def chosen(
        self, instructions: Sequence[str] | None, adversaries: Sequence[str] | None
    ) -> Conflicts:
        """Those of some ids, in the order given; all where None.

        Raises:
            ValueError: for an unknown id.
        """
        return Conflicts(
            _pick("instructions", self.instructions, instructions),
            _pick("adversaries", self.adversaries, adversaries),
        )


def load_conflicts(path: str | Path | None = None) -> Conflicts:
    """The bundled conflicts, or those of a YAML file.

    Args:
        path: a file with the keys `instructions` (`{id, category, text, question, compliant:
            [str], other: [str]}`) and `adversaries` (`{id, texts: [str]}`).

    Raises:
        FileNotFoundError: if there is no such file.
        InstructionError: if it is faulty; the message names the file and the place.
    """
    return read_file(CONFLICTS_FILE if path is None else Path(path), _parse)


def _parse(data: Any) -> Conflicts:
    check_keys("the file", data, ("instructions", "adversaries"), InstructionError)
    return Conflicts(
        entries(ClosedInstruction, "instructions", data["instructions"]),
        entries(Adversary, "adversaries", data["adversaries"]),
    )


def _pick(what: str, known: Sequence[Any], ids: Sequence[str] | None) -> tuple[Any, ...]:
    by_id = {each.id: each for each in known}
    if unknown := [name for name in ids or () if name not in by_id]:
        raise ValueError(f"{what} must be among {', '.join(by_id)}, got {unknown[0]!r}.")
    return tuple(known if ids is None else (by_id[name] for name in ids))
