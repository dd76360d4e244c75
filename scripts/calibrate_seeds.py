"""Fit the weights of `crystalmon.phases.seed_odds` to collapses whose end was planted.

The simulated collapses come from another bank than the reported one, and the runs of `liquid-tiny`
are others than the reported ones. Prints the two tables of weights as they stand in
`crystalmon/phases/seed_odds.py`, and how often they are right on what they were fitted to.

    python scripts/calibrate_seeds.py    # two minutes; the first call trains 55 runs, 30 more
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scenarios import make_scenario
from scipy.optimize import minimize
from scipy.special import expit
from tqdm.auto import tqdm
from trained_bank import CALIBRATION_FOLDER, FULL, prepare_environment, train_bank

from crystalmon import read_run
from crystalmon.phases.seed import LONELY, NEARLY, SEEDED
from crystalmon.phases.seed_fit import Candidates, gather, mean_answers
from crystalmon.phases.seed_odds import FEATURES, Evidence
from crystalmon.phases.state import RESTING

CALIBRATION_SEED = 1
SIMULATED = {
    "partial": ("partial", 300),
    "seedless, partial": ("seedless, partial", 300),
    "seedless": ("seedless", 150),
    "collapse, abrupt": ("complete", 75),
    "collapse, gradual": ("complete", 75),
    "collapse, prompt by prompt": ("complete", 75),
}
"""By kind of scenario, the group that it is weighted in, and how many."""
BACK = (0, 4)
"""Probes before the last at which each collapse is looked at, at rest or not."""
SIGNS = (1, 1, -1, -1, -1, -1, 0)
"""Of the weights of `FEATURES`: what speaks for a seed must not count against it."""
PENALTY = 1e-3
"""On the squares of the weights."""


@dataclass(frozen=True)
class Case:
    """One collapse at one probe.

    Args:
        group: cases of a group share one unit of weight.
        listed: [K] the candidates.
        evidence: of each.
        between: [K, K] whether one is the other's twin.
        right: [K] whether it is the planted seed or its twin; None if there is none.
    """

    group: str
    listed: np.ndarray
    evidence: Evidence
    between: np.ndarray
    right: np.ndarray | None

    def features(self, choosing: np.ndarray) -> tuple[int, np.ndarray]:
        """Index of the candidate by these weights, and its features [7]."""
        costs = self.evidence.terms() @ choosing
        best = int(np.lexsort((self.evidence.pooled, costs))[0])
        return best, self.evidence.features(best, ~self.between[best])


def make_case(group: str, b: np.ndarray, history: np.ndarray, seed: int | None) -> Case:
    """From the base's answers [P, C], those of the latest probes [S, P, C], and the planted end."""
    candidates = Candidates.of(b)
    listed, evidence, _ = gather(candidates, history[-1])
    if evidence.order < NEARLY:
        listed, evidence, _ = gather(candidates, mean_answers(history[-RESTING:]))
    between = np.stack([candidates.twins(k)[listed] for k in listed])
    right = None if seed is None else candidates.twins(seed)[listed]
    return Case(group, listed, evidence, between, right)


def simulated(most: int) -> Iterator[Case]:
    """Of the bank that is not reported, at most so many scenarios of each kind."""
    for kind, (group, count) in SIMULATED.items():
        for index in tqdm(range(min(count, most)), desc=kind, unit="scenario"):
            found = make_scenario(kind, CALIBRATION_SEED * 10**6 + index)
            for back in BACK:
                yield make_case(group, found.base, found.q[: len(found.q) - back], found.seed)


def trained(count: int) -> Iterator[Case]:
    """Of the first stage of the first `count` runs that are not reported."""
    for folder in tqdm(train_bank(count, CALIBRATION_FOLDER), desc="reading", unit="run"):
        truth = json.loads((folder / "truth.json").read_text())
        stage = truth["stages"][0]
        if stage["goal"] not in ("seed", "seedless"):
            continue
        records = read_run(folder / stage["folder"]).records
        for name, first in records[0].tasks.items():
            if not truth["targets_0"].get(name):
                continue
            seed = truth["seeds"][name] if stage["goal"] == "seed" else None
            kind = "seedless" if seed is None else truth["kind"]
            group = f"trained, {kind if kind in ('partial', 'seedless') else 'complete'}"
            history = np.stack([record.tasks[name].q for record in records])
            for back in BACK:
                yield make_case(group, first.q, history[: len(history) - back], seed)


def fit_choosing(cases: list[Case], counts: Counter[str]) -> np.ndarray:
    """[4] weights of the cost: softmax(−cost) is the probability of each candidate."""
    known = [
        (case.evidence.terms(), case.right, 1 / counts[case.group])
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


def fit_believing(cases: list[Case], counts: Counter[str], choosing: np.ndarray) -> np.ndarray:
    """[7] weights of the log-odds, by logistic regression."""
    x = np.array([case.features(choosing)[1] for case in cases])
    y = np.array([case.right is not None for case in cases], dtype=float)
    w = np.array([1 / counts[case.group] for case in cases])
    w /= np.where(y, w[y == 1].sum(), w[y == 0].sum())  # as many with a seed as without

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = x @ weights
        value = w @ (np.logaddexp(0, odds) - y * odds) + PENALTY * float(weights @ weights)
        return float(value), x.T @ (w * (expit(odds) - y)) + 2 * PENALTY * weights

    bounds = [(0 if sign > 0 else None, 0 if sign < 0 else None) for sign in SIGNS]
    start = np.zeros(len(FEATURES))
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x


def show_rates(cases: list[Case], choosing: np.ndarray, believing: np.ndarray) -> None:
    """By group: the right candidate, and the verdicts."""
    for group in sorted({case.group for case in cases}):
        some = [case for case in cases if case.group == group]
        found = [case.features(choosing) for case in some]
        right = [
            case.right is not None and bool(case.right[best])
            for case, (best, _) in zip(some, found, strict=True)
        ]
        odds = np.array([features @ believing for _, features in found])
        named = "" if some[0].right is None else f", right candidate {np.mean(right):.1%}"
        print(
            f"  {group:<20} {len(some):>5} cases: seeded {np.mean(odds >= SEEDED):6.1%}, seedless "
            f"{np.mean(odds <= LONELY):6.1%}{named}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit the weights of phases.seed_odds.")
    parser.add_argument("--scenarios", type=int, default=300, help="of each kind, at most")
    parser.add_argument("--runs", type=int, default=FULL, help="trained ones")
    args = parser.parse_args()
    prepare_environment()
    cases = [*simulated(args.scenarios), *trained(args.runs)]
    counts = Counter(case.group for case in cases)
    for tells in (True, False):
        some = [case for case in cases if case.evidence.tells == tells]
        choosing = fit_choosing(some, counts)
        believing = fit_believing(some, counts, choosing)
        print(f"\n{'enough choices to tell' if tells else 'few choices'}: {len(some)} cases")
        print(f"  CHOOSING[{tells}] = {tuple(choosing.round(2).tolist())}")
        print(f"  BELIEVING[{tells}] = {tuple(believing.round(2).tolist())}")
        show_rates(some, choosing, believing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
