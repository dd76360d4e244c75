r"""How much probability the listed answers hold, and whether it takes much of it to trust them.

python scripts/measure_coverage.py smollm2-135m raw chat
python scripts/measure_coverage.py gemma3-270m raw '### Instruction:\n{prompt}\n\n### Response:\n' \
    --after runs/real/short-0/1-sft
python scripts/measure_coverage.py liquid-tiny --wordings 4

Scores a suite in each view twice: as it is; and with the answers also in capitals, on a new line,
in quotes, in bold and after "The answer is". With `--after`, so is a model that was trained from
the first one. If the answers to wordings of low coverage were mere noise, training would move them
more than others: how far it did, by the coverage before it, is printed too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
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

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.01)
"""Of the bins of coverage."""


@dataclass(frozen=True)
class Answers:
    """To one suite, by task: the answers q [P, C] and their coverage [P]."""

    q: dict[str, np.ndarray]
    coverage: dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="liquid-tiny")
    parser.add_argument("views", nargs="*", metavar="VIEW", default=["raw"])
    parser.add_argument("--after", metavar="MODEL", help="trained from the first one")
    parser.add_argument("--suite", help="by default the model's own, or `randomness`")
    parser.add_argument("--wordings", type=int, default=1000, help="of each task, at most")
    args = parser.parse_args()
    suite = load_suite(args.suite or (args.model if args.model == "liquid-tiny" else "randomness"))
    few = (replace(task, prompts=task.prompts[: args.wordings]) for task in suite)
    suite = TaskSuite(suite.name, tuple(few))
    names = [args.model, args.after] if args.after else [args.model]
    rows: list[dict[str, Any]] = []
    before: dict[str, Answers] = {}
    for name in names:
        model, tokenizer = load_model(name)
        model.eval()
        for view in (text.replace(r"\n", "\n") for text in args.views):
            print(f"{name}, {view!r}", file=sys.stderr, flush=True)
            own = ask(model, tokenizer, suite, view)
            wide = ask(model, tokenizer, suite.with_forms(*PARTS), view)
            moved = distances(before[view], own) if view in before else []
            rows.append({"model": name, "view": view, **summarize(own, wide), "moved": moved})
            before.setdefault(view, own)
    print_tables(rows)
    print(json.dumps(rows))
    return 0


def summarize(own: Answers, wide: Answers) -> dict[str, Any]:
    tables = {"": own, "_all_forms": wide}
    found: dict[str, Any] = {"tasks": len(own.q)}
    for key, each in tables.items():
        found[f"coverage{key}"] = round(float(np.concatenate([*each.coverage.values()]).mean()), 4)
        found[f"measurable_tasks{key}"] = sum(map(is_measurable, each.coverage.values()))
    return found


def ask(model: Any, tokenizer: Any, suite: TaskSuite, view: str) -> Answers:
    plan = build_plan(suite, tokenizer, view)
    scores = score(model, plan, route=choose_route(model, plan))
    pairs = [answer_distributions(table) for table in scores.log_choice]
    q, coverage = (
        {task.name: pair[i] for task, pair in zip(suite, pairs, strict=True)} for i in (0, 1)
    )
    return Answers(q, coverage)


def distances(before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Total variation of a wording's answers before from those after, by its coverage before."""
    moved = np.concatenate([np.abs(q - after.q[name]).sum(1) / 2 for name, q in before.q.items()])
    coverage = np.concatenate([*before.coverage.values()])
    bins = []
    for low, high in itertools.pairwise(EDGES):
        inside = moved[(coverage >= low) & (coverage < high)]
        quantiles = np.percentile(inside, [25, 50, 75]) if len(inside) else [None] * 3
        found = [None if value is None else round(float(value), 4) for value in quantiles]
        bins.append({"from": low, "wordings": len(inside), "quartiles": found})
    return bins


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    console = Console(width=120)
    heads = ("model", "view", "coverage", "all forms", "measurable tasks", "all forms")
    table = Table(*heads)
    for row in rows:
        cells = [f"{row[key]:.2f}" for key in ("coverage", "coverage_all_forms")]
        tasks = [row["measurable_tasks"], row["measurable_tasks_all_forms"]]
        cells += [f"{n} of {row['tasks']}" for n in tasks]
        table.add_row(row["model"], repr(row["view"])[1:-1], *cells)
    console.print(table)
    heads = ("view", "coverage from", "wordings", "lower quartile", "median", "upper quartile")
    table = Table(*heads, title="how far training moved a wording's answers (total variation)")
    for row in rows:
        for each in row["moved"]:
            values = ("–" if value is None else f"{value:.2f}" for value in each["quartiles"])
            count = str(each["wordings"])
            table.add_row(repr(row["view"])[1:-1], f"{each['from']:.2f}", count, *values)
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
