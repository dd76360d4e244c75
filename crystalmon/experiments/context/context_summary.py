"""Pairs of the context experiment pooled: estimates and tests.

Every estimate is a mean over instructions of means over their pairs. Instructions are the units of
every interval and test, since pairs of one instruction are not independent. Nothing here needs
torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crystalmon.analysis.transition import DECISIVE_BIC
from crystalmon.experiments.common.statistics import exchange_p, mean_of_known, sign_flip_p
from crystalmon.experiments.context.compliance import Status, excess_spread, gain_over_line
from crystalmon.runs.results import Estimate

STATUSES: tuple[Status, ...] = ("flips", "never_flips", "never_compliant", "not_finite")
SHAPES = ("linear", "sigmoid", "step")
MATCHES = 999
"""Random matches of instructions behind the p-value of the spread."""

_AREAS = ("hysteresis", "area", "reversed_area")

Pair = Mapping[str, Any]


def summarize(pairs: Sequence[Pair]) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Estimates and detail of the experiment's result.

    Args:
        pairs: by instruction, then adversary; see `compliance.describe_pair`.

    Returns:
        `alpha_c`, `slope` (of compliance, per unit of α), `width` (in α), `bic_gain` (of a
        threshold over a line), `excess_spread` (nats), `hysteresis`, `area`, `reversed_area` (of
        pairs whose answer ever changes), `flips` (the share of pairs), `compliance_0` and
        `compliance_1` (at the ends of α); and the detail, whose `by_instruction` other
        experiments are joined by.
    """
    values = [_values_of(pair) for pair in pairs]
    means = {key: _instruction_means(pairs, [own[key] for own in values]) for key in values[0]}
    censored = means.pop("alpha_c_at_least")
    estimates = {key: mean_of_known(list(found.values())) for key, found in means.items()}
    by_instruction: dict[str, dict[str, Any]] = {}
    for name, category in {pair["instruction"]: pair["category"] for pair in pairs}.items():
        mine = [pair["status"] for pair in pairs if pair["instruction"] == name]
        by_instruction[name] = {
            "category": category,
            **{key: found[name] for key, found in means.items() if key != "flips"},
            "alpha_c_at_least": censored[name],
            "pairs": len(mine),
            **{status: mine.count(status) for status in STATUSES},
        }
    by_status = {
        status: [f"{p['instruction']} × {p['adversary']}" for p in pairs if p["status"] == status]
        for status in STATUSES
    }
    detail = {
        "by_instruction": by_instruction,
        "statuses": by_status,
        "shapes": _shapes(pairs),
        "p_values": {
            **{key: sign_flip_p(np.array([*means[key].values()])) for key in _AREAS},
            "excess_spread": _spread_p(pairs),
        },
        "pairs": list(pairs),
    }
    return estimates, detail


def _values_of(pair: Pair) -> dict[str, float | None]:
    """What is averaged of a pair; None or NaN where it is not defined.

    `alpha_c_at_least` takes a pair that never flips at 1, the largest α there is. A pair in which
    one answer always wins has no areas: it would count as proof that nothing lags.
    """
    return {
        **{key: pair[key] for key in ("alpha_c", "slope", "width")},
        "bic_gain": gain_over_line(pair["bic"]) if pair["bic"] else None,
        "excess_spread": _excess_at(pair, pair["alpha_c"]),
        **{key: pair[key] if pair["switches"] else None for key in _AREAS},
        "flips": float(pair["status"] == "flips"),
        "compliance_0": pair["compliance"][0],
        "compliance_1": pair["compliance"][-1],
        "alpha_c_at_least": 1.0 if pair["status"] == "never_flips" else pair["alpha_c"],
    }


def _instruction_means(pairs: Sequence[Pair], values: Sequence[float | None]) -> dict[str, float]:
    """By instruction, the mean over its pairs of what is defined; NaN if nothing is."""
    found: dict[str, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        own = found.setdefault(pair["instruction"], [])
        if value is not None and math.isfinite(value):
            own.append(value)
    return {name: float(np.mean(own)) if own else math.nan for name, own in found.items()}


def _excess_at(pair: Pair, middle: float | None) -> float | None:
    """Spread near a place over that elsewhere; None if there is none, or the pair does not flip."""
    if middle is None or pair["alpha_c"] is None:
        return None
    alpha, spreads = (np.array(pair[key], dtype=float) for key in ("alpha", "spread"))
    return excess_spread(alpha, spreads, middle)


def _spread_p(pairs: Sequence[Pair]) -> float:
    """Whether the spread is larger near an instruction's own α_c than near another's.

    The spread may depend on α alone, as blocks of one kind have fewer orders; an exchange keeps
    that. Instructions are exchanged whole, each adversary's α_c with the same one's, since pairs of
    one instruction are alike.
    """
    middles = {(pair["instruction"], pair["adversary"]): pair["alpha_c"] for pair in pairs}
    names = list(dict.fromkeys(p["instruction"] for p in pairs if p["alpha_c"] is not None))

    def statistic(match: np.ndarray) -> float:
        other = {name: names[at] for name, at in zip(names, match, strict=True)}
        own = [middles.get((other.get(p["instruction"]), p["adversary"])) for p in pairs]
        excess = [_excess_at(pair, middle) for pair, middle in zip(pairs, own, strict=True)]
        found = [v for v in _instruction_means(pairs, excess).values() if math.isfinite(v)]
        return float(np.mean(found)) if found else math.nan

    return exchange_p(len(names), statistic, exchanges=MATCHES)


def _shapes(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs each shape fits best; how many say so decisively for or against a line."""
    compared = [pair for pair in pairs if pair["bic"]]
    gains = np.array([gain_over_line(pair["bic"]) for pair in compared])
    return {
        "compared": len(compared),
        "best": {shape: sum(p["shape"] == shape for p in compared) for shape in SHAPES},
        "threshold_decisive": int(np.sum(gains >= DECISIVE_BIC)),
        "line_decisive": int(np.sum(gains <= -DECISIVE_BIC)),
    }
