"""What scoring takes against the size of the suite: prompts, choices, words in a prompt.

python scripts/benchmark_scaling.py                  # liquid-tiny, 1 to 64 times the suite
python scripts/benchmark_scaling.py --device cuda

A machine is not equally fast at all times, so each point takes turns with the suite itself, each
run over and over until it has had at least 16 times the suite's tokens. Their ratio is a token's
time over that of the suite's, a median over repetitions. To these times of ever larger suites a
straight line is fitted, with a cost that each time has; how far the points lie from it is
printed. Memory is the peak above what was held before. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from benchmark import load_asked, make_parser, ratio, take_turns
from peak import peak_memory, reset_peak
from rich.console import Console
from rich.table import Table
from torch import nn

from crystalmon import Task, TaskSuite
from crystalmon.scoring.forward import Route
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score
from crystalmon.scoring.trie import count_tree
from crystalmon.suites.tasks import Choice

LEAST = 16
"""Times the suite's tokens that are timed at once: less is too short to time."""
LINE = 2
"""Points that any line goes through."""
FACTORS = (1, 2, 4, 8, 16, 32, 64)
NUM_CHOICES = (2, 8, 32, 128)
NUM_WORDS = (0, 16, 64, 128)
OPENINGS = ("", "Now", "Well", "Please", "Quick", "Listen", "Once more", "As before")
ADDRESSES = ("", "friend", "reader", "student", "machine", "stranger", "colleague", "everyone")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--factors", nargs="+", type=int, default=FACTORS, help="times the suite")
    args = parser.parse_args()
    if min(args.repeats, *args.factors) < 1:
        parser.error("--repeats and --factors must be at least 1")
    args.factors = sorted(set(args.factors))
    if max(args.factors) > FACTORS[-1]:
        parser.error(f"--factors must be at most {FACTORS[-1]}, got {max(args.factors)}")
    model, tokenizer, suite = load_asked(args, parser)
    context = {key: getattr(args, key) for key in ("model", "view", "device", "dtype", "repeats")}
    found = scaling(model, tokenizer, suite, args)
    print(json.dumps({**context, "suite": suite.name, "scaling": found}))


def scaling(
    model: Any, tokenizer: Any, suite: TaskSuite, args: argparse.Namespace
) -> dict[str, Any]:
    """Time probes of ever larger suites, print the table; the points by kind, and the line."""
    kinds: dict[str, Iterable[tuple[int, TaskSuite]]] = {
        "times the suite": ((factor, more_prompts(suite, factor)) for factor in args.factors),
        "choices": ((number, with_choices(suite, number)) for number in NUM_CHOICES),
        "words more a prompt": ((number, longer_prompts(suite, number)) for number in NUM_WORDS),
    }
    table = Table(
        *("what", "number", "prompts", "unique tokens", "median, s", "µs a token"),
        *("÷ the suite's", "range", "peak memory more, MiB"),
        title=f"{args.model}, {args.view}, {args.device}, {args.dtype}",
    )
    unit = build_plan(suite, tokenizer, args.view)
    found: dict[str, Any] = {}
    for kind, suites in kinds.items():
        for number, grown in suites:
            plan = build_plan(grown, tokenizer, args.view)
            if not fits(model, plan):
                table.add_row(kind, str(number), "too long")
                continue
            point = {"number": number, **measure(model, plan, unit, args.repeats, args.device)}
            found.setdefault(kind, []).append(point)
            table.add_row(kind, str(number), str(plan.num_prompts), *cells(point))
        table.add_section()
    console = Console(width=160)
    console.print(table)
    if len(points := found.get("times the suite", ())) > LINE:
        found["line"] = line = fit_line(points)
        console.print(
            "ever larger suites: the line has a fixed cost of {fixed:.0f} tokens; no point is "
            "further from that line than {deviation:.1%}".format(**line)
        )
    return found


def fit_line(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The line t = fixed + tokens through the points, in units of a token's cost.

    By least squares of relative errors, the largest of which is `deviation`.
    """
    tokens = np.array([point["unique_tokens"] for point in points], dtype=np.float64)
    times = tokens * [point["ratio"]["median"] for point in points]
    columns = np.stack([np.ones_like(tokens), tokens], axis=1) / times[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    deviation = np.abs(columns @ [fixed, slope] - 1).max()
    return {"fixed": float(fixed / slope), "deviation": float(deviation)}


def cells(point: dict[str, Any]) -> tuple[str, ...]:
    """A point's figures as the table shows them."""
    tokens, seconds, share = point["unique_tokens"], point["seconds"], point["ratio"]
    memory = "?" if point["peak"] is None else f"{point['peak'] / 2**20:.0f}"
    spread = f"{share['min']:.2f}–{share['max']:.2f}"
    each = f"{seconds / tokens * 1e6:.0f}"
    return str(tokens), f"{seconds:.3f}", each, f"{share['median']:.2f}", spread, memory


def fits(model: Any, plan: ScoringPlan) -> bool:
    """Whether the model has positions for the longest prompt: monitoring would refuse it."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context is None or max(map(len, plan.rows)) <= context


def measure(
    model: nn.Module, plan: ScoringPlan, unit: ScoringPlan, repeats: int, device: str
) -> dict[str, Any]:
    """A probe's median seconds; its ratio to as many tokens of `unit`; its peak memory in bytes."""
    route, unit_route = choose_route(model, plan), choose_route(model, unit)
    tokens, in_unit = (count_tree(each.rows)[0] for each in (plan, unit))
    least = LEAST * in_unit if tokens >= in_unit else in_unit
    times, unit_times = (max(1, round(max(least, tokens) / each)) for each in (tokens, in_unit))
    ways: dict[str, Callable[[], Any]] = {
        "it": partial(probe_often, times, model, plan, route),
        "suite": partial(probe_often, unit_times, model, unit, unit_route),
    }
    before = reset_peak(device)
    score(model, plan, route=route)
    peak = None if before is None else peak_memory(device) - before
    seconds = take_turns(ways, repeats, device)
    each = [value / (times * tokens) for value in seconds["it"]]
    unit_each = [value / (unit_times * in_unit) for value in seconds["suite"]]
    return {
        "rows": len(plan.rows),
        "unique_tokens": tokens,
        "seconds": float(np.median(seconds["it"])) / times,
        "ratio": ratio(each, unit_each),
        "peak": peak,
    }


def probe_often(times: int, model: nn.Module, plan: ScoringPlan, route: Route) -> None:
    """Score so many times, one after the other."""
    for _ in range(times):
        score(model, plan, route=route)


def more_prompts(suite: TaskSuite, factor: int) -> TaskSuite:
    """The suite's prompts so many times, each time with another opening before them."""
    openings = [opening_of(index) for index in range(factor)]
    return varied(suite, lambda prompts: [o + prompt for o in openings for prompt in prompts])


def opening_of(index: int) -> str:
    words = (OPENINGS[index % len(OPENINGS)], ADDRESSES[index // len(OPENINGS)])
    said = ", ".join(word for word in words if word)
    return f"{said[0].upper()}{said[1:]}. " if said else ""


def longer_prompts(suite: TaskSuite, words: int) -> TaskSuite:
    """The suite with so many words before each prompt, other ones for each."""

    def longer(prompts: Sequence[str]) -> list[str]:
        names = (*filter(None, ADDRESSES), *filter(None, OPENINGS))
        starts = range(len(prompts))
        fill = [[names[(i + j * (i + 1)) % len(names)] for j in range(words)] for i in starts]
        return [" ".join([*more, prompt]) for more, prompt in zip(fill, prompts, strict=True)]

    return varied(suite, longer)


def varied(suite: TaskSuite, change: Callable[[Sequence[str]], Sequence[str]]) -> TaskSuite:
    tasks = (replace(task, prompts=tuple(change(task.prompts))) for task in suite)
    return TaskSuite(suite.name, tuple(tasks))


def with_choices(suite: TaskSuite, number: int) -> TaskSuite:
    """The first task's prompts with so many numbers to choose from."""
    choices = tuple(Choice(str(value)) for value in range(number))
    return TaskSuite("numbers", (Task("number", suite.tasks[0].prompts, choices),))


if __name__ == "__main__":
    main()
