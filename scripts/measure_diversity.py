"""How varied answers are, in the measures that others use: a row a model, means over tasks.

`crystalmon/metrics/README.md` says what each measure is.

    python scripts/measure_diversity.py  # or with names of models
"""

from __future__ import annotations

import argparse
import sys

from crystalmon import Monitor, list_suites
from crystalmon.metrics.catalogue import BY_KEY
from crystalmon.scoring.models import load_model

SHOWN = (
    "branching_factor",
    "beta_diversity",
    "gamma_diversity",
    "distinct_10",
    "kl_uniform",
    "collision",
    "vocabulary_branching",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["liquid-tiny", "smollm2-135m"])
    parser.add_argument("--view", default="raw")
    args = parser.parse_args()
    rows = [["model", "suite", *(BY_KEY[key].label for key in SHOWN)]]
    rows.append(["---"] * len(rows[0]))
    for name in args.models:
        suite = name if name in list_suites() else "randomness"  # a bundled model has its own
        model, tokenizer = load_model(name)
        found = Monitor(model, tokenizer, suite, "initial", view=args.view).probe(unchanged=True)
        rows.append([name, suite, *(f"{found.metrics[key]:.2f}" for key in SHOWN)])
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
