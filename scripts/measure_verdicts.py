"""How often so few probes name the right seed, as the verdicts of a scan must.

    python scripts/measure_verdicts.py
    python scripts/measure_verdicts.py 10    # scenarios of each kind, not 100

Of every simulated collapse with known truth, two probes are judged alone: the last one, and the
first with `order` at 0.8 or above, half-way through. The chain is of three such probes, the first,
one in the middle and the last, judged as the stages of a scan are: the last that names a seed
decides. Kinds that calibration has not seen are counted apart.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scenarios import Scenario, make_scenario, orders

from crystalmon.analysis.verdicts import judge_stages
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from crystalmon.phases.order import COMPLETE

KINDS = ("collapse, abrupt", "collapse, gradual", "collapse, prompt by prompt", "seedless")
FIRST_SEED = 555_000_000


def judge(scenario: Scenario, probes: Sequence[int]) -> str:
    every = np.arange(len(scenario.base))
    found = judge_stages(scenario.base, {probe: (every, scenario.q[probe]) for probe in probes})
    if found.state == "open":
        return "open"
    if scenario.seed is None or found.seed is None:
        return "right" if scenario.seedless == (found.state == "seedless") else "wrong"
    b = scenario.base
    near = js_divergence(b[found.seed], b[scenario.seed]) < noise_floor(b, scenario.seed)
    return "right" if near or found.seed == scenario.seed else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=100, help="scenarios of each kind")
    count = parser.parse_args().count
    print(f"{'kind':<28}{'held out':<10}{'probe':<8}{'right':>6}{'wrong':>6}{'open':>6}")
    for kind in KINDS:
        for held_out in (False, True):
            found = {"last": Counter(), "first": Counter(), "chain": Counter()}
            for index in range(count):
                scenario = make_scenario(kind, FIRST_SEED + index, held_out=held_out)
                order = orders(scenario.q, scenario.base)
                if order[-1] < COMPLETE:
                    continue
                complete = np.flatnonzero(order >= COMPLETE)
                first, middle, last = complete[[0, len(complete) // 2, -1]].tolist()
                found["last"][judge(scenario, [last])] += 1
                found["first"][judge(scenario, [first])] += 1
                found["chain"][judge(scenario, sorted({first, middle, last}))] += 1
            for probe, tally in found.items():
                cells = "".join(f"{tally[key]:>6}" for key in ("right", "wrong", "open"))
                print(f"{kind:<28}{'yes' if held_out else 'no':<10}{probe:<8}{cells}")


if __name__ == "__main__":
    main()
