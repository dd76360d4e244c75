"""The essay's predictions as tests over the results of the experiments.

Every prediction is put so that a positive effect agrees with it. It is supported if its whole 95%
interval is above 0 and reaches what counts as an effect, contradicted if the whole interval is
below what counts as an effect, else undetermined. Where there is also an exchange test, only a
significant effect is supported. Those on the KL penalty have the verdicts of their trends. The
predictions are not corrected for being several. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from crystalmon.experiments.common.statistics import (
    CONTRADICTED,
    SIGNIFICANT,
    SUPPORTED,
    UNDETERMINED,
    Verdict,
    bounded_estimate,
    mean_of_known,
    spearman,
)
from crystalmon.runs.plurals import counted
from crystalmon.runs.results import Estimate, Result

LEAST_UNITS = 5
"""Instructions below which nothing is said."""
NOTABLE_CORRELATION = 0.1
NOTABLE_AREA = 0.01
"""Effects below these, though in the predicted direction, count as none."""


@dataclass(frozen=True)
class Prediction:
    """One prediction, tested.

    Args:
        claim: what is predicted.
        measure: what the effect is, and its unit.
        effect: with its 95% interval; positive agrees with the claim.
        verdict: `supported`, `contradicted` or `undetermined`.
        n: units behind it, instructions or runs.
        reason: one sentence.
    """

    claim: str
    measure: str
    effect: Estimate
    verdict: Verdict
    n: int
    reason: str


def judge_predictions(results: Sequence[Result]) -> dict[str, Prediction]:
    """All predictions by their keys, on what there is.

    Args:
        results: of `landscape`, `context`, `drift` and `sharpness`, on one model; the last one of
            each counts. What is missing leaves its predictions undetermined.
    """
    by_name = {result.experiment: result for result in results}
    found = {}
    for key, test in _TESTS.items():
        if absent := [name for name in test.needs if name not in by_name]:
            outcome = _unknown(f"no result of {' and '.join(absent)}")
        else:
            outcome = test.find(*(by_name[name] for name in test.needs))
        found[key] = Prediction(test.claim, test.measure, *outcome)
    return found


_Found = tuple[Estimate, Verdict, int, str]
"""Effect, verdict, n and reason; see `Prediction`."""


class _Test(NamedTuple):
    """A prediction that can be tested: its claim and measure, the results it needs, and how."""

    claim: str
    measure: str
    needs: tuple[str, ...]
    find: Callable[..., _Found]


def _unknown(reason: str) -> _Found:
    return Estimate(math.nan), UNDETERMINED, 0, reason


def judge(effect: Estimate, notable: float = 0.0) -> Verdict:
    """The verdict on an effect of which a positive one is predicted.

    >>> judge(Estimate(0.5, 0.2, 0.8)), judge(Estimate(0.5, -0.1, 0.8))
    ('supported', 'undetermined')

    Args:
        effect: with its interval; without one, nothing is determined.
        notable: the least effect that counts.
    """
    if not all(map(math.isfinite, (effect.value, effect.low, effect.high))):
        return UNDETERMINED
    if effect.high < notable or effect.high == effect.low == 0:
        return CONTRADICTED
    return SUPPORTED if effect.low > 0 else UNDETERMINED


def _correlation(
    pairs: Sequence[tuple[float, float]], sign: int, what: str, note: str = ""
) -> _Found:
    """Spearman's ρ times the predicted sign, bootstrapped over units."""
    count, effect = len(pairs), Estimate(math.nan)
    if count < LEAST_UNITS:
        reason = f"only {count} {what}, fewer than {LEAST_UNITS}"
    else:
        x, y = np.array(pairs, dtype=float).T
        effect = bounded_estimate(
            count, lambda units: sign * float(spearman(x[None, units], y[None, units])[0])
        )
        reason = f"ρ = {sign * effect.value:+.2f} over {count} {what}"
        if math.isnan(effect.value):
            reason = f"one of the two is the same in all of {count} {what}"
    return effect, judge(effect, NOTABLE_CORRELATION), count, reason + note


def _joined(
    first: Mapping[str, Any], key: str, second: Mapping[str, Any], other: str
) -> list[tuple[float, float]]:
    """(value, value) of the instructions that have both."""
    both = [(first[name].get(key), second[name].get(other)) for name in first if name in second]
    return [(x, y) for x, y in both if _known(x) and _known(y)]


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _energy_and_alpha(landscape: Result, context: Result) -> _Found:
    """α_c against F; an instruction that never flips ranks at the upper end."""
    energies, contexts = (each.detail["by_instruction"] for each in (landscape, context))
    pairs = _joined(energies, "free_energy", contexts, "alpha_c_at_least")
    never = sum(own["never_flips"] > 0 for own in contexts.values())
    absent = len(contexts) - len(pairs)
    note = f"; {never} not always broken up to α = 1, which counts as 1; {absent} left out"
    return _correlation(pairs, -1, "instructions", note)


def _energy_and_drift(landscape: Result, drift: Result) -> _Found:
    energies, drifts = (each.detail["by_instruction"] for each in (landscape, drift))
    return _correlation(_joined(energies, "free_energy", drifts, "slope"), 1, "instructions")


def _threshold(context: Result) -> _Found:
    shapes = context.detail["shapes"]
    best = shapes["best"]
    reason = (
        f"of {shapes['compared']} pairs that fall, best by BIC are {best['sigmoid']} sigmoids, "
        f"{best['step']} steps, {best['linear']} lines; decisive for a threshold "
        f"{shapes['threshold_decisive']}, for a line {shapes['line_decisive']}"
    )
    return _in_context(context, "bic_gain", reason)


def _hysteresis(context: Result) -> _Found:
    chance = _number(context.detail["p_values"]["hysteresis"])
    reason = (
        f"loop from α = 0 {context.estimates['area']}, from α = 1 "
        f"{context.estimates['reversed_area']}; p of both together {chance:.3g}"
    )
    return _in_context(context, "hysteresis", reason, NOTABLE_AREA, chance)


def _fluctuations(context: Result) -> _Found:
    chance = _number(context.detail["p_values"]["excess_spread"])
    effect = context.estimates["excess_spread"]
    reason = f"spread over orders near α_c less that elsewhere {effect}; p {chance:.3g}"
    return _in_context(context, "excess_spread", reason, chance=chance)


def _in_context(
    context: Result, key: str, reason: str, notable: float = 0.0, chance: float = 0.0
) -> _Found:
    """An estimate of the context experiment; with a p-value, it must be significant too."""
    effect = context.estimates[key]
    count = sum(_known(own[key]) for own in context.detail["by_instruction"].values())
    verdict = judge(effect, notable)
    if count < LEAST_UNITS or (verdict == SUPPORTED and not chance <= SIGNIFICANT):
        verdict = UNDETERMINED
    return effect, verdict, count, reason


def _sharper(key: str, sharpness: Result) -> _Found:
    """The correlation with β of one measure of the runs, times the predicted sign."""
    found = sharpness.detail["trends"][key]
    sign = found["predicted"]
    ends = sorted(sign * _number(end) for end in found["correlation_interval"])
    effect = Estimate(sign * _number(found["correlation"]), *ends)
    reason = f"over {counted(found['runs'], 'run')}, p {_number(found['p_value']):.3g}"
    return effect, found["verdict"], found["runs"], reason


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _drift(key: str, sign: int, drift: Result) -> _Found:
    """The mean of one of the drift's measures, times the predicted sign."""
    own = drift.detail["by_instruction"]
    known = np.array([v for each in own.values() if _known(v := each.get(key))], dtype=float)
    if not len(known):
        return _unknown(f"the result of drift has no {key.replace('_', ' ')}")
    effect = mean_of_known(sign * known)
    reason = f"so in {np.mean(sign * known > 0):.0%} of {counted(len(known), 'instruction')}"
    return effect, judge(effect), len(known), reason


_TESTS = {
    "free_energy_and_alpha_c": _Test(
        "the costlier an instruction, the less adversarial context breaks it",
        "−ρ(free energy, α_c)",
        ("landscape", "context"),
        _energy_and_alpha,
    ),
    "free_energy_and_drift": _Test(
        "the costlier an instruction, the faster it drifts",
        "ρ(free energy, drift slope)",
        ("landscape", "drift"),
        _energy_and_drift,
    ),
    "threshold": _Test(
        "compliance falls at a threshold, not along a line",
        "BIC of line − threshold",
        ("context",),
        _threshold,
    ),
    "hysteresis": _Test(
        "the way back differs from the way there",
        "hysteresis area",
        ("context",),
        _hysteresis,
    ),
    "fluctuations": _Test(
        "answers vary most near the threshold",
        "excess spread of log-odds [nats]",
        ("context",),
        _fluctuations,
    ),
    "penalty_and_heat_capacity": _Test(
        "a lower KL penalty makes the heat capacity larger",
        "−ρ(β, heat capacity)",
        ("sharpness",),
        partial(_sharper, "heat_capacity"),
    ),
    "penalty_and_width": _Test(
        "a lower KL penalty makes the transition narrower",
        "ρ(β, width)",
        ("sharpness",),
        partial(_sharper, "width"),
    ),
    "drift": _Test(
        "the model drifts away from its instruction",
        "slope [nats per token]",
        ("drift",),
        partial(_drift, "slope", 1),
    ),
    "relief": _Test(
        "repeating the instruction slows drift",
        "fall of slope [nats per token]",
        ("drift",),
        partial(_drift, "slope_change", -1),
    ),
}
