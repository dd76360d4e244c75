"""The same preference training at several KL penalties: is the transition sharper at lower ones?

DPO on `liquid-tiny` from the pretrained model, since a model that SFT has crystallized has no
transition left to show. In DPO `beta` is the weight of the KL penalty that the loss is derived
from; 12 runs of about two minutes by default. A run that is complete and of the same settings is
kept, so that a sweep that was interrupted goes on; the table is that of `crystalmon sharpness`.

    python scripts/sweep_beta.py --output runs/sweep
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from demo import ROOT, environment

from crystalmon import read_run

CONFIG = ROOT / "recipes/liquid-tiny/dpo.yaml"
OPTIONS = {
    "model_name_or_path": "liquid-tiny",
    "learning_rate": 1.5e-3,
    "max_steps": 120,
    "dataset_size": 1920,
    "warmup_steps": 20,
    "probe_every": 3,
    "max_overhead": 1,
    "report_to": "none",
    "disable_tqdm": "true",
}
"""Where they differ from the recipe: seven times its learning rate and three times its steps, with
which every beta crystallizes."""


COMMAND_FILE = "sweep.json"
"""In a run's folder, beside the trainer's files: the command that it was trained with."""


def command_of(beta: float, seed: int, folder: Path, options: list[str]) -> list[str]:
    """What trains one run."""
    command = [sys.executable, str(ROOT / "recipes/dpo.py"), "--config", str(CONFIG)]
    given = {**OPTIONS, "beta": beta, "seed": seed, "output_dir": folder}
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return command + options


def is_complete(folder: Path, command: list[str]) -> bool:
    """Whether a run was trained with just this command, and has been probed at its last step."""
    try:
        run = read_run(folder)
        trained_with = json.loads((folder / COMMAND_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if trained_with[1:] != command[1:]:  # whatever the interpreter
        return False
    return bool(run.records) and run.records[-1].step == run.info.get("max_steps")


def log_of(folder: Path) -> Path:
    """Where a run's output goes."""
    return folder.with_name(f"{folder.name}.log")


def train(folder: Path, command: list[str]) -> int:
    """One run as a process of its own, its output in a file beside its folder; its exit status."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with log_of(folder).open("wb") as log:
        status = subprocess.run(
            command, env=environment(folder.parent), stdout=log, stderr=log, check=False
        ).returncode
    if status == 0:
        (folder / COMMAND_FILE).write_text(json.dumps(command), encoding="utf-8")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="DPO on liquid-tiny at several KL penalties.")
    parser.add_argument("--output", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, options = parser.parse_known_args()

    sweep = list(product(args.seeds, args.betas))
    folders = [args.output / f"beta{beta:g}-seed{seed}" for seed, beta in sweep]
    for number, ((seed, beta), folder) in enumerate(zip(sweep, folders, strict=True), start=1):
        training = command_of(beta, seed, folder, options)
        began, kept = time.perf_counter(), is_complete(folder, training)
        status = 0 if kept else train(folder, training)
        if status != 0:
            print(f"{folder.name} failed: see {log_of(folder)}", file=sys.stderr)
            return 1
        took = "kept" if kept else f"{time.perf_counter() - began:.0f} s"
        print(f"{number}/{len(sweep)} {folder.name}: {took}", flush=True)
    command = [sys.executable, "-m", "crystalmon.cli.main", "sharpness", *map(str, folders)]
    return subprocess.run([*command, "-o", str(args.output)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
