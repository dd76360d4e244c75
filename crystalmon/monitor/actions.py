"""What to do on a signal: the trainer's own control flow, an alert, a user's function."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from crystalmon.monitor.failures import Failures
from crystalmon.phases.limits import LIMITED
from crystalmon.runs.records import EVENT_KINDS, LIMIT_EVENT, SUITE_EVENT_KINDS, Event

logger = logging.getLogger(__name__)

ActionFunction = Callable[[Event, Any, Any], Any]
"""Takes the event and the trainer's `TrainerState` and `TrainerControl`."""
Action = str | ActionFunction
"""`save`, `stop`, `evaluate`, `alert`, or a function."""
Actions = Mapping[str, Action | Sequence[Action]]

_FLAGS = {"save": "should_save", "stop": "should_training_stop", "evaluate": "should_evaluate"}
_NAMES = (*_FLAGS, "alert")


def check_actions(
    actions: Actions | None, tasks: Iterable[str], limited: Iterable[str] = ()
) -> dict[str, tuple[Action, ...]]:
    """The actions by signal, each a tuple.

    Args:
        actions: by signal, one action or several; see `callback.CrystalCallback`.
        tasks: the suite's tasks.
        limited: the metrics that have a limit, which raises an event of its own.

    Raises:
        ValueError: for an unknown kind of event, task or action.
        TypeError: for an action that is neither a name nor a function.
    """
    if actions is not None and not isinstance(actions, Mapping):
        raise TypeError(f"actions must be a mapping, got {type(actions).__name__}.")
    names, kinds = tuple(tasks), (*EVENT_KINDS, *(f"{key}{LIMIT_EVENT}" for key in limited))
    checked: dict[str, tuple[Action, ...]] = {}
    for signal, given in (actions or {}).items():
        task, slash, kind = str(signal).rpartition("/")
        if kind not in kinds:
            told = f"actions must be for {', '.join(kinds)}, got {signal!r}."
            if kind.removesuffix(LIMIT_EVENT) in LIMITED:
                told += f" Set a limit, as in limits={{{kind.removesuffix(LIMIT_EVENT)!r}: 2.0}}."
            raise ValueError(told)
        if slash and task not in names:
            raise ValueError(
                f"actions must be for tasks of the suite, got {task!r} in {signal!r}. "
                f"Name one of {', '.join(names)}."
            )
        one = isinstance(given, str) or not isinstance(given, Sequence)
        checked[signal] = (cast(Action, given),) if one else tuple(cast(Sequence[Action], given))
        for action in checked[signal]:
            if not callable(action) and not isinstance(action, str):
                raise TypeError(f"an action must be a name or a function, got {action!r}.")
            if isinstance(action, str) and action not in _NAMES:
                raise ValueError(f"an action must be one of {', '.join(_NAMES)}, got {action!r}.")
    return checked


def check_possible(actions: Mapping[str, tuple[Action, ...]], args: Any) -> None:
    """Refuse what would end the training when its event comes.

    Args:
        actions: checked.
        args: the trainer's arguments.

    Raises:
        ValueError: for `evaluate` in a trainer that need not have an evaluation dataset.
    """
    asked = [signal for signal, chosen in actions.items() if "evaluate" in chosen]
    if asked and args.eval_strategy == "no":
        raise ValueError(
            f"the action evaluate on {asked[0]} needs a trainer that evaluates. Give it an "
            "eval_dataset and set eval_strategy, such as 'epoch', in its arguments."
        )


def actions_for(actions: Mapping[str, tuple[Action, ...]], event: Event) -> tuple[Action, ...]:
    """The actions that the user wants at an event."""
    found: list[Action] = []
    if event.task is None or event.kind not in SUITE_EVENT_KINDS:
        found += actions.get(event.kind, ())
    if event.task is not None:
        found += actions.get(f"{event.task}/{event.kind}", ())
    return tuple(found)


def action_name(action: Action) -> str:
    """What an action is called in `run.json` and in the terminal."""
    return action if isinstance(action, str) else getattr(action, "__qualname__", repr(action))


class ActionQueue:
    """What the user has asked for on events, done when the trainer's control can be changed.

    Args:
        actions: by signal, checked.
        failures: where failed actions are counted.
    """

    def __init__(self, actions: Mapping[str, tuple[Action, ...]], failures: Failures) -> None:
        self._actions, self._failures = actions, failures
        self._events: list[Event] = []
        self._stopped_at = math.inf

    def add(self, events: Iterable[Event]) -> None:
        """Let the actions on these events wait for the next `run`."""
        self._events += events

    def run(self, state: Any, control: Any, before_each: Callable[[Event, Action], Any]) -> None:
        """Take the actions that wait.

        Args:
            state, control: the trainer's.
            before_each: called with each event and action.
        """
        if state.global_step > self._stopped_at:
            logger.warning("crystalmon: this trainer does not stop when a callback asks it to.")
            self._stopped_at = math.inf
        events, self._events = self._events, []
        for event, action in ((e, a) for e in events for a in actions_for(self._actions, e)):
            before_each(event, action)
            if action == "stop":
                self._stopped_at = state.global_step
            failed = f"{action_name(action)} failed on {event.kind}; training goes on"
            with self._failures.caught(failed):
                _take(action, event, state, control)


def _take(action: Action, event: Event, state: Any, control: Any) -> None:
    """Set the control's flag, or call the user's function; an alert is the trackers' to raise."""
    if callable(action):
        action(event, state, control)
    elif action in _FLAGS:
        setattr(control, _FLAGS[action], True)
