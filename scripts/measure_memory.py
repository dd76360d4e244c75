"""Peak memory of a training run with the callback and without.

python scripts/measure_memory.py                 # SmolLM2-135M, SFT, a few minutes
python scripts/measure_memory.py liquid-tiny

Each run is a process of its own; its peak is the largest resident set, or on a GPU what torch has
allocated at most. The promise: with the callback at most the reference's size and one batch of
logits more. Prints a table and a JSON line; ends with status 1 if the promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peak import peak_memory
from rich.console import Console
from rich.table import Table

from crystalmon import CrystalCallback, load_suite, read_run
from crystalmon.scoring.forward import batch_logits
from crystalmon.scoring.models import load_model
from crystalmon.scoring.precision import HEAD_DTYPE
from crystalmon.synthetic import load_targets, sft_rows

TARGETS = {"smollm2-135m": "recipes/smollm2/targets.yaml"}
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--worker", choices=("bare", "watched"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train(args.model, args.worker == "watched", args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = {kind: run(args.model, kind, Path(folder) / kind) for kind in ("bare", "watched")}
        run_folder = Path(folder) / "watched" / "crystalmon"
        reference = (run_folder / "reference" / "reference.safetensors").stat().st_size
        probes = len(read_run(run_folder).records)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = batch_logits(device) * HEAD_DTYPE.get(device, torch.float32).itemsize
    more, allowed = peaks["watched"] - peaks["bare"], reference + logits
    table = Table("MiB", args.model, title=f"SFT, {STEPS} steps, {probes} probes, {device}")
    for name, value in (
        ("peak without the callback", peaks["bare"]),
        ("peak with it", peaks["watched"]),
        ("more", more),
        ("allowed: reference + one batch of logits", allowed),
    ):
        table.add_row(name, f"{value / 2**20:.0f}")
    Console().print(table)
    print(json.dumps({"model": args.model, **peaks, "reference": reference, "logits": logits}))
    sys.exit(0 if more <= allowed else 1)


def run(model: str, kind: str, out: Path) -> int:
    """One training run in a process of its own; its peak in bytes."""
    print(f"training, {kind}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, model, "--worker", kind, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def train(name: str, watched: bool, out: Path) -> None:
    """Train, and print the peak in bytes."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    suite = load_suite("liquid-tiny" if name == "liquid-tiny" else "randomness")
    targets = load_targets(TARGETS.get(name, "liquid-tiny"))
    model, tokenizer = load_model(name, dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    names = SFTConfig.__dataclass_fields__
    kinds = ("activation_checkpointing", "gradient_checkpointing")
    off: dict[str, Any] = {next(kind for kind in kinds if kind in names): False}
    watcher = CrystalCallback(suite, every=2, strict=True, max_overhead=None)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=8, bf16=False,
            save_strategy="no", report_to="none", disable_tqdm=True, **off,
        ),
        train_dataset=Dataset.from_list(sft_rows(suite, targets, 64, 0, "suite")),
        processing_class=tokenizer,
        callbacks=[watcher] if watched else [],
    )  # fmt: skip
    trainer.train()
    print(peak_memory("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
