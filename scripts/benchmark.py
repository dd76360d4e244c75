"""What a probe takes, side by side with other ways to the same numbers.

python scripts/benchmark.py                                  # liquid-tiny
python scripts/benchmark.py --model smollm2-135m --repeats 3
python scripts/benchmark.py --device cuda --parts crystalmon floor
python scripts/benchmark.py --model smollm2-135m --parts scoring --packs 128 256 512

- crystalmon: a whole probe, `Monitor.probe`, as in training: scored, compared with the base over
  the vocabulary, with its intervals and phases (the choice of the route, made once a run, is timed
  apart);
- scoring: of that the log-probabilities of the choices alone, `scoring.score.score`;
- rows: the same with every unfinished answer in a row of its own, in the same precision;
- packs (`--packs`): scoring again with trees of at most so many tokens, to hold the size that is
  chosen by arithmetic against others;
- lm-eval: lm-evaluation-harness' own HFLM, given the same tokens as log-likelihood requests
  (context, continuation) and as many of them a batch; its answers are first held against
  crystalmon's, in the dtype given and in float64, and where they differ most in the former, both
  against the model's plain forward pass in float64. Needs `pip install -e '.[bench]'`;
- sampling: 128 sampled answers a prompt with `model.generate`, on a few prompts, scaled up;
- floor: the model's bare forward pass over as many tokens as the suite's prefix tree has, in
  sequences as long as crystalmon's packs, as many tokens a batch;
- partial, partial-floor: a probe of the fewest wordings of each task (of a suite of fewer than four
  tasks: all), and the model's bare forward pass over as many tokens as those have.

All in one process, the parts taking turns in every repetition, after one warm-up each; the ratios
are medians of ratios within a repetition. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crystalmon import TaskSuite, load_suite
from crystalmon.cli.options import load_placed
from crystalmon.monitor.probe import Monitor
from crystalmon.scoring.forward import Route
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.memory import DEFAULT_BATCH_TOKENS, MAX_BATCH_TOKENS
from crystalmon.scoring.plan import ScoringPlan, build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

DEFAULT_PARTS = ("crystalmon", "scoring", "rows", "lm-eval", "sampling", "floor")
PARTS = (*DEFAULT_PARTS, "partial", "partial-floor")
FLOORS = {"crystalmon": "floor", "partial": "partial-floor"}
"""The bare forward pass that a probe is held against."""
SAMPLES = 128
CHECKED = 16
"""Paths, of those that differ most, that are computed in float64 too."""
TOLERANCE = 1e-4
"""Largest difference in a log-likelihood from lm-eval's at which both count as equal."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", default=DEFAULT_PARTS, choices=PARTS)
    parser.add_argument("--packs", nargs="+", type=int, default=(), help="sizes to score with too")
    parser.add_argument("--sample-prompts", type=int, default=4, help="that sampling is timed on")
    parser.add_argument("--lm-eval-batch", type=int, help="requests; default: as many tokens")
    args = parser.parse_args()
    if min(args.repeats, args.sample_prompts, *args.packs) < 1:
        parser.error("--repeats, --sample-prompts and --packs must be at least 1")
    if "lm-eval" in args.parts:
        try:
            harness_class()
        except ModuleNotFoundError as error:
            parser.error(str(error))
    model, tokenizer, suite = load_asked(args, parser)
    found = side_by_side(model, tokenizer, suite, args)
    context = {key: getattr(args, key) for key in ("model", "view", "device", "dtype", "repeats")}
    print(json.dumps({**context, "suite": suite.name, **found}))


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of what is timed and how often, for a script with this docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="liquid-tiny")
    parser.add_argument("--suite", help="by default the model's own, or `randomness`")
    parser.add_argument("--view", default="raw", choices=("raw", "chat"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def load_asked(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[Any, Any, TaskSuite]:
    """The model, its tokenizer and the suite that `make_parser`'s arguments ask for."""
    own = args.model if args.model == "liquid-tiny" else "randomness"
    try:
        suite = load_suite(args.suite or own)
        model, tokenizer = load_placed(args.model, args.dtype, args.device)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    return model.eval(), tokenizer, suite


def side_by_side(
    model: Any, tokenizer: Any, suite: TaskSuite, args: argparse.Namespace
) -> dict[str, Any]:
    """Time all parts in turns, print their table; all of it as a dict."""
    plan = build_plan(suite, tokenizer, args.view)
    started = time.perf_counter()
    route = choose_route(model, plan)
    choosing = time.perf_counter() - started
    found: dict[str, Any] = {"route": str(route), "pack": route.pack, "seconds_to_choose": choosing}
    ways = ways_to_score(model, tokenizer, plan, route, args)
    if {"crystalmon", "partial", "partial-floor"} & {*args.parts}:
        monitor, steps = Monitor(model, tokenizer, suite, "initial", view=args.view), count()
        monitor.route = route  # what is said of the others' holds for it too
        fewest = min(monitor.subsets)
        tokens = monitor.tokens()[fewest]
        for _ in range(4):  # at the first and the fourth probe the route is proven
            monitor.probe(next(steps), prompts=fewest)
        ways["crystalmon"] = lambda: monitor.probe(next(steps))
        ways["partial"] = lambda: monitor.probe(next(steps), prompts=fewest)
        ways["partial-floor"] = lambda: bare_forward(model, tokens, route.pack)
        if "partial" in args.parts:
            found["partial"] = {"prompts": fewest, "unique_tokens": tokens}
    if "lm-eval" in args.parts:
        harness = load_harness(model, tokenizer, plan, args.lm_eval_batch)
        ways["lm-eval"] = lambda: harness_log_likelihoods(harness, plan)
        mine, theirs = log_likelihoods(model, plan, route), ways["lm-eval"]()
        found["agreement"] = agreement(mine, theirs)
        found["agreement"] |= in_float64(model, tokenizer, plan, route, args, (mine, theirs))
    parts = [*args.parts, *(pack_name(size) for size in args.packs)]
    seconds = take_turns({part: ways[part] for part in parts}, args.repeats, args.device)
    if "sampling" in seconds:
        scale = plan.num_prompts / min(args.sample_prompts, plan.num_prompts)
        seconds["sampling"] = [value * scale for value in seconds["sampling"]]
    base = "crystalmon" if "crystalmon" in parts else parts[0]
    found |= {
        "rows": len(plan.rows),
        "row_tokens": plan.num_tokens,
        "unique_tokens": plan.num_unique_tokens,
        "seconds": seconds,
        "ratios": {part: ratio(seconds[part], seconds[base]) for part in parts},
        "over_floor": {
            part: ratio(seconds[part], seconds[floor])
            for part, floor in FLOORS.items()
            if {part, floor} <= {*parts}
        },
    }
    print_parts(args, plan, found, base)
    return found


def ways_to_score(
    model: Any, tokenizer: Any, plan: ScoringPlan, route: Route, args: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """The parts that need nothing but the plan, by name."""
    return {
        "scoring": lambda: score(model, plan, route=route),
        "rows": lambda: score(model, plan, route=Route("rows", route.precision)),
        "floor": lambda: bare_forward(model, plan.num_unique_tokens, route.pack),
        "sampling": lambda: sample_answers(model, tokenizer, plan, args.sample_prompts),
        **{
            pack_name(size): partial(score, model, plan, route=replace(route, pack=size))
            for size in args.packs
        },
    }


def pack_name(size: int) -> str:
    return f"packs of {size}"


def take_turns(
    ways: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each way in each repetition, after a warm-up; they take turns at being first."""
    seconds: dict[str, list[float]] = {part: [] for part in ways}
    for repeat in range(-1, repeats):
        order = [*ways]
        shift = max(repeat, 0) % len(order)
        for part in order[shift:] + order[:shift]:
            took = timed(ways[part], device)
            if repeat >= 0:
                seconds[part].append(took)
    return seconds


def timed(run: Callable[[], Any], device: str) -> float:
    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def ratio(mine: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median and range of the ratios within each repetition."""
    ratios = np.array(mine) / np.array(base)
    return {"median": float(np.median(ratios)), "min": ratios.min(), "max": ratios.max()}


def print_parts(
    args: argparse.Namespace, plan: ScoringPlan, found: dict[str, Any], base: str
) -> None:
    title = (
        f"{args.model}, {args.view}, {args.device}, {args.dtype}: {len(plan.rows)} rows, "
        f"{found['unique_tokens']} unique tokens of {found['row_tokens']}; route {found['route']}, "
        f"packs of {found['pack']}, chosen in {found['seconds_to_choose']:.2f} s"
    )
    table = Table("part", "median, s", f"× {base}", "range", title=title)
    for part, share in found["ratios"].items():
        scaled = f" (scaled up from {args.sample_prompts} prompts)" if part == "sampling" else ""
        table.add_row(
            part + scaled,
            f"{np.median(found['seconds'][part]):.3f}",
            f"{share['median']:.2f}",
            f"{share['min']:.2f}–{share['max']:.2f}",
        )
    console = Console(width=140)
    console.print(table)
    for part, over in found["over_floor"].items():
        whole = part == "crystalmon"
        tokens = found["unique_tokens"] if whole else found["partial"]["unique_tokens"]
        console.print(
            f"a {'whole' if whole else 'partial'} probe takes {over['median']:.2f} "
            f"({over['min']:.2f}–{over['max']:.2f}) times the bare forward pass over its {tokens} "
            "unique tokens"
        )
    if "agreement" in found:
        console.print(
            "log-likelihoods: {over} of {paths} differ from lm-eval's by over {tolerance:.0e}, the "
            "largest by {largest:.1e}; with both in float64, {in_float64[over]}, the largest by "
            "{in_float64[largest]:.1e}; of the {checked} that differ most, crystalmon's are off by "
            "at most {crystalmon:.1e}, lm-eval's by {lm_eval:.1e}".format(
                **found["agreement"], tolerance=TOLERANCE
            )
        )


# --- the parts -------------------------------------------------------------------------------


def bare_forward(model: nn.Module, tokens: int, length: int) -> None:
    """The model's own forward pass over so many tokens, in sequences of a length, full batches."""
    device = next(model.parameters()).device
    limit = batch_tokens(model)
    config: Any = model.config
    length = min(limit, getattr(config, "max_position_embeddings", None) or limit, length)
    flat = torch.arange(tokens, device=device) % int(config.vocab_size)
    whole = tokens // length
    sequences = flat[: whole * length].view(whole, length)
    batches = [*sequences.split(max(1, limit // length)), flat[whole * length :].unsqueeze(0)]
    with undisturbed(model):
        for batch in batches:
            if batch.numel():
                model(input_ids=batch, use_cache=False)


def batch_tokens(model: nn.Module) -> int:
    """Tokens that crystalmon takes a forward pass on the model's device."""
    device = next(model.parameters()).device
    return MAX_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS)


def sample_answers(model: Any, tokenizer: Any, plan: ScoringPlan, number: int) -> int:
    """Sample answers as long as a prompt's longest choice, for some prompts; how many prompts."""
    device = next(model.parameters()).device
    number = min(number, plan.num_prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    lengths = answer_lengths(plan)
    with undisturbed(model):
        for prompt in np.linspace(0, plan.num_prompts - 1, number).round().astype(int):
            tokens = torch.tensor([plan.rows[prompt]], device=device)
            model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=SAMPLES, max_new_tokens=lengths[prompt], pad_token_id=pad,
            )  # fmt: skip
    return number


def answer_lengths(plan: ScoringPlan) -> list[int]:
    """[N] tokens of each prompt's longest path."""
    lengths = [1] * plan.num_prompts
    for row in plan.edge_row:
        prompt = int(plan.row_prompt[row])
        longest = len(plan.rows[row]) - len(plan.rows[prompt]) + 1
        lengths[prompt] = max(lengths[prompt], longest)
    return lengths


def harness_class() -> Any:
    """lm-evaluation-harness' wrapper of transformers models.

    Raises:
        ModuleNotFoundError: if it cannot be imported.
    """
    try:
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError) as error:  # the latter: too old for this transformers
        raise ModuleNotFoundError(
            f"the part lm-eval needs the package lm-eval ({error}). In the clone, run "
            "`pip install -e '.[bench]'`, or name other --parts."
        ) from error
    return HFLM


def load_harness(model: Any, tokenizer: Any, plan: ScoringPlan, batch: int | None = None) -> Any:
    """The model within lm-eval; by default as many tokens a batch as crystalmon takes."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    batch = batch or max(1, batch_tokens(model) // max(map(len, plan.rows)))
    return harness_class()(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch
    )


def paths_of(plan: ScoringPlan) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) tokens of every path of a plan."""
    found = []
    for edge in plan.path_edge:
        row = int(plan.edge_row[edge])
        context = plan.rows[plan.row_prompt[row]]
        answer = (*plan.rows[row][len(context) :], int(plan.edge_token[edge]))
        found.append(([*context], [*answer]))
    return found


def harness_log_likelihoods(harness: Any, plan: ScoringPlan) -> np.ndarray:
    """[K] log-likelihoods of all paths by lm-eval, without its tokenization."""
    requests = [((str(i), ""), *tokens) for i, tokens in enumerate(paths_of(plan))]
    with torch.no_grad():
        answers = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    return np.array([value for value, _ in answers])


def log_likelihoods(model: nn.Module, plan: ScoringPlan, route: Route) -> np.ndarray:
    """[K] log-likelihoods of all paths by crystalmon.

    A plan has no table of its paths, so each path is made a choice of its own, which no other
    path is nested in: its log-probability is then the log-likelihood.
    """
    prompts = plan.row_prompt[plan.edge_row[plan.path_edge]]
    counts = np.bincount(prompts, minlength=plan.num_prompts)
    apart = replace(
        plan,
        shapes=tuple((1, int(count)) for count in counts),
        path_cell=np.arange(len(plan.path_edge)),
        nested=np.zeros((0, 2), dtype=np.int64),
    )
    return np.concatenate([table[0] for table in score(model, apart, route=route).log_choice])


def agreement(mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """How far [K] log-likelihoods differ."""
    difference = np.abs(mine - theirs)
    over, largest = int(np.sum(difference > TOLERANCE)), float(difference.max())
    return {"paths": len(difference), "over": over, "largest": largest}


def in_float64(
    model: Any,
    tokenizer: Any,
    plan: ScoringPlan,
    route: Route,
    args: argparse.Namespace,
    pair: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """The agreement of both where neither rounds, and who was right where they did."""
    wide = copy.deepcopy(model).double()
    harness = load_harness(wide, tokenizer, plan, args.lm_eval_batch)
    exactly = log_likelihoods(wide, plan, route), harness_log_likelihoods(harness, plan)
    return {"in_float64": agreement(*exactly), **errors(wide, plan, *pair)}


def errors(
    wide: nn.Module, plan: ScoringPlan, mine: np.ndarray, theirs: np.ndarray
) -> dict[str, Any]:
    """Who is right where [K] log-likelihoods differ most, by the model in float64."""
    worst = np.argsort(-np.abs(mine - theirs))[:CHECKED]
    paths = paths_of(plan)
    exact = exact_log_likelihoods(wide, [paths[index] for index in worst])
    return {
        "checked": len(worst),
        "crystalmon": float(np.abs(mine[worst] - exact).max()),
        "lm_eval": float(np.abs(theirs[worst] - exact).max()),
    }


def exact_log_likelihoods(
    wide: nn.Module, paths: Sequence[tuple[list[int], list[int]]]
) -> np.ndarray:
    """[K] by the model as it is, each path in a forward pass of its own."""
    found = []
    for context, answer in paths:
        tokens = torch.tensor([context + answer], device=next(wide.parameters()).device)
        with torch.no_grad():
            log_p = wide(input_ids=tokens).logits[0, len(context) - 1 : -1].log_softmax(dim=-1)
        found.append(float(log_p.gather(-1, tokens[0, len(context) :, None]).sum()))
    return np.array(found)


if __name__ == "__main__":
    main()
