"""The essay's predictions as tests over the results of the experiments.

Every prediction is put so that a positive effect agrees with it. It is supported if the whole 95%
interval is above 0, and not all of it under what counts as an effect; contradicted if the whole
interval is under that; else undetermined. Where there is a test by exchange, what it leaves to
chance is not supported. Those on the KL penalty have the verdicts of `trends`. The predictions are
not corrected for being several. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from crystalmon.experiments.compliance import array
from crystalmon.experiments.context_summary import mean_of_known
from crystalmon.experiments.resampling import estimate
from crystalmon.experiments.result import Estimate, Result
from crystalmon.experiments.trends import spearman
from crystalmon.records import json_value

SUPPORTED, CONTRADICTED, UNDETERMINED = "supported", "contradicted", "undetermined"
Outcome = Literal["supported", "contradicted", "undetermined"]

LEAST_UNITS = 5
"""Instructions or runs below which nothing is said."""
NOTABLE_CORRELATION = 0.1
NOTABLE_AREA = 0.01
"""Effects below these, though in the predicted direction, count as none."""
SIGNIFICANT = 0.05

Results = Mapping[str, Result]


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
    verdict: Outcome
    n: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return json_value({**asdict(self), "effect": self.effect.to_json()})


def judge_predictions(results: Sequence[Result]) -> tuple[Prediction, ...]:
    """All predictions, on what there is.

    Args:
        results: of `landscape`, `context`, `drift` and `sharpness`, on one model; the last one of
            each counts. What is missing leaves its predictions undetermined.
    """
    by_name = {result.experiment: result for result in results}
    return tuple(test(by_name) for test in _TESTS)


def judge(effect: Estimate, notable: float = 0.0) -> Outcome:
    """The verdict on an effect of which a positive one is predicted.

    Args:
        effect: with its interval; without one, nothing is determined.
        notable: the least effect that counts.
    """
    if not all(map(math.isfinite, (effect.value, effect.low, effect.high))):
        return UNDETERMINED
    if effect.high < notable or effect.high == effect.low == 0:
        return CONTRADICTED
    return SUPPORTED if effect.low > 0 else UNDETERMINED


def _missing(claim: str, measure: str, results: Results, needed: Sequence[str]) -> Prediction:
    absent = [name for name in needed if name not in results]
    reason = f"no result of {' and '.join(absent)}"
    return Prediction(claim, measure, Estimate(math.nan), UNDETERMINED, 0, reason)


def _correlation(
    claim: str,
    measure: str,
    pairs: Sequence[tuple[float, float]],
    sign: int,
    what: str,
    note: str = "",
) -> Prediction:
    """Spearman's ρ times the predicted sign, bootstrapped over units."""
    x, y = (array([pair[side] for pair in pairs]) for side in (0, 1))
    effect = Estimate(math.nan)
    if len(pairs) >= LEAST_UNITS:
        effect = estimate(
            len(pairs), lambda units: sign * float(spearman(x[None, units], y[None, units])[0])
        )
    if len(pairs) < LEAST_UNITS:
        reason = f"only {len(pairs)} {what}, fewer than {LEAST_UNITS}"
    elif math.isnan(effect.value):
        reason = f"one of the two is the same in all of {len(pairs)} {what}"
    else:
        reason = f"ρ = {sign * effect.value:+.2f} over {len(pairs)} {what}"
    verdict = judge(effect, NOTABLE_CORRELATION)
    return Prediction(claim, measure, effect, verdict, len(pairs), reason + note)


def _joined(
    first: Mapping[str, Any], key: str, second: Mapping[str, Any], other: str
) -> list[tuple[float, float]]:
    """(value, value) of the instructions that have both."""
    both = [(first[name].get(key), second[name].get(other)) for name in first if name in second]
    return [(x, y) for x, y in both if _known(x) and _known(y)]


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _energy_and_alpha(results: Results) -> Prediction:
    """α_c against F; an instruction that never flips ranks at the upper end."""
    claim = "the costlier an instruction, the less adversarial context breaks it"
    measure = "−ρ(free energy, α_c)"
    if not {"landscape", "context"} <= set(results):
        return _missing(claim, measure, results, ("landscape", "context"))
    energies, contexts = (results[name].detail["by_instruction"] for name in _JOINED)
    pairs = _joined(energies, "free_energy", contexts, "alpha_c_at_least")
    never = sum(own["never_flips"] > 0 for own in contexts.values())
    absent = len(contexts) - len(pairs)
    note = f"; {never} not always broken up to α = 1, which counts as 1; {absent} left out"
    return _correlation(claim, measure, pairs, -1, "instructions", note)


_JOINED = ("landscape", "context")


def _energy_and_drift(results: Results) -> Prediction:
    claim = "the costlier an instruction, the faster it drifts"
    measure = "ρ(free energy, drift slope)"
    if not {"landscape", "drift"} <= set(results):
        return _missing(claim, measure, results, ("landscape", "drift"))
    energies, drifts = (results[name].detail["by_instruction"] for name in ("landscape", "drift"))
    pairs = _joined(energies, "free_energy", drifts, "slope")
    return _correlation(claim, measure, pairs, 1, "instructions")


def _threshold(results: Results) -> Prediction:
    claim = "compliance falls at a threshold, not along a line"
    measure = "BIC of line − threshold"
    if "context" not in results:
        return _missing(claim, measure, results, ("context",))
    result = results["context"]
    shapes, effect = result.detail["shapes"], result.estimates["bic_gain"]
    best = shapes["best"]
    reason = (
        f"of {shapes['compared']} pairs that fall, best by BIC are {best['sigmoid']} sigmoids, "
        f"{best['step']} steps, {best['linear']} lines; decisive for a threshold "
        f"{shapes['threshold_decisive']}, for a line {shapes['line_decisive']}"
    )
    count = _count(result, "bic_gain")
    return Prediction(claim, measure, effect, _enough(count, judge(effect)), count, reason)


def _hysteresis(results: Results) -> Prediction:
    claim = "the way back differs from the way there"
    measure = "hysteresis area"
    if "context" not in results:
        return _missing(claim, measure, results, ("context",))
    result = results["context"]
    effect, chance = result.estimates["hysteresis"], _chance(result, "hysteresis")
    reason = (
        f"loop from α = 0 {result.estimates['area']}, from α = 1 "
        f"{result.estimates['reversed_area']}; p of both together {chance:.3g}"
    )
    count = _count(result, "hysteresis")
    verdict = _enough(count, _also_by_chance(judge(effect, NOTABLE_AREA), chance))
    return Prediction(claim, measure, effect, verdict, count, reason)


def _fluctuations(results: Results) -> Prediction:
    claim = "answers vary most near the threshold"
    measure = "excess spread of log-odds [nats]"
    if "context" not in results:
        return _missing(claim, measure, results, ("context",))
    result = results["context"]
    effect, chance = result.estimates["excess_spread"], _chance(result, "excess_spread")
    count = _count(result, "excess_spread")
    reason = f"spread over orders near α_c less that elsewhere {effect}; p {chance:.3g}"
    verdict = _enough(count, _also_by_chance(judge(effect), chance))
    return Prediction(claim, measure, effect, verdict, count, reason)


def _sharper(key: str, claim: str) -> Callable[[Results], Prediction]:
    def test(results: Results) -> Prediction:
        if "sharpness" not in results:
            return _missing(claim, f"ρ(β, {key.replace('_', ' ')})", results, ("sharpness",))
        found = results["sharpness"].detail["trends"][key]
        sign = found["predicted"]
        measure = f"{'−' if sign < 0 else ''}ρ(β, {key.replace('_', ' ')})"
        ends = sorted(sign * _number(end) for end in found["correlation_interval"])
        effect = Estimate(sign * _number(found["correlation"]), *ends)
        reason = f"over {found['runs']} runs, p {_number(found['p_value']):.3g}"
        return Prediction(claim, measure, effect, found["verdict"], found["runs"], reason)

    return test


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _drift(key: str, sign: int, claim: str, measure: str) -> Callable[[Results], Prediction]:
    """The mean of one of the drift's figures, times the predicted sign."""

    def test(results: Results) -> Prediction:
        if "drift" not in results:
            return _missing(claim, measure, results, ("drift",))
        own = results["drift"].detail["by_instruction"]
        known = array([v for each in own.values() if _known(v := each.get(key))])
        if not len(known):
            reason = f"the result of drift has no {key.replace('_', ' ')}"
            return Prediction(claim, measure, Estimate(math.nan), UNDETERMINED, 0, reason)
        effect = mean_of_known(sign * known)
        share = np.mean(sign * known > 0)
        reason = f"so in {share:.0%} of {len(known)} instructions"
        return Prediction(claim, measure, effect, judge(effect), len(known), reason)

    return test


def _count(result: Result, key: str) -> int:
    """Instructions that have a figure."""
    return sum(_known(own[key]) for own in result.detail["by_instruction"].values())


def _chance(result: Result, key: str) -> float:
    return _number(result.detail["p_values"][key])


def _enough(count: int, verdict: Outcome) -> Outcome:
    return verdict if count >= LEAST_UNITS else UNDETERMINED


def _also_by_chance(verdict: Outcome, chance: float) -> Outcome:
    """A prediction that has a permutation test must pass it too."""
    return UNDETERMINED if verdict == SUPPORTED and not chance <= SIGNIFICANT else verdict


_TESTS: tuple[Callable[[Results], Prediction], ...] = (
    _energy_and_alpha,
    _energy_and_drift,
    _threshold,
    _hysteresis,
    _fluctuations,
    _sharper("heat_capacity", "a lower KL penalty makes the heat capacity larger"),
    _sharper("width", "a lower KL penalty makes the transition narrower"),
    _drift("slope", 1, "the model drifts away from its instruction", "slope [nats per token]"),
    _drift(
        "slope_change",
        -1,
        "repeating the instruction slows drift",
        "fall of slope [nats per token]",
    ),
)


def format_predictions(predictions: Sequence[Prediction]) -> str:
    """A table: claim, effect with interval, n, verdict; under each line its reason."""
    width = max((len(each.claim) for each in predictions), default=0)
    measure = max((len(each.measure) for each in predictions), default=0)
    lines = []
    for each in predictions:
        effect = "–" if np.isnan(each.effect.value) else str(each.effect)
        lines.append(
            f"{each.claim:<{width}}  {each.verdict:<12}  n {each.n:>3}  "
            f"{each.measure:<{measure}}  {effect}"
        )
        lines.append(f"    {each.reason}")
    return "\n".join(lines)
