"""What to look at or do after an event, with the run's own checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crystalmon.runs.files import saved_checkpoints
from crystalmon.runs.names import model_title
from crystalmon.runs.records import LIMIT_EVENT, Event, ProbeRecord
from crystalmon.runs.run import Run

_ONE_ANSWER = "That is right if the question has one right answer and the model gives it; if not"
ADVICE = {
    "nucleation_onset": (
        "Wordings begin to get the same answers. If you do not want that: {back}, then {train}."
    ),
    "nucleation_complete": (
        f"All wordings get the same answers. {_ONE_ANSWER}, read samples: asking in other words "
        "will not change them."
    ),
    "seed_locked": "Read the wording that won, and its answers in the base.",
    "recrystallization": "Read the wording that has taken over, and its answers in the base.",
    "seedless_collapse": "Look at the answers in your training data.",
    "support_leak": "Look at what the data, the reward or the preferences favour.",
    "melting": "Check that the new data ask for it.",
    "format_drift": (
        "Read samples: what is written instead of the listed answers? The suite randomness-wide "
        'also counts forms such as **Heads** and "heads".'
    ),
    "entropy_collapse": (
        f"The answers have become certain. {_ONE_ANSWER}, read several samples of one prompt. If "
        "they are alike: {back}, then {vary}."
    ),
    "free_energy_jump": (
        "Look at reward, gradient norm and learning rate at this step. If samples are worse: "
        "{back}."
    ),
}
"""By kind of event; `early_warning` asks for nothing yet. `{back}` names a checkpoint, `{train}`
and `{vary}` what the trainer has to set."""

_PENALTIES = ("beta", "kl_coef")
"""A trainer's own names for what holds its model at the reference."""
_SAMPLING = "temperature"
"""Among its arguments if it trains on what it samples."""

_APART = ("the wordings differ again", ("liquid", "melting"))
PASSED = {
    "nucleation_onset": ("the wordings differ again", ("liquid",)),
    "nucleation_complete": _APART,
    "seed_locked": _APART,
    "recrystallization": _APART,
    "seedless_collapse": _APART,
    "melting": ("the wordings answer alike again", ("crystallized", "settling", "ordered")),
}
"""By kind of event, the phases in which it stands no longer, and what it is like then."""


def advise_run(
    run: Run, events: Iterable[Event] | None = None, last: ProbeRecord | None = None
) -> dict[str, str]:
    """What to do about a stored run's events; nothing of a scan, whose stages are trained already.

    Args:
        run: the run.
        events, last: another judgement of its probes, and of the last one; its own if None.
    """
    last = last or (run.records[-1] if run.records else None)
    if run.stages or last is None:
        return {}
    saved, training = saved_checkpoints(run.folder.parent), run.info.get("training", {})
    found, model = run.events if events is None else events, run.info.get("model")
    return advise(found, last, saved, training, model)


def advise(
    events: Iterable[Event],
    last: ProbeRecord,
    saved: Sequence[int],
    training: Mapping[str, Any],
    model: str | None = None,
) -> dict[str, str]:
    """By kind of event, in the order in which they came first, what to do.

    A kind that stands in no task any more, by the phases of the last probe, is said to have passed.

    Args:
        events: of one training.
        last: its last probe.
        saved: the steps of its checkpoints, ascending.
        training: the trainer's arguments, as `run.json` keeps them; empty if they are not known.
        model: what the training began with, if it has a name.
    """
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    limits = [event for kind in kinds if kind.endswith(LIMIT_EVENT) for event in kinds[kind]]
    found = {}
    for kind, raised in kinds.items():
        words = ADVICE.get(kind, "")
        if kind.endswith(LIMIT_EVENT):
            words = "You set this limit: {back}, or set another."
        standing = [event for event in raised if not _has_passed(event, last)]
        if words and standing:
            well = min(map(_well_until, [*standing, *limits]))
            words = words.format(back=_back(well, saved, model), **_ways(training))
            found[kind] = _capital(words)
        elif words:
            found[kind] = f"It has passed: {PASSED[kind][0]}."
    return found


def _has_passed(event: Event, last: ProbeRecord) -> bool:
    """Whether an event stands no longer: of a task by its own phase, of the suite by its."""
    _, over = PASSED.get(event.kind, ("", ()))
    holder = last if event.task is None else last.tasks.get(event.task)
    return holder is not None and holder.phase in over


def _ways(training: Mapping[str, Any]) -> dict[str, str]:
    """What to change in a training, of what its trainer has."""
    ways = ["at a lower learning rate", "on more varied data"]
    ways += [f"with a larger {name}" for name in _PENALTIES if training.get(name) is not None]
    comma = "," if len(ways) > 2 else ""
    train = f"train {', '.join(ways[:-1])}{comma} or {ways[-1]}"
    vary = "sample at a higher temperature or give a bonus for entropy"
    return {"train": train, "vary": vary if _SAMPLING in training else train}


def _well_until(event: Event) -> int:
    """The last step, before an event, at which a probe found all well."""
    interval = event.evidence.get("onset_interval")
    first = interval[0] if isinstance(interval, list | tuple) and interval else None
    told = (first, event.evidence.get("since"))
    return next((step for step in told if type(step) is int), event.step - 1)


def _back(well: int, saved: Sequence[int], model: str | None) -> str:
    """The way back to a step, or to before it."""
    before = [step for step in saved if step <= well]
    if before:
        return f"go back to checkpoint-{before[-1]}, the last one before"
    start = f"start over from {model_title(model)}" if model else "start over"
    return f"{start} (no checkpoint was saved before this; save_steps sets how often one is)"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
