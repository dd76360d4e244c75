"""Fit weights and bounds of the seed set to collapses whose end was planted.

There are three sources: simulated collapses, from another bank than the reported ones, and trained
ones of two models, neither of them the reported one. Prints the weights of
`crystalmon/phases/seed_odds.py`, fitted to all three, and the bounds of
`crystalmon/phases/seed_set.py`. For these the probabilities in each source are by weights that were
fitted to the other two, since a user's model is one more source.

    python scripts/calibrate_seeds.py    # ten minutes; the first call trains 93 runs, 40 more
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from scenarios import make_scenario, orders
from scipy.optimize import minimize
from scipy.special import expit, softmax
from tqdm.auto import tqdm
from trained_bank import CALIBRATED, Bank, prepare_environment

from crystalmon import read_run
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.phases.order import COMPLETE, ONSET
from crystalmon.phases.seed import DONE, NEARLY, REST
from crystalmon.phases.seed_fit import Candidates, gather, mean_answers
from crystalmon.phases.seed_odds import FEATURES, TELLING, Evidence, Weights
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
FEW = (2, 4, 8)
"""Of how many prompts a partial probe may be."""
LEAST = 10
"""Cases of a source from which it has a bound of its own."""
SIGNS = (1, 1, -1, -1, -1, -1, 0, 0, 0)
"""Of the weights of `FEATURES`: what speaks for a seed must not count against it."""
ONLY_TELLING = (FEATURES.index("choices"),)
"""Features without a weight among few choices: two and three are too few to draw a line through."""
PENALTY = 1e-3
"""On the squares of the weights."""


@dataclass(frozen=True)
class History:
    """One collapse.

    Args:
        source: `simulated`, or the model that was trained.
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
        source, group: of the collapse.
        weight: one over the number of cases of the collapse, and of collapses of its group.
        evidence: of each of K candidates.
        between: [K, K] whether one is the other's twin.
        right: [K] whether it is the planted seed or its twin; None if there is none.
        at_rest: whether the collapse is, or is over.
    """

    source: str
    group: str
    weight: float
    evidence: Evidence
    between: np.ndarray
    right: np.ndarray | None
    at_rest: bool

    def cell(self) -> tuple[bool, bool, int]:
        """Which bound is its own."""
        bound = bound_of(self.evidence.order, self.at_rest)
        return self.evidence.tells, self.evidence.whole, bound

    def truth(self, weights: Weights) -> float:
        """The probability of what is true."""
        evidence = replace(self.evidence, weights=weights)
        _, shared, none = evidence.probabilities(self.between)
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
    return Case(history.source, history.group, 1.0, evidence, between, right, at_rest)


def looks(history: History, rng: np.random.Generator) -> list[Case]:
    """Of each bound's probes the first, and the last of all, with all prompts asked and with a few.

    Those count that are past the onset: at least the second over its bound in succession.
    """
    order = history.orders
    first: dict[int, int] = {}
    past = (np.flatnonzero((order[1:] >= ONSET) & (order[:-1] >= ONSET)) + 1).tolist()
    for at in past:
        at_rest = history.rests(at) or order[at] >= DONE
        first.setdefault(bound_of(float(order[at]), bool(at_rest)), at)
    sizes = [size for size in FEW if size < len(history.b)]
    few = nested_subsets(history.b, sizes)
    found = []
    for at in sorted({*first.values(), *past[-1:]}):
        found.append(look(history, at))
        if sizes:
            found.append(look(history, at, few[int(rng.choice(sizes))]))
    return found


def gather_cases(histories: Sequence[History]) -> list[Case]:
    """All looks at all histories, each history of a source and group with the same weight."""
    rng = np.random.default_rng(0)
    bar = tqdm(histories, desc="looking", unit="collapse")
    seen = [found for history in bar if (found := looks(history, rng))]
    counts = Counter((found[0].source, found[0].group) for found in seen)
    return [
        replace(case, weight=1 / len(found) / counts[case.source, case.group])
        for found in seen
        for case in found
    ]


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


def trained(bank: Bank, count: int | None) -> Iterator[History]:
    """Of the first `count` runs of a bank; all if None."""
    for folder in bank.train(count):
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
            yield History(bank.family.name, group, q, first.q, seed)


def fit(cases: Sequence[Case], tells: bool) -> Weights:
    """The weights of the cases whose choices are, or are not, enough to tell candidates apart."""
    some = [case for case in cases if case.evidence.tells == tells]
    choosing = fit_choosing(some)
    return Weights(choosing, fit_believing(some, choosing))


def is_mixed(cases: Sequence[Case], tells: bool) -> bool:
    """Whether there are collapses with a seed and without, so that weights can be fitted."""
    return len({case.right is None for case in cases if case.evidence.tells == tells}) == 2


def fit_choosing(cases: Sequence[Case]) -> tuple[float, ...]:
    """4 weights of the cost: softmax(−cost) is the probability of each candidate."""
    known = [case for case in cases if case.right is not None and case.right.any()]
    most = max(len(case.between) for case in known)
    terms = np.zeros((len(known), most, 4))
    right, listed = np.zeros((2, len(known), most), dtype=bool)
    for row, case in enumerate(known):
        count = len(case.between)
        terms[row, :count], right[row, :count] = case.evidence.terms(), case.right
        listed[row, :count] = True
    shares = np.array([case.weight for case in known])

    def loss(weights: np.ndarray) -> float:
        likely = softmax(np.where(listed, -(terms @ weights), -np.inf), axis=1)
        of_seed = np.log(np.maximum((likely * right).sum(axis=1), 1e-9))
        return float(PENALTY * weights @ weights - shares @ of_seed)

    found = minimize(loss, np.full(4, 0.5), method="L-BFGS-B").x
    return tuple(found.round(2).tolist())


def fit_believing(cases: Sequence[Case], choosing: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of `FEATURES` in the log-odds, by logistic regression."""
    chooser = Weights(choosing, ())
    best = [replace(case.evidence, weights=chooser).best() for case in cases]
    x = np.array(
        [
            case.evidence.features(at, ~case.between[at])
            for case, at in zip(cases, best, strict=True)
        ]
    )
    y = np.array([case.right is not None for case in cases], dtype=float)
    w = np.array([case.weight for case in cases])
    w /= np.where(y, w[y == 1].sum(), w[y == 0].sum())  # as many with a seed as without

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = x @ weights
        value = w @ (np.logaddexp(0, odds) - y * odds) + PENALTY * float(weights @ weights)
        return float(value), x.T @ (w * (expit(odds) - y)) + 2 * PENALTY * weights

    bounds = [(0 if sign > 0 else None, 0 if sign < 0 else None) for sign in SIGNS]
    if not cases[0].evidence.tells:
        bounds = [(0, 0) if i in ONLY_TELLING else each for i, each in enumerate(bounds)]
    start = np.zeros(len(FEATURES))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return tuple(found.round(2).tolist())


def show_rates(cases: Sequence[Case], weights: dict[tuple[str, bool], Weights]) -> None:
    """By source and group, by weights of the others: how probable the truth is."""
    for key in sorted({(case.source, case.group) for case in cases}):
        some = [case for case in cases if (case.source, case.group) == key]
        likely = np.array([case.truth(weights[case.source, case.evidence.tells]) for case in some])
        print(
            f"  {', '.join(key):<22} {len(some):>5} looks: the truth has a probability of "
            f"{np.median(likely):.2f} in the median, above one half in {np.mean(likely > 0.5):.1%}"
        )


def bound(values: dict[str, list[float]]) -> float | None:
    """The least probability that leaves the truth of `LEVEL` of cases in, in every source.

    It is the ⌊(1 − LEVEL)(n + 1)⌋-th smallest of n, of a few cases the smallest. A source with less
    than `LEAST` is counted in with the others. None if all together have less.
    """
    if any(len(each) < LEAST for each in values.values()):
        values = {"all": [value for each in values.values() for value in each]}
    return min(
        (
            sorted(each)[max(int((1 - LEVEL) * (len(each) + 1) + 1e-9), 1) - 1]
            for each in values.values()
            if len(each) >= LEAST
        ),
        default=None,
    )


def show_bounds(cases: Sequence[Case], weights: dict[tuple[str, bool], Weights]) -> None:
    """The two tables of bounds."""
    truths: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        truth = case.truth(weights[case.source, case.evidence.tells])
        truths[*case.cell(), case.group][case.source].append(truth)
    for name, groups in (("SEED", ("complete", "partial")), ("NONE", ("seedless",))):
        for key in product((True, False), repeat=2):
            row = []
            for step in range(len(MOVING) + len(RESTING_AT) + 2):
                found = [bound(truths[*key, step, group]) for group in groups]
                # a partial collapse is hardly ever seen at 0.9
                least = min((each for each in found if each is not None), default=0.0)
                row.append(float(f"{0.98 * least:.2g}"))  # never rounded up to certainty
            print(f"  {name}_BOUNDS[{key}] = {tuple(row)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit the weights and bounds of the seed set.")
    parser.add_argument("--scenarios", type=int, default=200, help="of each kind, at most")
    parser.add_argument("--runs", type=int, help="trained ones of each model; all if not given")
    args = parser.parse_args()
    prepare_environment()
    of_models = [history for bank in CALIBRATED for history in trained(bank, args.runs)]
    histories = [*simulated(args.scenarios), *of_models]
    cases = gather_cases(histories)
    print(f"{len(cases)} looks at {len(histories)} collapses")
    others: dict[tuple[str, bool], Weights] = {}
    for tells in (True, False):
        print(f"  WEIGHTS[{tells}] = {fit(cases, tells)}")
        for source in sorted({case.source for case in cases}):
            rest = [case for case in cases if case.source != source]
            others[source, tells] = fit(rest if is_mixed(rest, tells) else cases, tells)
    print("\neach source by the weights of the others")
    show_rates(cases, others)
    show_bounds(cases, others)
    return 0


if __name__ == "__main__":
    sys.exit(main())
