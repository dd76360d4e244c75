r"""How much probability the listed answers hold, and what they say where that is little.

python scripts/measure_coverage.py smollm2-135m raw chat
python scripts/measure_coverage.py gemma3-270m raw '### Instruction:\n{prompt}\n\n### Response:\n'
python scripts/measure_coverage.py liquid-tiny --wordings 4

Scores a suite in each view three times. As it is; with the answers also in capitals, on a new line,
in quotes, in bold and after "The answer is"; and with the model led to answer, by "The answer is"
at the end of what it is asked. A model that is led gives a listed answer nearly always. How far its
answers are from those that it gives by itself, by the coverage of these, tells how much coverage it
takes to trust them. A view that is `chat` cannot be led.
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

LEAD = " The answer is"
KNOWN = 0.5
"""Coverage from which a model that is led has answered."""
EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
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
    parser.add_argument("--suite", help="by default the model's own, or `randomness`")
    parser.add_argument("--wordings", type=int, default=1000, help="of each task, at most")
    args = parser.parse_args()
    suite = load_suite(args.suite or (args.model if args.model == "liquid-tiny" else "randomness"))
    few = (replace(task, prompts=task.prompts[: args.wordings]) for task in suite)
    suite = TaskSuite(suite.name, tuple(few))
    model, tokenizer = load_model(args.model)
    model.eval()
    summary = {}
    for view in (text.replace(r"\n", "\n") for text in args.views):
        print(f"{args.model}, {view!r}", file=sys.stderr, flush=True)
        summary[view] = measure(model, tokenizer, suite, view)
    print_tables(args.model, summary)
    print(json.dumps({"model": args.model, "views": summary}))
    return 0


def measure(model: Any, tokenizer: Any, suite: TaskSuite, view: str) -> dict[str, Any]:
    own = ask(model, tokenizer, suite, view)
    wide = ask(model, tokenizer, suite.with_forms(*PARTS), view)
    template = "{prompt}" if view == "raw" else view
    led = None if view == "chat" else ask(model, tokenizer, suite, template.rstrip() + LEAD)
    means = {
        key: round(float(np.concatenate([*each.coverage.values()]).mean()), 4)
        for key, each in (("coverage", own), ("coverage_all_forms", wide), ("coverage_led", led))
        if each is not None
    }
    return means | {
        "measurable_tasks": sum(map(is_measurable, own.coverage.values())),
        "measurable_tasks_all_forms": sum(map(is_measurable, wide.coverage.values())),
        "tasks": len(own.q),
        "distances": [] if led is None else distances(own, led),
    }


def ask(model: Any, tokenizer: Any, suite: TaskSuite, view: str) -> Answers:
    plan = build_plan(suite, tokenizer, view)
    scores = score(model, plan, route=choose_route(model, plan))
    pairs = [answer_distributions(table) for table in scores.log_choice]
    q, coverage = (
        {task.name: pair[i] for task, pair in zip(suite, pairs, strict=True)} for i in (0, 1)
    )
    return Answers(q, coverage)


def distances(own: Answers, led: Answers) -> list[dict[str, Any]]:
    """Total variation of a wording's answers from those when led, in bins of its coverage."""
    apart = np.concatenate([np.abs(q - led.q[name]).sum(1) / 2 for name, q in own.q.items()])
    coverage, known = (np.concatenate([*each.coverage.values()]) for each in (own, led))
    bins = []
    for low, high in itertools.pairwise(EDGES):
        inside = apart[(coverage >= low) & (coverage < high) & (known >= KNOWN)]
        quantiles = np.percentile(inside, [25, 50, 75]) if len(inside) else [None] * 3
        found = [None if value is None else round(float(value), 4) for value in quantiles]
        bins.append({"from": low, "wordings": len(inside), "quartiles": found})
    return bins


def print_tables(name: str, summary: dict[str, dict[str, Any]]) -> None:
    console = Console(width=110)
    heads = ("view", "coverage", "all forms", "led", "measurable tasks", "all forms")
    table = Table(*heads, title=name)
    for view, each in summary.items():
        keys = ("coverage", "coverage_all_forms", "coverage_led")
        cells = [f"{each[key]:.2f}" if key in each else "–" for key in keys]
        tasks = [each["measurable_tasks"], each["measurable_tasks_all_forms"]]
        cells += [f"{n} of {each['tasks']}" for n in tasks]
        table.add_row(repr(view)[1:-1], *cells)
    console.print(table)
    heads = ("view", "coverage from", "wordings", "lower quartile", "median", "upper quartile")
    table = Table(*heads, title="answers by itself, from those when led (total variation)")
    for view, each in summary.items():
        for row in each["distances"]:
            values = ("–" if value is None else f"{value:.3f}" for value in row["quartiles"])
            table.add_row(repr(view)[1:-1], f"{row['from']:.2f}", str(row["wordings"]), *values)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
