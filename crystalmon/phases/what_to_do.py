"""What to look at or do after an event, with the run's own checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crystalmon.runs.records import LIMIT_EVENT, Event

_BACK = "{back}, then train at a lower learning rate, on more varied data, or with a larger beta"
ADVICE = {
    "nucleation_onset": f"If you do not want that: {_BACK}.",
    "nucleation_complete": "Rewording no longer helps. Read samples.",
    "seed_locked": "Read the wording that won, and its answers in the base.",
    "recrystallization": "Read the wording that has taken over, and its answers in the base.",
    "seedless_collapse": "Look at the answers in your training data.",
    "support_leak": "Look at what the data, the reward or the preferences favour.",
    "melting": "Check that the new data ask for it.",
    "format_drift": "Read samples: what is written instead of the listed answers?",
    "entropy_collapse": (
        "Read several samples of one prompt. In RL, {back}, then sample at a higher temperature or "
        "give a bonus for entropy."
    ),
    "free_energy_jump": (
        "Look at reward, gradient norm and learning rate at this step. If samples are worse: "
        "{back}."
    ),
}
"""By kind of event; `early_warning` asks for nothing yet. `{back}` names a checkpoint."""


def advise(events: Iterable[Event], saved: Sequence[int]) -> dict[str, str]:
    """By kind of event, in the order in which they came first, what to do.

    Args:
        events: of one training.
        saved: the steps of its checkpoints, ascending.
    """
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.kind, event)
    found = {}
    for kind, event in first.items():
        words = ADVICE.get(kind, "")
        if kind.endswith(LIMIT_EVENT):
            words = "You set this limit: {back}, or set another."
        if words:
            found[kind] = _capital(words.format(back=_back(event, saved)))
    return found


def _back(event: Event, saved: Sequence[int]) -> str:
    """The way back to before an event: to the last probe at which all was well, or earlier."""
    since = event.evidence.get("since", event.step - 1)
    (well, *_) = event.evidence.get("onset_interval", (since,))
    before = [step for step in saved if step <= well]
    if before:
        return f"go back to checkpoint-{before[-1]}, the last one before"
    return "start over (no checkpoint from before is there; save_steps sets how often one is saved)"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
