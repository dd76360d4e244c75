r"""How much probability the listed answers hold, in their own forms and in more.

python scripts/measure_coverage.py smollm2-135m raw chat
python scripts/measure_coverage.py gemma3-270m raw '### Instruction:\n{prompt}\n\n### Response:\n'
python scripts/measure_coverage.py liquid-tiny --wordings 4

Scores a suite in each view twice: as it is; and with the answers also in capitals, on a new line,
in quotes, in bold and after "The answer is". Prints the coverage and how many tasks are measurable,
as a table and as a JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
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
    found = {}
    for view in (text.replace(r"\n", "\n") for text in args.views):
        print(f"{args.model}, {view!r}", file=sys.stderr, flush=True)
        own = coverage(model, tokenizer, suite, view)
        wide = coverage(model, tokenizer, suite.with_forms(*PARTS), view)
        found[view] = {"own": summarize(own), "all_forms": summarize(wide), "tasks": len(own)}
    print_table(args.model, found)
    print(json.dumps({"model": args.model, "views": found}))
    return 0


def coverage(model: Any, tokenizer: Any, suite: TaskSuite, view: str) -> list[np.ndarray]:
    """Of each task, that of its wordings [P]."""
    plan = build_plan(suite, tokenizer, view)
    scores = score(model, plan, route=choose_route(model, plan))
    return [answer_distributions(table)[1] for table in scores.log_choice]


def summarize(tasks: list[np.ndarray]) -> dict[str, Any]:
    mean = round(float(np.concatenate(tasks).mean()), 4)
    return {"coverage": mean, "measurable": sum(map(is_measurable, tasks))}


def print_table(name: str, found: dict[str, dict[str, Any]]) -> None:
    heads = ("view", "coverage", "all forms", "measurable tasks", "all forms")
    table = Table(*heads, title=name)
    for view, each in found.items():
        both = (each["own"], each["all_forms"])
        cells = [f"{one['coverage']:.2f}" for one in both]
        cells += [f"{one['measurable']} of {each['tasks']}" for one in both]
        table.add_row(repr(view)[1:-1], *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
