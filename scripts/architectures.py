"""How exactly crystalmon scores many architectures.

python scripts/architectures.py                       # all of them, seconds each
python scripts/architectures.py --only Llama Mamba
python scripts/architectures.py --differences         # and what the search for the route compares

Each is a tiny random model, scored at initialization, with its weight matrices three times as
large, and after some steps of training. The truth is the same model in float64, with each row of
the plan alone: no padding, no packing, no mask, no cast to float32 on the way. `own` is the error
of the model's own float32 on these rows; `kept` is the error after training by the route that was
chosen at initialization, as a monitor keeps it.

Prints a table and a JSON line. The exit status is 1 if an error is over its bound with the route
chosen anew: 1e-5, or 1e-4 where the model's own float32 is no better.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tiny_models import ARCHITECTURES, make_tiny
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils import logging as transformers_logging

from crystalmon import Task, TaskSuite, load_suite
from crystalmon.metrics.answers import answer_distributions
from crystalmon.scoring import trial as trial_module
from crystalmon.scoring.forward import Route, score_rows
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

CHOICES = {"coin": 2, "integer_100": 20, "card_suit": 4, "name": 3}
"""How many choices of each task; all but the coin's share first tokens or are long."""
PROMPTS = 6
BOUND, OWN_BOUND = 1e-5, 1e-4
STATES = ("init", "scaled", "trained")
SCALE = 3.0
LEARNING_RATE, BATCH = 3e-3, 4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ARCHITECTURES)
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="at least 768")
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--differences", action="store_true", help="between tree and rows")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(ARCHITECTURES))
        return 0
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _, tokenizer = load_model("liquid-tiny")
    if args.vocabulary < len(tokenizer):
        parser.error(f"--vocabulary must be at least {len(tokenizer)}, got {args.vocabulary}.")
    suite = small_suite()
    plan = build_plan(suite, tokenizer)
    corpus = texts_to_learn(suite, tokenizer, args.random_seed)
    results = {}
    for name in args.only or ARCHITECTURES:
        start = time.perf_counter()
        results[name] = measure(name, plan, corpus, args)
        took = time.perf_counter() - start
        print(f"{name}: {took:.1f} s", file=sys.stderr, flush=True)
    console = Console(width=120)
    console.print(error_table(results))
    for name, result in results.items():
        if "why" in result:
            console.print(f"{name}: {result['why']}", markup=False)
    if args.differences:
        console.print(difference_table(results))
    over = [name for name, result in results.items() if result["over"]]
    sizes = {"vocabulary": args.vocabulary, "steps": args.steps, "rows": len(plan.rows)}
    print(json.dumps({**sizes, "over": over, "architectures": results}))
    return int(bool(over))


def small_suite() -> TaskSuite:
    """Some prompts of four tasks of `randomness`, the longest of each among them."""
    tasks = []
    for name, choices in CHOICES.items():
        task = load_suite("randomness")[name]
        longest = int(np.argmax([len(prompt) for prompt in task.prompts]))
        others = [index for index in range(len(task.prompts)) if index != longest]
        chosen = sorted([longest, *others[:: len(others) // (PROMPTS - 1)][: PROMPTS - 1]])
        prompts = tuple(task.prompts[index] for index in chosen)
        tasks.append(Task(name, prompts, task.choices[:choices]))
    return TaskSuite("small", tuple(tasks))


def texts_to_learn(suite: TaskSuite, tokenizer: Any, random_seed: int) -> list[Tensor]:
    """Each prompt with an answer of its own, so that what a token sees matters; by length."""
    random = np.random.default_rng(random_seed)
    texts = []
    for task in suite:
        for prompt in task.prompts:
            choice = task.choices[random.integers(len(task.choices))]
            texts.append(torch.tensor(tokenizer(prompt + choice.forms[0])["input_ids"]))
    return sorted(texts, key=len)


def measure(
    name: str, plan: ScoringPlan, corpus: list[Tensor], args: argparse.Namespace
) -> dict[str, Any]:
    """Routes and errors by state; `why` instead, if the model cannot be built or run."""
    torch.manual_seed(args.random_seed)
    try:
        model = make_tiny(name, args.vocabulary)
        alone(model, plan.rows[:1])
    except Exception as error:  # whatever a missing kernel or a small size raises
        return {"why": f"cannot be built here: {describe(error)}", "over": False}
    result: dict[str, Any] = {"over": False}
    try:
        for state in STATES:
            if state == "scaled":
                scaled = scaled_up(model)
                result[state] = measure_state(scaled, plan)
                continue
            if state == "trained":
                result["loss"] = train(model, corpus, args.steps, args.random_seed)
            kept = Route(**result["init"]["route"]) if state == "trained" else None
            result[state] = measure_state(model, plan, kept)
    except Exception as error:
        return {**result, "why": f"raised: {describe(error)}", "over": True}
    result["over"] = any(result[state]["error"] > bound(result[state]["own"]) for state in STATES)
    return result


def measure_state(model: nn.Module, plan: ScoringPlan, kept: Route | None = None) -> dict[str, Any]:
    """The route and the largest errors in q, of a model as it is now."""
    own = answers(plan, alone(model, plan.rows))
    exact = answers(plan, alone_in_float64(model, plan.rows))
    route, differences = watched_choice(model, plan)

    def error(by: Route) -> float:
        return largest_error(score(model, plan, route=by).log_choice, exact)

    found = {"route": vars(route), "error": error(route), "own": largest_error(own, exact)}
    if kept is not None:
        found["kept"] = error(kept)
    return found | differences


def bound(own: float) -> float:
    return BOUND if own <= BOUND else OWN_BOUND


def scaled_up(model: nn.Module) -> nn.Module:
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SCALE)
    return scaled


def train(model: nn.Module, corpus: list[Tensor], steps: int, random_seed: int) -> list[float]:
    """From scratch on a few texts, padded on the right; the first and the last loss."""
    random = np.random.default_rng(random_seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    model.train()
    losses = []
    for _ in range(steps):
        first = random.integers(len(corpus) - BATCH + 1)  # of similar length: little is padded
        texts = corpus[first : first + BATCH]
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-100)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return [losses[0], losses[-1]] if losses else []


def alone(model: nn.Module, rows: Iterable[Sequence[int]]) -> list[Tensor]:
    """Log-probabilities [V] after each row in float64, from a pass with it alone."""
    head: Any = model.get_output_embeddings()  # type: ignore[reportCallIssue]
    last = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:], *inputs[1:]))
    try:
        with torch.no_grad():
            logits = [model(torch.tensor([row])).logits for row in rows]
    finally:
        last.remove()
    return [each[0, 0].double().log_softmax(-1) for each in logits]


def alone_in_float64(model: Any, rows: Iterable[Sequence[int]]) -> list[Tensor]:
    """The same of a copy in float64, throughout."""
    wide = copy.deepcopy(model).double()
    wide.set_experts_implementation("eager")  # the others take no float64
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of constants that a model makes, as XGLM does
    try:
        with _Float64():
            return alone(wide, rows)
    finally:
        torch.set_default_dtype(usual)


def answers(plan: ScoringPlan, log_p: list[Tensor]) -> list[np.ndarray]:
    """Per task [P, C] log-probabilities of choices: of each path, less the longer ones after it."""
    reached: list[float] = []
    for row, token, parent in zip(plan.edge_row, plan.edge_token, plan.edge_parent, strict=True):
        before = reached[parent] if parent >= 0 else 0.0
        reached.append(before + float(log_p[row][token]))
    mass = [float(np.exp(reached[edge])) for edge in plan.path_edge]
    own = list(mass)
    for longer, shorter in plan.nested:
        own[shorter] -= mass[longer]
    tables = [np.zeros(shape) for shape in plan.shapes]
    cells = [(table, place) for table in tables for place in np.ndindex(*table.shape)]
    for probability, cell in zip(own, plan.path_cell, strict=True):
        table, place = cells[cell]
        table[place] += probability
    with np.errstate(divide="ignore"):
        return [np.log(table) for table in tables]


def largest_error(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    pairs = zip(found, exact, strict=True)
    apart = [answer_distributions(a)[0] - answer_distributions(b)[0] for a, b in pairs]
    error = max(float(np.abs(each).max()) for each in apart)
    return error if np.isfinite(error) else float("inf")


class _Float64(TorchFunctionMode):
    """Within, what a model casts to float32 or makes in it, as norms and angles, is in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "float":
            return args[0].double()
        args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        named = (kwargs or {}).items()
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in named}
        return func(*args, **kwargs)


def watched_choice(model: nn.Module, plan: ScoringPlan) -> tuple[Route, dict[str, Any]]:
    """The route, and how far tree and rows were apart in the trial that chose it.

    `difference` is the largest in a probability. `relative` is the largest over rows of the root
    mean square over the vocabulary of z_tree − z, by the spread of z over rows; z are rows'
    log-probabilities and z_tree the tree's. Neither is there if trees were not tried or raised.
    """
    seen: dict[str, dict[int, Tensor]] = {"rows": {}, "tree": {}}

    def watched(model: Any, plan: Any, route: Route, consume: Any, **options: Any) -> int | None:
        def keep(rows: np.ndarray, log_p: Tensor) -> None:
            seen[route.method].update(zip(rows.tolist(), log_p.double(), strict=True))
            consume(rows, log_p)

        return score_rows(model, plan, route, keep, **options)

    with patch.object(trial_module, "score_rows", watched):
        route = choose_route(model, plan)
    if not seen["rows"] or not seen["rows"].keys() <= seen["tree"].keys():
        return route, {}
    z = torch.stack(list(seen["rows"].values()))
    other = torch.stack([seen["tree"][row] for row in seen["rows"]])
    spread = (z - z.mean(0)).square().mean().sqrt()
    relative = (other - z).square().mean(1).sqrt().max() / spread
    difference = (other.exp() - z.exp()).abs().max()
    found = {"difference": difference, "relative": relative, "spread": spread}
    return route, {key: float(value) for key, value in found.items()}


def error_table(results: dict[str, Any]) -> Table:
    columns = ("init", "own", "scaled", "own", "trained", "own", "kept")
    table = Table("architecture", "route", title="largest error in q")
    for column in (*columns, "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        if "why" in result:
            table.add_row(name, f"{result['why'].split(':')[0]}, see below")
            continue
        routes = [result[state]["route"]["method"] for state in STATES]
        cells = [" ".join(routes if len(set(routes)) > 1 else routes[:1])]
        for state in STATES:
            own, error = result[state]["own"], result[state]["error"]
            cells += [marked(error, own), f"{own:.0e}"]
        cells.append(marked(result["trained"]["kept"], result["trained"]["own"]))
        cells.append(" → ".join(f"{loss:.1f}" for loss in result["loss"]))
        table.add_row(name, *cells)
    return table


def marked(error: float, own: float) -> str:
    """An error; bold and marked if it is over its bound."""
    return f"{error:.0e}" if error <= bound(own) else f"[bold]{error:.0e}![/bold]"


def difference_table(results: dict[str, Any]) -> Table:
    """Sorted by the largest relative difference; the kept route's error tells what was unsound."""
    table = Table("architecture", title="tree against rows, in the trial of the route")
    for state in STATES:
        for column in ("difference", "relative", "route"):
            table.add_column(f"{state}: {column}" if column == "difference" else column)
    measured = {name: result for name, result in results.items() if "why" not in result}
    largest = {
        name: max(result[state].get("relative", np.inf) for state in STATES)
        for name, result in measured.items()
    }
    for name in sorted(measured, key=lambda name: largest[name]):
        cells = []
        for state in STATES:
            found = measured[name][state]
            for key in ("difference", "relative"):
                cells.append(f"{found[key]:.1e}" if key in found else "–")
            cells.append(found["route"]["method"])
        table.add_row(name, *cells)
    return table


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


if __name__ == "__main__":
    sys.exit(main())
