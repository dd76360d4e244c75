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

from crystalmon.integrations.settings import read_settings

if TYPE_CHECKING:
    from crystalmon.monitor.callback import CrystalCallback

logger = logging.getLogger(__name__)

ATTACHED = "attached"
"""What is noted once a trainer is monitored."""


def attach(module: ModuleType, note: Callable[[str], None]) -> None:
    """Let every trainer begin with a callback.

    Args:
        module: `transformers.trainer_callback`.
        note: told `ATTACHED` when a trainer that is monitored begins.
    """
    begin = module.CallbackHandler.on_train_begin

    @functools.wraps(begin)
    def on_train_begin(handler: Any, args: Any, *given: Any, **options: Any) -> Any:
        if _watch(handler, args, module.DefaultFlowCallback):
            note(ATTACHED)
        return begin(handler, args, *given, **options)

    module.CallbackHandler.on_train_begin = on_train_begin


def make_callback() -> CrystalCallback:
    """A callback as the environment says.

    Raises:
        ValueError: for an unknown argument, or a value that it cannot have.
    """
    from crystalmon.monitor.callback import CrystalCallback

    return CrystalCallback(**read_settings(os.environ))


def _watch(handler: Any, args: Any, flow: type) -> bool:
    """Whether the trainer has a callback; it gets one, unless it has or its model has no head.

    Nor does a model get one whose engine would falsify what is measured.
    """
    # not before a trainer begins: a framework may patch models when it is first imported
    from crystalmon.monitor.callback import CrystalCallback
    from crystalmon.scoring.engines import check_engine, unwrapped
    from crystalmon.scoring.forward import output_head

    callbacks = handler.callbacks
    if any(isinstance(each, CrystalCallback) for each in callbacks):
        return True
    try:
        output_head(unwrapped(handler.model))
        check_engine(handler.model, args)
    except (TypeError, ValueError) as error:
        logger.warning("crystalmon: this training is not monitored: %s", error)
        return False
    earlier = [n for n, each in enumerate(callbacks) if isinstance(each, flow) or _reports(each)]
    callbacks.insert(max(earlier, default=-1) + 1, make_callback())
    return True


def _reports(callback: Any) -> bool:
    """Whether it is one of transformers' reporters, such as that of W&B."""
    return any(
        kind.__module__.startswith("transformers.integrations") for kind in type(callback).__mro__
    )
