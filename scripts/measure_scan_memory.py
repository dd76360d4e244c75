"""Peak memory of a scan of three stages, beside one model that is loaded and probed once.

    python scripts/measure_scan_memory.py                  # a random Llama, half a minute
    python scripts/measure_scan_memory.py smollm2-135m     # some minutes

The promise: never two models, so a scan's peak is at most that of one model probed once, with its
batch, plus the references, and for what an allocator keeps a tenth of a model. The default has
random weights of 300 MB and the tokenizer of liquid-tiny: beside so small a reference and batch a
second model could not be missed. Each measurement is a process of its own, its peak the largest
resident set (on Linux). Prints a table and a JSON line; ends with status 1 if the promise is
broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peak import peak_memory
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from crystalmon import load_suite
from crystalmon.monitor.probe import Monitor
from crystalmon.scan.scan import scan
from crystalmon.scan.stages import Stage
from crystalmon.scoring.models import load_model, load_tokenizer

STAGES, RANDOM = 3, "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default=RANDOM)
    parser.add_argument("--worker", choices=("probe", "scan"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    suite = "liquid-tiny" if args.model in (RANDOM, "liquid-tiny") else "randomness"
    if args.worker:
        work(args.worker, args.model, suite, args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = save_random(folder) if args.model == RANDOM else None
        peaks = {kind: run(kind, args.model, folder) for kind in ("probe", "scan")}
        reference = (folder / "scan" / "reference" / "reference.safetensors").stat().st_size
    if size is None:
        size = bytes_of(load_model(args.model)[0])
    more, allowed = peaks["scan"] - peaks["probe"], reference + size // 10
    table = Table("MiB", args.model, title=f"a scan of {STAGES} stages on a CPU")
    for what, value in (
        ("one model, loaded and probed once", peaks["probe"]),
        (f"a scan of {STAGES} such stages", peaks["scan"]),
        ("more", more),
        ("allowed: the reference, a tenth of a model", allowed),
        ("a second model", size),
    ):
        table.add_row(what, f"{value / 2**20:.1f}")
    Console().print(table)
    print(json.dumps({"model": args.model, **peaks, "reference": reference, "size": size}))
    sys.exit(0 if more <= allowed else 1)


def save_random(folder: Path) -> int:
    """As many copies of a random model as there are stages; the bytes of one's weights."""
    tokenizer = load_tokenizer("liquid-tiny")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=2304, num_hidden_layers=10,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for stage in range(STAGES):
        model.save_pretrained(folder / f"stage-{stage}")
        tokenizer.save_pretrained(folder / f"stage-{stage}")
    return bytes_of(model)


def bytes_of(model: torch.nn.Module) -> int:
    """The size of a model's weights."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def run(kind: str, model: str, folder: Path) -> int:
    """One measurement in a process of its own; its peak in bytes."""
    print(f"measuring: {kind}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, model, "--worker", kind, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def work(kind: str, name: str, suite: str, folder: Path) -> None:
    """Probe the first stage or scan all, and print the peak in bytes."""
    places = [name if name != RANDOM else str(folder / f"stage-{s}") for s in range(STAGES)]
    if kind == "scan":
        stages = [Stage(f"stage-{number}", place) for number, place in enumerate(places)]
        scan(stages, folder / "scan", suite, tell=lambda line: print(line, file=sys.stderr))
    else:
        model, tokenizer = load_model(places[0], dtype="auto")
        Monitor(model, tokenizer, load_suite(suite), "initial").probe(0)
    print(peak_memory())


if __name__ == "__main__":
    main()
