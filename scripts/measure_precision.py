"""How exact a record is when the model is in half precision.

python scripts/measure_precision.py                      # liquid-tiny
python scripts/measure_precision.py smollm2-135m --prompts 2

Scores a model in bf16 three ways, each against a float64 evaluation of the same bf16 weights:
by the route that crystalmon takes, by the model's own forward pass with the answers projected in
float32 or better, and by the model's own bf16 logits. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from crystalmon import Task, TaskSuite, load_suite
from crystalmon.metrics.answers import answer_distributions
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="liquid-tiny")
    parser.add_argument("--suite", help="by default the model's own, or `randomness`")
    parser.add_argument("--prompts", type=int, default=1000, help="of each task, at most")
    args = parser.parse_args()
    suite = load_suite(args.suite or (args.model if args.model == "liquid-tiny" else "randomness"))
    tasks = (Task(t.name, t.prompts[: args.prompts], t.choices) for t in suite)
    model, tokenizer = load_model(args.model, dtype=torch.bfloat16)
    model.eval()
    suite = TaskSuite(suite.name, tuple(tasks))
    plan = build_plan(suite, tokenizer)
    exact = score(copy.deepcopy(model).double(), plan, route=Route("rows")).log_choice
    route = choose_route(model, plan)
    ways: dict[str, Callable[[], Any]] = {
        f"crystalmon ({route})": lambda: score(model, plan, route=route).log_choice,
        "bf16 layers, answers in float32": lambda: score(model, plan, route=Route()).log_choice,
        "bf16 logits": lambda: with_half_logits(model, plan),
    }
    table = Table("way", "largest error in q", "in coverage", title=f"{args.model} in bf16")
    errors = {}
    for name, way in ways.items():
        found = way()
        errors[name] = [
            max(
                float(np.abs(a - b).max())
                for a, b in zip(*map(column, (exact, found)), strict=True)
            )
            for column in (distributions, coverages)
        ]
        table.add_row(name, *(f"{error:.1e}" for error in errors[name]))
    Console(width=100).print(table)
    print(json.dumps({"model": args.model, "prompts": plan.num_prompts, "errors": errors}))


def distributions(tables: Any) -> list[np.ndarray]:
    return [answer_distributions(table)[0] for table in tables]


def coverages(tables: Any) -> list[np.ndarray]:
    return [answer_distributions(table)[1] for table in tables]


def with_half_logits(model: Any, plan: Any) -> Any:
    """What a script gets that takes the logits as the model gives them."""
    head = model.get_output_embeddings()
    rounding = head.register_forward_hook(lambda _, inputs, logits: logits.bfloat16())
    try:
        return score(model, plan, route=Route()).log_choice
    finally:
        rounding.remove()


if __name__ == "__main__":
    main()
