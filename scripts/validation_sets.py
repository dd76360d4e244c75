"""Whether seed sets hold the truth, and how large they are, by what became of a collapse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crystalmon.phases.seed_set import Members

GROUPS = ("complete", "partial", "seedless")
PLACES = ("onset", "completion", "end")
SEVERAL = 6
"""Choices from which the set should come down to one seed."""

Line = tuple[str, str, str, list[bool]]
"""Label, key, bound and hits of one promise."""


@dataclass(frozen=True)
class Look:
    """A collapse's set at one place.

    Args:
        group, place: of `GROUPS` and `PLACES`.
        members: of the set.
        right: [P] by base prompt, whether it is the planted seed or its twin; None without one.
        choices: C.
        waited: probes from where the set came down to one member to the verdict on it; None
            without a verdict.
    """

    group: str
    place: str
    members: Members
    right: np.ndarray | None
    choices: int
    waited: int | None

    @property
    def holds_truth(self) -> bool:
        """Whether the planted seed, a twin of it, or none of them is a member."""
        if self.right is None:
            return None in self.members
        return any(member is not None and self.right[member] for member in self.members)


def find_looks(
    group: str,
    q: np.ndarray,
    right: np.ndarray | None,
    sets: Sequence[Members],
    events: Sequence[tuple[str, int]],
) -> list[Look]:
    """Of one collapse [S, P, C], by its sets [S] and events (kind, probe)."""
    probes = {"end": len(sets) - 1}
    for place, kind in (("onset", "nucleation_onset"), ("completion", "nucleation_complete")):
        found = [at for name, at in events if name == kind]
        probes |= {place: min(found)} if found else {}
    waited = _waited(sets, events)
    return [
        Look(group, place, sets[at], right, q.shape[2], waited)
        for place, at in probes.items()
        if sets[at]
    ]


def _waited(sets: Sequence[Members], events: Sequence[tuple[str, int]]) -> int | None:
    """How many probes the set had its last member alone before the first verdict on it."""
    verdicts = [at for name, at in events if name in ("seed_locked", "seedless_collapse")]
    if not verdicts:
        return None
    at = first = min(verdicts)
    while first > 0 and sets[first - 1] == sets[at - 1]:
        first -= 1
    return at - first


def set_lines(looks: Sequence[Look]) -> Iterator[Line]:
    """Coverage by group and place, and how often one member is left."""
    for group in GROUPS:
        for place in PLACES:
            some = [look for look in looks if (look.group, look.place) == (group, place)]
            key, held = f"set/{group}/{place}", [look.holds_truth for look in some]
            yield f"{group}: truth in the set at the {place}", key, "≥95", held
            yield "… one member left", f"{key}/one", "", [len(look.members) == 1 for look in some]


def set_numbers(looks: Sequence[Look]) -> Iterator[tuple[str, str, float, float | None]]:
    """(label, key, median, bound): sizes by group and place, with `SEVERAL` choices; waits."""
    for group in GROUPS:
        for place in PLACES:
            sizes = [
                len(look.members)
                for look in looks
                if (look.group, look.place) == (group, place) and look.choices >= SEVERAL
            ]
            if sizes:
                bound = 1.0 if (group, place) == ("complete", "end") else None
                label = f"{group}: median size of the set at the {place}"
                yield label, f"size/{group}/{place}", float(np.median(sizes)), bound
    for group in GROUPS:
        ends = [look for look in looks if (look.group, look.place) == (group, "end")]
        waits = [look.waited for look in ends if look.waited is not None]
        if waits:
            label = f"{group}: median of probes from one member to the verdict"
            yield label, f"waited/{group}", float(np.median(waits)), None
