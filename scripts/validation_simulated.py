"""Run the detector and its rivals over simulated histories; one `Outcome` a scenario."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ruptures
from scenarios import NULL_ORDER, TRUE_ONSET, Scenario, orders
from validation_sets import Look, find_looks

from crystalmon.analysis.transition import classify_transition
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import nearest_seed, noise_floor
from crystalmon.phases import PhaseDetector
from crystalmon.phases.seed_fit import Candidates
from crystalmon.phases.seed_set import Members

BASELINES = ("bare threshold", "Page-Hinkley", "ruptures Pelt", "ruptures Binseg")
NEVER = 99
"""The delay of what was not found, in probes."""
COLLAPSES = {
    "complete": ("collapse, abrupt", "collapse, gradual", "collapse, prompt by prompt"),
    "partial": ("partial",),
    "seedless": ("seedless", "seedless, partial"),
}
"""By group of `validation_sets`, the kinds of scenario in which nothing follows the collapse."""
AFTERWARDS = {"takeover": {"support_leak"}, "melting": {"support_leak"}}
"""Events that are no mistake in a kind, though not required: on its way to another seed a crystal
may well leave the first one's support."""


@dataclass(frozen=True)
class Outcome:
    """What one scenario came to.

    Args:
        scenario: its kind, family, hold-out and truth.
        false_events: kinds of event that were raised and ought not.
        delay: of the onset in probes, `NEVER` if it was not found.
        covered: whether the onset's interval holds the true probe; None without an onset.
        width: of that interval, in probes.
        seed: the last seed held, or None.
        seed_right: whether it is the planted one or within its noise floor.
        nearest_right: the same of the nearest base prompt at the last probe.
        seedless: whether `seedless_collapse` was raised.
        found: kind of event -> its delay in probes, of those expected after the onset.
        lead: probes from an early warning to the onset; None without one.
        phase_right: whether the last phase is the true one.
        verdict: of the kinetics.
        rivals: baseline -> its delay in probes; in a null, `NEVER` if it keeps silent.
        looks: at the seed sets of a collapse after which nothing else happens.
    """

    scenario: Scenario = field(repr=False)
    false_events: tuple[str, ...]
    delay: int
    covered: bool | None
    width: float
    seed: int | None
    seed_right: bool
    nearest_right: bool
    seedless: bool
    found: Mapping[str, int]
    lead: int | None
    phase_right: bool
    verdict: str
    rivals: Mapping[str, int]
    looks: list[Look] = field(repr=False)


def judge(scenario: Scenario, page_hinkley: float) -> Outcome:
    """Run everything on one scenario."""
    detector = PhaseDetector(scenario.base)
    events: dict[str, list[Any]] = defaultdict(list)
    seed: int | None = None
    sets = []
    probe = {int(step): index for index, step in enumerate(scenario.steps)}
    for step, q, coverage in zip(
        scenario.steps.tolist(), scenario.q, scenario.coverage.tolist(), strict=True
    ):
        for event in detector.update(step, q, coverage=coverage):
            events[event.kind].append(event)
        seed = detector.seed if detector.seed is not None else seed
        sets.append(detector.seed_set)
    clean, seen = orders(scenario.clean, scenario.base), orders(scenario.q, scenario.base)
    early = int(np.argmax(clean >= NULL_ORDER)) if (clean >= NULL_ORDER).any() else NEVER
    onsets = [event for event in events["nucleation_onset"] if probe[event.step] >= early]
    delay, covered, width = NEVER, None, float("nan")
    if scenario.onset is not None and onsets:
        delay = probe[onsets[0].step] - scenario.onset
        low, high = onsets[0].evidence["onset_interval"]
        covered = bool(low <= scenario.steps[scenario.onset] <= high)
        width = (high - low) / float(scenario.steps[1] - scenario.steps[0])
    found = {
        kind: next((probe[e.step] - at for e in events[kind] if probe[e.step] >= at), NEVER)
        for kind, at in scenario.expected.items()
    }
    lead = None
    if scenario.onset is not None and events["early_warning"]:
        lead = scenario.onset - probe[events["early_warning"][0].step]
    return Outcome(
        scenario=scenario,
        false_events=_false_events(scenario, events, clean),
        delay=delay,
        covered=covered,
        width=width,
        seed=seed,
        seed_right=_is_right(scenario, seed),
        nearest_right=_is_right(scenario, nearest_seed(scenario.q[-1], scenario.base)),
        seedless=bool(events["seedless_collapse"]),
        found=found,
        lead=lead,
        phase_right=detector.phase == scenario.phase,
        verdict=classify_transition(scenario.steps, seen).verdict if scenario.tempo else "",
        rivals=_rivals(scenario, seen, page_hinkley),
        looks=_looks(
            scenario, sets, {k: probe[some[0].step] for k, some in events.items() if some}
        ),
    )


def _looks(scenario: Scenario, sets: list[Members], first: Mapping[str, int]) -> list[Look]:
    groups = {kind: group for group, kinds in COLLAPSES.items() for kind in kinds}
    if scenario.kind not in groups:
        return []
    seed = scenario.seed
    right = None if seed is None else Candidates.of(scenario.base).twins(seed)
    return find_looks(groups[scenario.kind], scenario.q, right, sets, list(first.items()))


def _false_events(
    scenario: Scenario, events: Mapping[str, list[Any]], clean: np.ndarray
) -> tuple[str, ...]:
    """Kinds raised that are not true of the scenario, or raised twice.

    Whether answers may have become sure is another question; `validation_trained` asks it.
    """
    allowed = {"entropy_collapse"} | set(scenario.expected) | AFTERWARDS.get(scenario.kind, set())
    if not scenario.is_null:
        allowed.add("early_warning")
        if clean.max() > 0.75:  # rests at the bound of completion, or beyond it
            allowed.add("nucleation_complete")
    wrong = {kind for kind, raised in events.items() if raised and kind not in allowed}
    return tuple(sorted(wrong | {kind for kind, raised in events.items() if len(raised) > 1}))


def _is_right(scenario: Scenario, seed: int | None) -> bool:
    if scenario.seed is None or seed is None:
        return False
    base = scenario.base
    apart = js_divergence(base[seed], base[scenario.seed])
    return seed == scenario.seed or bool(apart < noise_floor(base, scenario.seed))


def page_hinkley_peak(values: np.ndarray) -> np.ndarray:
    """[S] running Page–Hinkley statistic for a rise, with a tolerance of 0.01."""
    mean = np.cumsum(values) / np.arange(1, len(values) + 1)
    drift = np.cumsum(values - mean - 0.01)
    return drift - np.minimum.accumulate(drift)


def _rivals(scenario: Scenario, seen: np.ndarray, page_hinkley: float) -> dict[str, int]:
    """Delay of each baseline's first alarm; offline ones are given the whole history."""
    alarms: dict[str, int | None] = {
        "bare threshold": _first(seen >= TRUE_ONSET),
        "Page-Hinkley": _first(page_hinkley_peak(seen) >= page_hinkley),
    }
    noise = max(float(np.median(np.abs(np.diff(seen)))) / 0.6745 / 2**0.5, 0.005)
    penalty = 3 * np.log(len(seen)) * noise**2
    signal = seen[:, None]
    for name, method in (("ruptures Pelt", ruptures.Pelt), ("ruptures Binseg", ruptures.Binseg)):
        found = method(model="l2", min_size=2, jump=1).fit(signal).predict(pen=penalty)
        alarms[name] = next(
            (int(cut) for cut in found[:-1] if seen[cut : cut + 4].mean() >= 0.5 * (0.1 + 0.2)),
            None,
        )
    onset = 0 if scenario.onset is None else scenario.onset
    return {name: NEVER if at is None else at - onset for name, at in alarms.items()}


def _first(mask: np.ndarray) -> int | None:
    return int(np.argmax(mask)) if mask.any() else None
