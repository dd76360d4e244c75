"""Check on a GPU what depends on one: precision, training, too little memory, and speed.

python scripts/gpu_check.py                      # on a GPU
python scripts/gpu_check.py --sizes 1B 3B --only speed training
python scripts/gpu_check.py --tiny               # tiny shapes on a CPU; so without a GPU

It needs no network and no weights: large models get random ones.

- precision: the largest error in q against float64, by precision. In float32 it is bounded;
- training: SFT of liquid-tiny by deterministic algorithms, with the callback and without. Weights
  and log rows must be equal bit by bit, and the peak of memory may rise by the reference and one
  batch of logits;
- memory: a probe with half of the memory that it took must give the same q, in smaller batches. On
  a CPU the lack of memory is simulated;
- speed: by size, precision and panel (the whole suite, or a partial probe's wordings of each task),
  a probe over the bare forward pass of its own unique tokens, and over a training step of 8 × 2,048
  tokens, by SGD with checkpointed activations. The smallest probe must take at most one step.

`measured` means that nothing is promised, as of seconds at tiny shapes. Seconds are medians after a
warm-up. Prints a table and a JSON line; ends with status 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_answers import measure_errors, measure_little_memory
from gpu_speed import SHAPES, SMALL, TINY, measure_speed
from gpu_training import measure_training
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from crystalmon.scoring.models import load_tokenizer

ERROR_BOUNDS = {"cpu": 1e-5}
GPU_ERROR_BOUND = 1e-4
"""Of q in float32. A GPU projects the answers in float32, which rounds by 1e-5 a token."""
LEAST_APART = 0.05
"""Differences in q between prompts, below which an error would say nothing."""
SAME = 1e-5
"""Largest difference in q between batches of two sizes."""
MOST_STEPS = 1.0
"""Training steps that the smallest probe may take: then 2% of 1,000 steps hold twenty of them."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        check: its name.
        of: what was measured.
        figure: what came out, in words.
        ok: the verdict; None where nothing is promised.
        values: the numbers behind it.
    """

    check: str
    of: str
    figure: str
    ok: bool | None
    values: dict[str, Any]

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "ok", False: "failed", None: "measured"}[self.ok]


def main() -> None:
    args = parse()
    device = "cpu" if args.tiny else "cuda"
    place = "tiny shapes on a CPU" if args.tiny else torch.cuda.get_device_name()
    why = "" if torch.cuda.is_available() else ": torch finds no GPU"
    print(f"crystalmon is checked with {place}{why}", file=sys.stderr, flush=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CRYSTALMON_CACHE"] = folder
        for check in args.only:
            for row in attempted(check, args, device):
                rows.append(row)
                print(f"{check}, {row.of}: {row.figure}", file=sys.stderr, flush=True)
    show(rows, place)
    found = {"device": place, "torch": torch.__version__, "repeats": args.repeats}
    seconds = round(time.perf_counter() - started)
    print(json.dumps({**found, "seconds": seconds, "rows": [asdict(row) for row in rows]}))
    sys.exit(1 if any(row.ok is False for row in rows) else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, help="of the models on a GPU")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=[*CHECKS])
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}.")
    if args.sizes and args.tiny:
        parser.error("--sizes are those of models on a GPU. Leave out --tiny or --sizes.")
    if args.sizes and not torch.cuda.is_available():
        parser.error("--sizes need a GPU, and torch finds none. Leave them out for tiny shapes.")
    args.tiny = args.tiny or not torch.cuda.is_available()
    args.sizes = ["tiny"] if args.tiny else args.sizes or [*SHAPES]
    return args


def attempted(check: str, args: argparse.Namespace, device: str) -> Iterator[Row]:
    """A check's rows; if it raises, one more that says so, and the others are still made."""
    try:
        yield from CHECKS[check](args, device)
    except Exception as error:  # whatever a device raises
        traceback.print_exc()
        said = " ".join(str(error).split())[-300:]
        yield Row(check, "the check itself", f"{type(error).__name__}: {said}", False, {})


# --- the checks ------------------------------------------------------------------------------


def check_precision(args: argparse.Namespace, device: str) -> Iterator[Row]:
    shape, bound = TINY if args.tiny else SMALL, ERROR_BOUNDS.get(device, GPU_ERROR_BOUND)
    for found in measure_errors(shape, load_tokenizer("liquid-tiny"), device):
        promised = found["precision"] == "float32"
        # a model whose answers are all alike shows no error
        fair = found["apart"] >= LEAST_APART
        ok = fair and found["error"] <= bound if promised or not fair else None
        words = f"largest error in q {found['error']:.1e}"
        words += f" (bound {bound:.0e})" if promised else ""
        words += f"; prompts differ by {found['apart']:.2f}"
        yield Row("precision", f"{found['model']}, {found['route']}", words, ok, found)


def check_training(args: argparse.Namespace, device: str) -> Iterator[Row]:
    found = measure_training(device)
    of = f"SFT of liquid-tiny, {found['probes']} probes"
    words = f"equal weights: {found['weights']}; equal log rows: {found['log rows']}"
    ok = all(found[what].startswith("yes") for what in ("weights", "log rows"))
    memory = {name: found.pop(name) for name in ("peaks", "allowed")}
    yield Row("training", of, words, ok, found)
    (bare, watched), allowed = memory["peaks"], memory["allowed"]
    sizes = [f"{size / 2**20:.0f}" for size in (bare, watched, allowed)]
    kind = "resident set" if device == "cpu" else "allocated"
    words = f"{sizes[0]} MiB without, {sizes[1]} with the callback; {sizes[2]} more are allowed"
    ok = watched - bare <= allowed
    yield Row("training", f"its peak of memory ({kind})", words, ok, memory)


def check_memory(args: argparse.Namespace, device: str) -> Iterator[Row]:
    shape = TINY if args.tiny else SMALL
    found = measure_little_memory(shape, load_tokenizer("liquid-tiny"), device)
    passes, tokens = found["passes"], found["tokens"]
    words = (
        f"{passes[0]} → {passes[1]} passes, of at most {tokens[0]} → {tokens[1]} tokens; "
        f"q differs by {found['difference']:.1e}"
    )
    ok = passes[1] > passes[0] and found["difference"] <= SAME
    kind = "too little memory, simulated" if found["simulated"] else "half of its memory"
    yield Row("memory", kind, words, ok, found)


def check_speed(args: argparse.Namespace, device: str) -> Iterator[Row]:
    tokenizer = load_tokenizer("liquid-tiny")
    for size in args.sizes:
        shape = TINY if args.tiny else SHAPES[size]
        print(f"speed, {size}: made and timed", file=sys.stderr, flush=True)
        for found in measure_speed(shape, tokenizer, device, args.repeats):
            step = found["step"]
            if "probe" in found:
                yield speed_row(size, found, judged=not args.tiny)
                continue
            words = "does not fit into memory" if step is None else f"{step:.3g} s"
            of = f"{size}, a training step of {found['tokens']} tokens"
            yield Row("speed", of, words, None, found)


def speed_row(size: str, found: dict[str, Any], judged: bool) -> Row:
    """One panel of one precision."""
    seconds, step = found["probe"], found["step"]
    figure = f"{seconds:.3g} s, {seconds / found['forward']:.2f} × its forward pass"
    ok = None
    if step is not None:
        figure += f", {seconds / step:.2f} × a step"
        ok = seconds <= MOST_STEPS * step if judged and found["kind"] == "smallest" else None
    figure += f"; scoring alone {found['scoring']:.3g} s"
    if found["bytes"] is not None:
        figure += f", {found['bytes'] / 2**20:.0f} MiB more"
    panel = "all wordings" if found["kind"] == "whole" else f"{found['prompts']} wordings"
    of = f"{size}, {found['route']}, {panel}, {found['tokens']} tokens"
    return Row("speed", of, figure, ok, {"size": size, **found})


CHECKS: dict[str, Callable[[argparse.Namespace, str], Iterator[Row]]] = {
    "precision": check_precision,
    "training": check_training,
    "memory": check_memory,
    "speed": check_speed,
}


def show(rows: list[Row], place: str) -> None:
    table = Table("check", "of", "figure", "verdict", title=f"crystalmon on {place}")
    for row in rows:
        table.add_row(*map(escape, (row.check, row.of, row.figure, row.verdict)))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
