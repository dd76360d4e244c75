r"""How much a wording's answers can be trusted, by how much probability the listed forms hold.

python scripts/measure_coverage.py smollm2-135m raw chat
python scripts/measure_coverage.py gemma3-270m raw '### Instruction:\n{prompt}\n\n### Response:\n'
python scripts/measure_coverage.py liquid-tiny --wordings 4

Scores a suite twice in each view: as it is, and with the answers also in capitals, on a new line,
in quotes, in bold and after "The answer is". Where the second finds most of the probability, it
tells what the model answers; the distance of the first from it is the error of what the plain
forms say. Prints the coverage of both, the errors by coverage, and a JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crystalmon import TaskSuite, load_suite
from crystalmon.metrics.answers import answer_distributions, is_measurable
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score
from crystalmon.suites.forms import PARTS

KNOWN = 0.5
"""Coverage by all forms from which they are taken for what the model answers."""
EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
"""Of the bins of the plain forms' coverage."""


@dataclass(frozen=True)
class Answers:
    """By task: the answers [P, C] in the plain and in all forms, and their coverage [P]."""

    plain: dict[str, np.ndarray]
    wide: dict[str, np.ndarray]
    plain_coverage: dict[str, np.ndarray]
    wide_coverage: dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="liquid-tiny")
    parser.add_argument("views", nargs="*", metavar="VIEW", default=["raw"])
    parser.add_argument("--suite", help="by default the model's own, or `randomness`")
    parser.add_argument("--wordings", type=int, default=1000, help="of each task, at most")
    args = parser.parse_args()
    suite = load_suite(args.suite or (args.model if args.model == "liquid-tiny" else "randomness"))
    few = (replace(task, prompts=task.prompts[: args.wordings]) for task in suite)
    suite = TaskSuite(suite.name, tuple(few))
    model, tokenizer = load_model(args.model)
    model.eval()
    found: dict[str, Answers] = {}
    for view in (text.replace(r"\n", "\n") for text in args.views):
        print(f"{args.model}, {view!r}", file=sys.stderr, flush=True)
        found[view] = ask(model, tokenizer, suite, view)
    summary = {view: summarize(answers) for view, answers in found.items()}
    print_tables(args.model, summary)
    print(json.dumps({"model": args.model, "views": summary}))
    return 0


def ask(model: Any, tokenizer: Any, suite: TaskSuite, view: str) -> Answers:
    tables: list[dict[str, np.ndarray]] = []
    for each in (suite, suite.with_forms(*PARTS)):
        plan = build_plan(each, tokenizer, view)
        scores = score(model, plan, route=choose_route(model, plan))
        pairs = [answer_distributions(table) for table in scores.log_choice]
        tables += [{t.name: pair[i] for t, pair in zip(suite, pairs, strict=True)} for i in (0, 1)]
    plain, plain_coverage, wide, wide_coverage = tables
    return Answers(plain, wide, plain_coverage, wide_coverage)


def summarize(found: Answers) -> dict[str, Any]:
    plain, wide = (
        np.concatenate([*each.values()]) for each in (found.plain_coverage, found.wide_coverage)
    )
    off = np.concatenate([np.abs(q - found.wide[n]).sum(1) / 2 for n, q in found.plain.items()])
    bins = []
    for low, high in itertools.pairwise(EDGES):
        inside = off[(plain >= low) & (plain < high) & (wide >= KNOWN)]
        quantiles = np.percentile(inside, [50, 90]) if len(inside) else [np.nan, np.nan]
        median, ninety = (
            None if np.isnan(value) else round(float(value), 4) for value in quantiles
        )
        bins.append({"from": low, "wordings": len(inside), "median": median, "p90": ninety})
    return {
        "coverage": round(float(plain.mean()), 4),
        "coverage_all_forms": round(float(wide.mean()), 4),
        "measurable_tasks": measurable_tasks(found.plain_coverage),
        "measurable_tasks_all_forms": measurable_tasks(found.wide_coverage),
        "tasks": len(found.plain),
        "errors": bins,
    }


def measurable_tasks(coverage: dict[str, np.ndarray]) -> int:
    return sum(map(is_measurable, coverage.values()))


def print_tables(name: str, summary: dict[str, dict[str, Any]]) -> None:
    console = Console(width=110)
    table = Table("view", "coverage", "all forms", "measurable tasks", "all forms", title=name)
    for view, each in summary.items():
        numbers = [each["coverage"], each["coverage_all_forms"]]
        tasks = [each["measurable_tasks"], each["measurable_tasks_all_forms"]]
        cells = [f"{value:.2f}" for value in numbers] + [f"{n} of {each['tasks']}" for n in tasks]
        table.add_row(repr(view)[1:-1], *cells)
    console.print(table)
    head = ("view", "coverage from", "wordings", "median distance", "90th percentile")
    table = Table(*head, title="answers in the plain forms from those in all (total variation)")
    for view, each in summary.items():
        for row in each["errors"]:
            values = ("–" if row[k] is None else f"{row[k]:.3f}" for k in ("median", "p90"))
            table.add_row(repr(view)[1:-1], f"{row['from']:.2f}", str(row["wordings"]), *values)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
