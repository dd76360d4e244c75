"""A `CrystalCallback` for every trainer of this process, once for each.

The hook is `CallbackHandler.on_train_begin`: every trainer of transformers and TRL calls it before
its first step, when all callbacks are there, however they were attached. The list
`transformers.trainer.DEFAULT_CALLBACKS` would come before the reporters, whose runs must be open
when the base is logged, and does not tell whether a script attaches a callback of its own.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from crystalmon.integrations.arguments import read_arguments

if TYPE_CHECKING:
    from crystalmon.monitor.callback import CrystalCallback

logger = logging.getLogger(__name__)

ATTACHED, REFUSED = "attached", "refused"
"""What is noted once a trainer is monitored, and once one cannot be."""


def attach(module: ModuleType, note: Callable[[str], None]) -> None:
    """Let every trainer begin with a callback.

    Args:
        module: `transformers.trainer_callback`.
        note: told `ATTACHED` or `REFUSED` when a trainer begins.
    """
    begin = module.CallbackHandler.on_train_begin

    @functools.wraps(begin)
    def on_train_begin(handler: Any, args: Any, *given: Any, **options: Any) -> Any:
        watched = _watch(handler, args, module.DefaultFlowCallback)
        try:
            return begin(handler, args, *given, **options)
        finally:  # a mistake of configuration, which is raised, is no refusal
            note(ATTACHED if watched in handler.callbacks else REFUSED)

    module.CallbackHandler.on_train_begin = on_train_begin


def make_callback() -> CrystalCallback:
    """A callback as the environment says.

    Raises:
        ValueError: for an unknown argument, or a value that it cannot have.
    """
    from crystalmon.monitor.callback import CrystalCallback

    return CrystalCallback(**read_arguments(os.environ))


def _watch(handler: Any, args: Any, flow: type) -> CrystalCallback | None:
    """The trainer's callback; it gets one if it has none, and its model can be measured."""
    # not before a trainer begins: a framework may patch models when it is first imported
    from crystalmon.monitor.callback import CrystalCallback
    from crystalmon.scoring.compatibility import check_kind
    from crystalmon.scoring.engines import check_engine, unwrapped
    from crystalmon.scoring.forward import output_head
    from crystalmon.scoring.models import UnsupportedModel

    callbacks = handler.callbacks
    if own := next((each for each in callbacks if isinstance(each, CrystalCallback)), None):
        return own
    try:
        model = unwrapped(handler.model)
        output_head(model)
        check_kind(model)
        check_engine(handler.model, args)
    except UnsupportedModel as error:
        _leave(error)
        return None
    earlier = [n for n, each in enumerate(callbacks) if isinstance(each, flow) or _reports(each)]
    callback = make_callback()
    begin = callback.on_train_begin

    def on_train_begin(*given: Any, **options: Any) -> None:
        """What can only be found out by running the model is no reason to end the program."""
        try:
            begin(*given, **options)
        except UnsupportedModel as error:
            _leave(error)
            # a list of its own: the handler walks through the old one
            handler.callbacks = [each for each in handler.callbacks if each is not callback]

    callback.on_train_begin = on_train_begin
    callbacks.insert(max(earlier, default=-1) + 1, callback)
    return callback


def _leave(error: Exception) -> None:
    if int(os.environ.get("RANK", 0)):
        return
    logger.warning("crystalmon: this training is not monitored: %s", error)


def _reports(callback: Any) -> bool:
    """Whether it is one of transformers' reporters, such as that of W&B."""
    return any(
        kind.__module__.startswith("transformers.integrations") for kind in type(callback).__mro__
    )
