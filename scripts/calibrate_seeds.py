"""Fit weights and bounds of the seed set to collapses whose end was planted.

The simulated collapses come from another bank than the reported one; the trained ones are of
`liquid-tiny`, the reported ones of another model. Prints the weights as they stand in
`crystalmon/phases/seed_odds.py` and, by these as they stand there, the bounds of
`crystalmon/phases/seed_set.py`. If it finds other weights, write them there and run it again.

    python scripts/calibrate_seeds.py    # ten minutes; the first call trains 38 runs, 15 more
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
from scenarios import make_scenario, orders
from scipy.optimize import minimize
from scipy.special import expit
from tqdm.auto import tqdm
from trained_bank import CALIBRATED, prepare_environment

from crystalmon import read_run
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.phases.seed import DONE, NEARLY, REST
from crystalmon.phases.seed_fit import Candidates, gather, mean_answers
from crystalmon.phases.seed_odds import FEATURES, TELLING, Evidence
from crystalmon.phases.seed_set import LEVEL, MOVING, RESTING_AT, bound_of
from crystalmon.phases.state import LEAST_NOISE, RESTING

CALIBRATION_SEED = 1
SIMULATED = {
    "partial": ("partial", 300),
    "seedless, partial": ("seedless", 300),
    "seedless": ("seedless", 150),
    "collapse, abrupt": ("complete", 100),
    "collapse, gradual": ("complete", 100),
    "collapse, prompt by prompt": ("complete", 100),
}
"""By kind of scenario, the group that it is weighted in, and how many."""
BACK = (0, 4)
"""Probes before the last at which each collapse is looked at for the weights, at rest or not."""
FEW = (2, 4, 8)
"""Of how many prompts a partial probe may be."""
LEAST = 10
"""Cases of a source from which it has a bound of its own."""
SIGNS = (1, 1, -1, -1, -1, -1, 0)
"""Of the weights of `FEATURES`: what speaks for a seed must not count against it."""
PENALTY = 1e-3
"""On the squares of the weights."""


@dataclass(frozen=True)
class History:
    """One collapse.

    Args:
        source: simulated or trained.
        group: complete, partial or seedless.
        q: [S, P, C] the answers, the base's first.
        b: [P, C] the base's.
        seed: what was planted, or None.
    """

    source: str
    group: str
    q: np.ndarray = field(repr=False)
    b: np.ndarray = field(repr=False)
    seed: int | None

    @cached_property
    def orders(self) -> np.ndarray:
        """[S] of the probes."""
        return orders(self.q, self.b)

    def rests(self, at: int) -> bool:
        """Whether the collapse has come to rest by a probe; see `phases.seed`."""
        recent = self.orders[max(0, at - RESTING + 1) : at + 1]
        still = np.ptp(recent) < REST + 2 * LEAST_NOISE
        return bool(len(recent) == RESTING and recent.min() >= ONSET and still)


@dataclass(frozen=True)
class Case:
    """One collapse at one probe.

    Args:
        source, group: of the collapse; cases of a group share one unit of weight.
        evidence: of each of K candidates.
        between: [K, K] whether one is the other's twin.
        right: [K] whether it is the planted seed or its twin; None if there is none.
        at_rest: whether the collapse is, or is over.
    """

    source: str
    group: str
    evidence: Evidence
    between: np.ndarray
    right: np.ndarray | None
    at_rest: bool

    def features(self, choosing: np.ndarray) -> tuple[int, np.ndarray]:
        """Index of the candidate by these weights, and its features [7]."""
        costs = self.evidence.terms() @ choosing
        best = int(np.lexsort((self.evidence.pooled, costs))[0])
        return best, self.evidence.features(best, ~self.between[best])

    def cell(self) -> tuple[bool, bool, int]:
        """Which bound is its own."""
        bound = bound_of(self.evidence.order, self.at_rest)
        return self.evidence.tells, self.evidence.whole, bound

    def truth(self) -> float:
        """The probability of what is true, by the weights as they stand."""
        _, shared, none = self.evidence.probabilities(self.between)
        if self.right is None:
            return none
        return float(shared[self.right].max(initial=0.0))


def look(history: History, at: int, asked: np.ndarray | None = None) -> Case:
    """A collapse as the detector sees it at one probe, of all prompts or of those asked."""
    candidates = Candidates.of(history.b)
    rows = np.arange(len(history.b)) if asked is None else asked
    recent, order = history.q[max(0, at - RESTING + 1) : at + 1], history.orders[at]
    averaged = history.rests(at) and order < NEARLY
    q = mean_answers(recent[:, rows]) if averaged else recent[-1][rows]
    listed, evidence, _ = gather(candidates, q, asked)
    between = np.stack([candidates.twins(k)[listed] for k in listed])
    right = None if history.seed is None else candidates.twins(history.seed)[listed]
    at_rest = history.rests(at) or order >= DONE
    return Case(history.source, history.group, evidence, between, right, at_rest)


def looks(history: History, rng: np.random.Generator) -> Iterator[Case]:
    """Of each bound's probes the first, with all prompts asked and with a few.

    Those count that are past the onset: at least the second over its bound in succession.
    """
    order = history.orders
    first: dict[int, int] = {}
    past = np.flatnonzero((order[1:] >= ONSET) & (order[:-1] >= ONSET)) + 1
    for at in past.tolist():
        at_rest = history.rests(at) or order[at] >= DONE
        first.setdefault(bound_of(float(order[at]), bool(at_rest)), at)
    sizes = [size for size in FEW if size < len(history.b)]
    few = nested_subsets(history.b, sizes)
    for at in first.values():
        yield look(history, at)
        if sizes:
            yield look(history, at, few[int(rng.choice(sizes))])


def simulated(most: int) -> Iterator[History]:
    """Of the bank that is not reported, at most so many scenarios of each kind.

    Few choices are rare in it: four times as many are drawn of these.
    """
    for kind, (group, count) in SIMULATED.items():
        count = min(count, most)
        for index in range(4 * count):
            found = make_scenario(kind, CALIBRATION_SEED * 10**6 + index)
            if index >= count and found.base.shape[1] >= TELLING:
                continue
            yield History("simulated", group, found.q, found.base, found.seed)


def trained(count: int | None) -> Iterator[History]:
    """Of the first `count` runs that are not reported; all if None."""
    for folder in CALIBRATED.train(count):
        truth = json.loads((folder / "truth.json").read_text())
        stage = truth["stages"][0]
        records = read_run(folder / stage["folder"]).records
        for name, first in records[0].tasks.items():
            if not truth["targets_0"].get(name):
                continue
            q = np.stack([record.tasks[name].q for record in records])
            seed = truth["seeds"][name] if stage["goal"] == "seed" else None
            whole = orders(q, first.q)[-1] >= COMPLETE
            group = "seedless" if seed is None else "complete" if whole else "partial"
            yield History("trained", group, q, first.q, seed)


def fit_choosing(cases: list[Case], counts: Counter[tuple[str, str]]) -> np.ndarray:
    """[4] weights of the cost: softmax(−cost) is the probability of each candidate."""
    known = [
        (case.evidence.terms(), case.right, 1 / counts[case.source, case.group])
        for case in cases
        if case.right is not None and case.right.any()
    ]

    def loss(weights: np.ndarray) -> float:
        total = PENALTY * float(weights @ weights)
        for terms, right, weight in known:
            costs = -(terms @ weights)
            costs = np.exp(costs - costs.max())
            total -= weight * float(np.log(max(costs[right].sum() / costs.sum(), 1e-9)))
        return total

    return minimize(loss, np.full(4, 0.5), method="L-BFGS-B").x


def fit_believing(
    cases: list[Case], counts: Counter[tuple[str, str]], choosing: np.ndarray
) -> np.ndarray:
    """[7] weights of the log-odds, by logistic regression."""
    x = np.array([case.features(choosing)[1] for case in cases])
    y = np.array([case.right is not None for case in cases], dtype=float)
    w = np.array([1 / counts[case.source, case.group] for case in cases])
    w /= np.where(y, w[y == 1].sum(), w[y == 0].sum())  # as many with a seed as without

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = x @ weights
        value = w @ (np.logaddexp(0, odds) - y * odds) + PENALTY * float(weights @ weights)
        return float(value), x.T @ (w * (expit(odds) - y)) + 2 * PENALTY * weights

    bounds = [(0 if sign > 0 else None, 0 if sign < 0 else None) for sign in SIGNS]
    start = np.zeros(len(FEATURES))
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x


def show_rates(cases: list[Case], choosing: np.ndarray, believing: np.ndarray) -> None:
    """By source and group: the right candidate, and on which side of even the odds are."""
    for key in sorted({(case.source, case.group) for case in cases}):
        some = [case for case in cases if (case.source, case.group) == key]
        found = [case.features(choosing) for case in some]
        right = [
            case.right is not None and bool(case.right[best])
            for case, (best, _) in zip(some, found, strict=True)
        ]
        odds = np.array([features @ believing for _, features in found])
        named = "" if some[0].right is None else f", right candidate {np.mean(right):.1%}"
        print(
            f"  {', '.join(key):<20} {len(some):>5} cases: a seed {np.mean(odds > 0):6.1%}{named}"
        )


def bound(cases: Sequence[Case]) -> float | None:
    """The least probability that leaves the truth of `LEVEL` of cases in, in either source.

    It is the ⌊(1 − LEVEL)(n + 1)⌋-th smallest of n, of a few cases the smallest. A source with less
    than `LEAST` is counted in with the other. None if both together have less.
    """
    by_source: dict[str, list[float]] = {}
    for case in cases:
        by_source.setdefault(case.source, []).append(case.truth())
    if any(len(values) < LEAST for values in by_source.values()):
        by_source = {"all": [value for values in by_source.values() for value in values]}
    return min(
        (
            sorted(values)[max(int((1 - LEVEL) * (len(values) + 1) + 1e-9), 1) - 1]
            for values in by_source.values()
            if len(values) >= LEAST
        ),
        default=None,
    )


def show_bounds(cases: list[Case]) -> None:
    """The two tables of bounds."""
    for name, groups in (("SEED", ("complete", "partial")), ("NONE", ("seedless",))):
        for key in product((True, False), repeat=2):
            row = []
            for step in range(len(MOVING) + len(RESTING_AT) + 2):
                cell = [case for case in cases if case.cell() == (*key, step)]
                found = [bound([c for c in cell if c.group == group]) for group in groups]
                # a partial collapse is hardly ever seen at 0.9
                least = min((each for each in found if each is not None), default=0.0)
                row.append(float(f"{0.98 * least:.2g}"))  # never rounded up to certainty
            print(f"  {name}_BOUNDS[{key}] = {tuple(row)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit the weights and bounds of the seed set.")
    parser.add_argument("--scenarios", type=int, default=300, help="of each kind, at most")
    parser.add_argument("--runs", type=int, help="trained ones; all if not given")
    args = parser.parse_args()
    prepare_environment()
    histories = [*simulated(args.scenarios), *trained(args.runs)]
    ends = [look(history, len(history.q) - 1 - back) for history in histories for back in BACK]
    counts = Counter((case.source, case.group) for case in ends)
    for tells in (True, False):
        some = [case for case in ends if case.evidence.tells == tells]
        choosing = fit_choosing(some, counts)
        believing = fit_believing(some, counts, choosing)
        print(f"\n{'enough choices to tell' if tells else 'few choices'}: {len(some)} cases")
        print(f"  CHOOSING[{tells}] = {tuple(choosing.round(2).tolist())}")
        print(f"  BELIEVING[{tells}] = {tuple(believing.round(2).tolist())}")
        show_rates(some, choosing, believing)
    rng = np.random.default_rng(0)
    bar = tqdm(histories, desc="bounds", unit="collapse")
    cases = [case for history in bar for case in looks(history, rng)]
    print(f"\nbounds, from {len(cases)} looks at {len(histories)} collapses")
    show_bounds(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
