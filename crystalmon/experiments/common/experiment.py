"""What every experiment is: settings, a measurement, a table and a figure.

An experiment on a model is a frozen dataclass of its settings. Inside training it is begun on the
base and then measured at its own interval; on its own it is a command.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from crystalmon.experiments.common.parts import Parts
from crystalmon.runs.results import Result
from crystalmon.suites.checks import is_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crystalmon.experiments.common.subject import Subject


class Shown:
    """An experiment's name, and how its results are shown.

    `<name>/<name>_display.py` has the functions `table` and `figure`. It is imported on first use,
    since it needs matplotlib. An experiment outside of this package overrides both methods instead.
    """

    name: ClassVar[str]

    @classmethod
    def table(cls, result: Result) -> str:
        """The result as the terminal shows it."""
        return cls._display().table(result)

    @classmethod
    def figure(cls, result: Result) -> Figure:
        """The result as a picture; write it with `figure.savefig(path)`."""
        return cls._display().figure(result)

    @classmethod
    def _display(cls) -> Any:
        return importlib.import_module(f"crystalmon.experiments.{cls.name}.{cls.name}_display")


class Experiment(Shown, ABC):
    """An experiment on a model; its fields are its settings, checked on construction."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines the result, the model aside; JSON-ready."""
        return asdict(self)  # type: ignore[call-overload]

    def begin(self, base: Subject, folder: Path) -> None:
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


def check_whole(experiment: Experiment, **least: int) -> None:
    """Refuse settings that are not whole numbers, or lower than the least that makes sense.

    Raises:
        TypeError, ValueError: naming the setting.
    """
    for name, bound in least.items():
        value = getattr(experiment, name)
        if not is_whole(value):
            raise TypeError(f"{name} must be an integer, got {value!r}.")
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value!r}. Ask for more.")
        object.__setattr__(experiment, name, int(value))  # JSON takes no integer of NumPy's
