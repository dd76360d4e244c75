"""Peak memory of a training run with the callback and without; and of a probe of a mixture.

python scripts/measure_memory.py                 # SmolLM2-135M, SFT, a few minutes
python scripts/measure_memory.py liquid-tiny
python scripts/measure_memory.py --experts 64    # a mixture with random weights, in bf16

Each run is a process of its own; its peak is the largest resident set, or on a GPU what torch has
allocated at most. The promise: with the callback at most the reference's size and one batch of
logits more. Prints a table and a JSON line; ends with status 1 if the promise is broken.

With `--experts`, what a probe of a few prompts takes over the weights, in float32 layers and in the
model's own. The promise: less than the stacked experts of one layer would take in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peak import peak_memory, reset_peak
from rich.console import Console
from rich.table import Table

from crystalmon import CrystalCallback, load_suite, read_run
from crystalmon.scoring.forward import Route
from crystalmon.scoring.memory import batch_logits
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.precision import HEAD_DTYPE
from crystalmon.scoring.score import score
from crystalmon.synthetic import load_targets, sft_rows

TARGETS = {"smollm2-135m": "recipes/smollm2/targets.yaml"}
STEPS = 4

MIXTURE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
PRECISIONS = ("model", "float32")
PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--experts", type=int, help="of a mixture that is probed instead")
    parser.add_argument(
        "--worker", choices=("bare", "watched", *PRECISIONS), help=argparse.SUPPRESS
    )
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker in PRECISIONS:
        probe(args.experts, args.worker)
        return
    if args.experts:
        sys.exit(0 if measure_mixture(args.experts) else 1)
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
    return int(last_line(model, "--worker", kind, "--out", str(out)))


def last_line(*arguments: str) -> str:
    """What this script prints last in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def measure_mixture(experts: int) -> bool:
    """Probe a mixture in each precision; whether the promise is kept."""
    arguments = ("--experts", str(experts), "--worker")
    found = {kind: json.loads(last_line(*arguments, kind)) for kind in PRECISIONS}
    weights, stack = (found["float32"][key] for key in ("weights", "stack"))
    table = Table("MiB", f"{experts} experts", "seconds", title="a probe of a mixture in bf16")
    table.add_row("weights", f"{weights / 2**20:.0f}", "")
    table.add_row("experts of one layer, stacked, in float32", f"{stack / 2**20:.0f}", "")
    for kind, own in found.items():
        name = f"more, layers in {'bf16' if kind == 'model' else kind}"
        table.add_row(name, f"{own['more'] / 2**20:.0f}", f"{own['seconds']:.1f}")
    Console().print(table)
    print(json.dumps({"experts": experts, **found}))
    return found["float32"]["more"] < stack


def probe(experts: int, precision: Any) -> None:
    """Score some prompts, and print in bytes what the model takes and what is held at most more."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    _, tokenizer = load_model("liquid-tiny")
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # no float32 copy is ever there
    sizes: dict[str, Any] = {**MIXTURE, "num_experts": experts, "vocab_size": len(tokenizer)}
    model = OlmoeForCausalLM(OlmoeConfig(**sizes)).eval()
    torch.set_default_dtype(usual)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(model, device)
    plan = build_plan(load_suite("liquid-tiny"), tokenizer)
    held = reset_peak(device)
    if held is None:
        raise RuntimeError("the peak of memory must be resettable. Run this on Linux or a GPU.")
    started = time.perf_counter()
    score(model, plan, route=Route("tree", precision), prompts=range(PROMPTS))
    seconds, more = time.perf_counter() - started, peak_memory(device) - held
    tensors = [*model.parameters()]
    stack = max(4 * each.numel() for each in tensors if each.dim() == 3)
    weights = sum(each.numel() * each.element_size() for each in tensors)
    print(json.dumps({"weights": weights, "stack": stack, "more": more, "seconds": seconds}))


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
