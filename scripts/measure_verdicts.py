"""How often a single probe names the right seed, as the verdicts of a scan must.

    python scripts/measure_verdicts.py [scenarios of each kind, default 100]

Of every simulated collapse with known truth, two probes are judged alone: the last one, and the
first with `order` at 0.8 or above, half-way through. Kinds that calibration has not seen are
counted apart.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from crystalmon.metrics import js_divergence, noise_floor
from crystalmon.phases.order import COMPLETE
from crystalmon.phases.seed import SEEDLESS, judge_probe
from crystalmon.phases.state import Observation
from crystalmon.scenarios import Scenario, make_scenario, orders

KINDS = ("collapse, abrupt", "collapse, gradual", "collapse, prompt by prompt", "seedless")
FIRST_SEED = 555_000_000


def judge(scenario: Scenario, probe: int) -> str:
    verdict, _ = judge_probe(scenario.base, Observation(0, scenario.q[probe]))
    if verdict is None:
        return "open"
    if scenario.seed is None or verdict == SEEDLESS:
        return "right" if scenario.seedless == (verdict == SEEDLESS) else "wrong"
    b = scenario.base
    near = js_divergence(b[verdict], b[scenario.seed]) < noise_floor(b, scenario.seed)
    return "right" if near or verdict == scenario.seed else "wrong"


def main(count: int) -> None:
    print(f"{'kind':<28}{'held out':<10}{'probe':<8}{'right':>6}{'wrong':>6}{'open':>6}")
    for kind in KINDS:
        for held_out in (False, True):
            found = {"last": Counter(), "first": Counter()}
            for index in range(count):
                scenario = make_scenario(kind, FIRST_SEED + index, held_out=held_out)
                order = orders(scenario.q, scenario.base)
                if order[-1] < COMPLETE:
                    continue
                found["last"][judge(scenario, -1)] += 1
                found["first"][judge(scenario, int(np.argmax(order >= COMPLETE)))] += 1
            for probe, tally in found.items():
                cells = "".join(f"{tally[key]:>6}" for key in ("right", "wrong", "open"))
                print(f"{kind:<28}{'yes' if held_out else 'no':<10}{probe:<8}{cells}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
