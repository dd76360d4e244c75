"""The essay's experiments, on a model or on a pair of models, alone or inside training.

The public names are imported on first use: what reads results needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalmon.experiments.context import Context
    from crystalmon.experiments.drift import Drift
    from crystalmon.experiments.landscape import Landscape
    from crystalmon.experiments.predicted import Predictions
    from crystalmon.experiments.sharpness import Sharpness
    from crystalmon.experiments.temperature import Temperature

ON_MODELS = {
    "context": "Context",
    "drift": "Drift",
    "landscape": "Landscape",
    "temperature": "Temperature",
}
"""The experiments that measure a model, by name: their classes, each in the module of its name."""

_HOME = {
    **{kind: name for name, kind in ON_MODELS.items()},
    "Predictions": "predicted",
    "Sharpness": "sharpness",
}

__all__ = ["Context", "Drift", "Landscape", "Predictions", "Sharpness", "Temperature"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalmon.experiments.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
