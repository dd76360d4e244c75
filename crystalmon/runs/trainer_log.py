"""The trainer's own log, kept beside the records: loss, reward, learning rate and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from crystalmon.runs.files import DOUBT_KEY, RESUME_KEY
from crystalmon.runs.json_values import (
    Stored,
    as_number,
    as_numbers,
    as_step,
    json_value,
)
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.suites.checks import harmless

_RESERVED = ("step", "epoch", RESUME_KEY, DOUBT_KEY)


@dataclass(frozen=True)
class LogRow(Stored):
    """What the trainer has logged in one call.

    Args:
        step: optimizer steps done.
        epoch: the trainer's epoch, or None if it tells none.
        values: its numbers, under the trainer's own names.
    """

    step: int
    epoch: float | None
    values: Mapping[str, float]

    @classmethod
    def of(cls, step: int, epoch: float | None, logs: Mapping[str, Any]) -> LogRow:
        """The numbers among what a trainer logs, without those that crystalmon has made itself."""
        values = {
            key: float(value)
            for key, value in logs.items()
            if isinstance(value, Real)
            and not isinstance(value, bool)
            and key not in _RESERVED
            and not key.startswith(DEFAULT_NAME)
        }
        return cls(step, epoch, values)

    def to_json(self) -> dict[str, Any]:
        """One flat mapping: the step and the epoch beside the numbers."""
        return json_value({"step": self.step, "epoch": self.epoch, **self.values})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LogRow:
        """Inverse of `to_json`.

        Raises:
            ValueError: if there is no step, or a value is no number.
        """
        values = dict(data)
        step, epoch = as_step("step", values.pop("step", None)), values.pop("epoch", None)
        epoch = None if epoch is None else as_number("epoch", epoch)
        values = as_numbers("value", values)
        if not all(map(str.isprintable, values)):
            values = harmless(values)
        return cls(step, epoch, values)
