"""Watch `liquid-tiny` crystallize through SFT, DPO and GRPO, and check what was found.

Each stage is a recipe, started as a user would start it, from the folder of the stage before. The
pretrained model stays the base throughout. At the end: a table by stage, the seeds found against
the planted ones, a figure, a report, and where to look next. Ends with status 1 if a stage fails.

    python scripts/demo.py
    python scripts/demo.py --max_steps 5    # what it does not know goes to the recipes
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crystalmon import Run, read_run
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from crystalmon.report.page import write_report
from crystalmon.report.stage_figure import stage_figure
from crystalmon.report.summary import format_stage_table, stage_table
from crystalmon.synthetic import load_truth

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"sft": 1, "dpo": 4, "grpo": 3}
"""Steps from one probe to the next: in SFT, where most happens, each step is probed."""


def environment(folder: Path) -> dict[str, str]:
    """No network, trackers' files beside the runs, and only our own output.

    One thread: the model is too small to gain from more, which on a busy machine wait for each
    other.
    """
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_SILENT": "true",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }


def run_logged(command: list[str], log: Path, mode: str = "w") -> int:
    """Run a command in the repository, its output in a log beside its folder; its exit status."""
    with log.open(mode) as file:
        done = subprocess.run(
            command,
            env=environment(log.parent),
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode


def run_stage(stage: str, start: str, output: Path, options: Sequence[str]) -> int:
    """Run one recipe as a process of its own, its output streaming through; its exit status."""
    command = [sys.executable, str(ROOT / f"recipes/{stage}.py")]
    command += ["--config", str(ROOT / f"recipes/liquid-tiny/{stage}.yaml")]
    command += ["--model_name_or_path", start, "--output_dir", str(output)]
    command += ["--run_name", output.name, "--report_to", "tensorboard"]
    command += ["--probe_every", str(STAGES[stage])]
    if not sys.stdout.isatty():
        command += ["--disable_tqdm", "true"]
    command += options
    return subprocess.run(command, env=environment(output.parent), check=False).returncode


def seed_is_right(base: np.ndarray, found: int | None, planted: int) -> bool:
    """Whether the seed found is the planted one, or its near twin.

    Args:
        base: [P, C] the base model's answers.
        found: the locked seed, or None.
        planted: the planted one.
    """
    if found is None:
        return False
    return bool(js_divergence(base[found], base[planted]) < noise_floor(base, planted))


def compare_seeds(runs: Sequence[Run]) -> list[str]:
    """A line per task: the planted seed, and the one locked at the end of each stage.

    Where none is locked, how many ends are left, of which "no base wording" is one; `–` before an
    onset.
    """
    truth = load_truth()
    base = {name: task.q for name, task in runs[0].records[0].tasks.items()}
    right = [0] * len(runs)
    lines = ["seed".ljust(12) + "planted".rjust(9) + "".join(run.name.rjust(9) for run in runs)]
    for name, world in truth.items():
        line = f"{name:<12}{world['seed']:>9}"
        for stage, run in enumerate(runs):
            task = run.records[-1].tasks[name]
            found = task.seed
            good = seed_is_right(base[name], found, world["seed"])
            right[stage] += good
            left = f"{len(task.seed_set)} left" if task.seed_set else "–"
            shown = left if found is None else str(found)
            line += f"{shown:>8}" + ("=" if good else " ")
        lines.append(line)
    counts = ", ".join(f"{count} after {run.name}" for count, run in zip(right, runs, strict=True))
    return [*lines, f"planted seed found (=) in {right[0]} of {len(truth)} tasks: {counts}"]


def report(folder: Path, outputs: Sequence[Path]) -> None:
    """Print the table, the seeds, the figure's place and where to look next."""
    runs = [read_run(output) for output in outputs]
    figure = folder / "stages.png"
    stage_figure(runs).savefig(figure)
    page = write_report(outputs, folder / "report.html")
    print(f"\n{format_stage_table(stage_table(runs))}\n")
    print("\n".join(compare_seeds(runs)))
    print(
        f"\nfigure: {figure}\nreport: {page} (open it in a browser)\n"
        "look further (after `. .venv/bin/activate`):\n"
        f"  tensorboard --logdir {folder}\n"
        f"  crystalmon send {outputs[0]} --to wandb\n"
        f"  crystalmon summary {' '.join(str(output) for output in outputs)}\n"
        f"  crystalmon probe {outputs[-1]} --suite liquid-tiny\n"
        "  python recipes/sft.py --config recipes/smollm2/sft.yaml --output_dir runs/smollm2"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="SFT, DPO and GRPO on liquid-tiny, watched.")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="replaced if there")
    args, options = parser.parse_known_args()
    folder = args.output
    if folder.exists() and any(folder.iterdir()) and not (folder / "1-sft").is_dir():
        print(f"{folder} is not empty and no earlier demo. Name another --output.", file=sys.stderr)
        return 2
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)

    start, outputs, began = "liquid-tiny", [], time.perf_counter()
    for number, stage in enumerate(STAGES, start=1):
        output = folder / f"{number}-{stage}"
        print(f"\n=== {stage.upper()} from {start} ===", flush=True)
        if status := run_stage(stage, start, output, options):
            print(f"the stage {stage} failed with status {status}.", file=sys.stderr)
            return 1
        start = str(output)
        outputs.append(output)
    report(folder, outputs)
    print(f"took {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
