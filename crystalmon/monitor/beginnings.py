"""What a model was before its first training in this process.

A later training of the same model finds its base here, where no folder holds it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from crystalmon.runs.reference import Reference
from crystalmon.scoring.engines import unwrapped
from crystalmon.scoring.rendering import View
from crystalmon.suites.tasks import TaskSuite


@dataclass
class Beginning:
    """Where the trainings of one model in this process begin.

    Args:
        training: the trainer's state of the first of them.
        bases: what the model answered before that, by the suite's hash and the view.
    """

    training: weakref.ref[Any]
    bases: dict[tuple[str, View], Reference] = field(default_factory=dict)


_BEGINNINGS: weakref.WeakKeyDictionary[nn.Module, Beginning] = weakref.WeakKeyDictionary()
"""Of the models that this process has trained, without what they are wrapped in."""


def beginning_of(model: Any, training: Any) -> Beginning:
    """The model's beginning; in its first training a new one, which `keep_beginning` keeps.

    Args:
        model: the trainer's.
        training: the trainer's state.
    """
    return _BEGINNINGS.get(innermost(model), Beginning(weakref.ref(training)))


def keep_beginning(model: Any, beginning: Beginning) -> None:
    """Let later trainings of the model find it."""
    _BEGINNINGS[innermost(model)] = beginning


def begun_views(model: Any, suite: TaskSuite) -> list[View]:
    """The views in which this process has scored a model before its first training."""
    beginning = _BEGINNINGS.get(innermost(model))
    return [view for key, view in beginning.bases if key == suite.hash] if beginning else []


def innermost(model: Any) -> Any:
    """The model under its wrappers and PEFT's adapters: a second training may wrap it anew."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trained_further(reference: Reference) -> Reference:
    """The reference under a name that says that its model was trained since it was loaded."""
    name = f"{reference.info.model or 'a model'}, trained further"
    return replace(reference, info=replace(reference.info, model=name))
