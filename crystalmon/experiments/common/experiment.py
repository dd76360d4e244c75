"""What every experiment is: settings, a measurement on a model, a table and a figure.

An experiment is a frozen dataclass of its settings. Inside training it is begun on the base and
then measured at its own interval; on its own it is a command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from crystalmon.experiments.common.parts import Parts
from crystalmon.runs.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crystalmon.experiments.common.subject import Subject


class Experiment(ABC):
    """One experiment; its fields are its settings, checked on construction."""

    name: ClassVar[str]

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the result beside the model, JSON-ready."""
        return asdict(self)  # type: ignore[call-overload]

    def begin(self, base: Subject, folder: Path) -> None:  # noqa: B027 (most need nothing)
        """Keep of the base, in `folder`, what `measure` needs; nothing by default.

        Inside training this is called once, on every rank, before the first step.
        """

    @abstractmethod
    def measure(self, subject: Subject, folder: Path, parts: Parts) -> Result:
        """Measure a model.

        Every rank calls it; all of them get the result.

        Args:
            subject: the model.
            folder: where `begin` has left what is needed of the base.
            parts: what an interrupted call has finished.
        """

    @staticmethod
    @abstractmethod
    def table(result: Result) -> str:
        """The result as the terminal shows it."""

    @staticmethod
    @abstractmethod
    def figure(result: Result) -> Figure:
        """The result as a picture; write it with `figure.savefig(path)`."""


def check_whole(experiment: Experiment, *names: str) -> None:
    """Refuse settings of these names that are no whole numbers: they would fail when measured.

    Raises:
        TypeError: naming the setting.
    """
    for name in names:
        value = getattr(experiment, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}.")
