"""The essay's experiments, on a model or on a pair of models, alone or inside training.

The public names are imported on first use: what reads results needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalmon.experiments.context.context_ratio import Context
    from crystalmon.experiments.drift.instruction_drift import Drift
    from crystalmon.experiments.landscape.free_energies import Landscape
    from crystalmon.experiments.predictions.predicted import Predictions
    from crystalmon.experiments.sharpness.kl_penalty import Sharpness
    from crystalmon.experiments.temperature.temperature_sweep import Temperature

ON_MODELS = {name.lower(): name for name in ("Context", "Drift", "Landscape", "Temperature")}
"""The experiments that measure a model, by name: their classes."""

_HOME = {
    "Context": "context.context_ratio",
    "Drift": "drift.instruction_drift",
    "Landscape": "landscape.free_energies",
    "Predictions": "predictions.predicted",
    "Sharpness": "sharpness.kl_penalty",
    "Temperature": "temperature.temperature_sweep",
}

__all__ = ["Context", "Drift", "Landscape", "Predictions", "Sharpness", "Temperature"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalmon.experiments.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
