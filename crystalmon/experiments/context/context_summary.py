"""Pairs of the context experiment pooled: estimates and tests.

Every estimate is a mean over instructions of means over their pairs. Instructions are the units of
every interval and test, since pairs of one instruction are not independent. Nothing here needs
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    own: dict[str, Callable[[Pair], float]] = {
        **{key: _reader(key) for key in ("alpha_c", "slope", "width")},
        "bic_gain": lambda pair: gain_over_line(pair["bic"]) if pair["bic"] else math.nan,
        "excess_spread": lambda pair: _excess_at(pair, pair["alpha_c"]),
        **{key: _where_it_switches(key) for key in _AREAS},
        "flips": lambda pair: float(pair["status"] == "flips"),
        "compliance_0": lambda pair: pair["compliance"][0],
        "compliance_1": lambda pair: pair["compliance"][-1],
    }
    means = {key: instruction_means(pairs, read) for key, read in own.items()}
    estimates = {key: mean_of_known(list(found.values())) for key, found in means.items()}
    by_status = {
        status: [f"{p['instruction']} × {p['adversary']}" for p in pairs if p["status"] == status]
        for status in STATUSES
    }
    detail = {
        "by_instruction": _by_instruction(pairs, means),
        "statuses": by_status,
        "shapes": _shapes(pairs),
        "p_values": {
            **{key: sign_flip_p(np.array([*means[key].values()])) for key in _AREAS},
            "excess_spread": _spread_p(pairs),
        },
        "pairs": list(pairs),
    }
    return estimates, detail


def instruction_means(pairs: Sequence[Pair], read: Callable[[Pair], float]) -> dict[str, float]:
    """By instruction, the mean over its pairs of what is defined; NaN if nothing is."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair["instruction"], []).append(read(pair))
    finite = {key: [v for v in values if math.isfinite(v)] for key, values in found.items()}
    return {key: float(np.mean(v)) if v else math.nan for key, v in finite.items()}


def _reader(key: str) -> Callable[[Pair], float]:
    return lambda pair: math.nan if pair[key] is None else float(pair[key])


def _where_it_switches(key: str) -> Callable[[Pair], float]:
    """Pairs in which one answer always wins would count as proof that nothing lags."""
    read = _reader(key)
    return lambda pair: read(pair) if pair["switches"] else math.nan


def _excess_at(pair: Pair, middle: float | None) -> float:
    """Spread near a place over that elsewhere; NaN if there is none, or the pair does not flip."""
    if middle is None or pair["alpha_c"] is None:
        return math.nan
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

        def read(pair: Pair) -> float:
            source = other.get(pair["instruction"])
            return _excess_at(pair, middles.get((source, pair["adversary"])))

        found = [v for v in instruction_means(pairs, read).values() if math.isfinite(v)]
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


def _by_instruction(
    pairs: Sequence[Pair], means: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Of each instruction: means over its pairs, and how many of them did what.

    `alpha_c_at_least` takes a pair that never flips at 1, the largest α there is.
    """
    censored = instruction_means(pairs, _at_least)
    found: dict[str, dict[str, Any]] = {}
    categories = {pair["instruction"]: pair["category"] for pair in pairs}
    for name, category in categories.items():
        mine = [each["status"] for each in pairs if each["instruction"] == name]
        found[name] = {
            "category": category,
            **{key: values[name] for key, values in means.items() if key != "flips"},
            "alpha_c_at_least": censored[name],
            "pairs": len(mine),
            **{status: mine.count(status) for status in STATUSES},
        }
    return found


def _at_least(pair: Pair) -> float:
    return 1.0 if pair["status"] == "never_flips" else _reader("alpha_c")(pair)
