"""Measure that the callback leaves no trace: every trainer, full and LoRA, and every engine.

python scripts/no_trace/check.py                         # all cells, about ten minutes
python scripts/no_trace/check.py --only sft-full zero3   # some of them
python scripts/no_trace/check.py --ppo-python .venv-oldest/bin/python

For every trainer, liquid-tiny trains for a few steps with dropout on: without the callback, with
it at every step, with it as by default, and with it but killed (SIGKILL) at a random moment and
resumed. Compared are the final weights and the log rows, bit by bit, and the records and events of
the resumed run with those of the uninterrupted one. For every engine, two processes: weights and
log rows without the callback and with it as by default, and the last record with that of one
process that loads the final weights. Prints a table and a JSON line; ends with status 1 if any cell
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from crystalmon import Monitor, read_run
from crystalmon.runs.run import Run

sys.path.insert(0, str(Path(__file__).parent))
from train import ENGINES, STEPS, SUITE, TRAINERS, load, lora_config

TRAIN = Path(__file__).with_name("train.py")
SAME_RECORD = 1e-6
"""Largest difference of a probability between two ranks' record and one process's."""


@dataclass(frozen=True)
class Outcome:
    """One row of a table: what was compared, and what came out.

    Args:
        name: trainer or engine, and `full` or `lora`.
        cells: by column, `yes`, what differed, or `none` and why.
    """

    name: str
    cells: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether every comparison held."""
        return all(value.startswith(("yes", "none")) for value in self.cells.values())


def main() -> None:
    args = parse()
    kinds = ("full", "lora")
    engines = [engine for engine in ENGINES if engine != "one"]
    names = [f"{trainer}-{kind}" for trainer in TRAINERS for kind in kinds]
    names += [f"{engine}-{kind}" for engine in engines for kind in kinds]
    chosen = [n for n in names if not args.only or any(n.startswith(o) for o in args.only)]
    if args.ppo_python is None:
        chosen = [name for name in chosen if not name.startswith("ppo")]
    if not chosen:
        sys.exit(f"--only must begin some of {', '.join(names)} (PPO needs --ppo-python).")
    outcomes, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(chosen, start=1):
            print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
            first, kind = name.split("-")
            check = check_engine if first in engines else check_trainer
            python = str(args.ppo_python) if first == "ppo" else sys.executable
            outcomes.append(check(first, kind, Path(folder), python))
    show(outcomes)
    seconds = round(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, **{o.name: o.cells for o in outcomes}}))
    sys.exit(0 if all(outcome.ok for outcome in outcomes) else 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--ppo-python", type=Path, help="an interpreter that has TRL 1.12")
    return parser.parse_args()


def check_trainer(trainer: str, kind: str, folder: Path, python: str) -> Outcome:
    """One trainer in one process: with and without the callback, interrupted or not."""
    lora = ["--lora"] if kind == "lora" else []
    common = ["--trainer", trainer, *lora]
    bare, watched, limited, resumed = (
        folder / f"{trainer}-{kind}-{name}" for name in ("bare", "watched", "limited", "cut")
    )
    train(bare, common, python=python)
    train(watched, [*common, "--callback"], python=python)
    train(limited, [*common, "--limited"], python=python)
    cells = {
        "weights": same_weights(bare, watched),
        "log rows": same_logs(bare, watched),
        "by default": same_by_default(bare, limited),
    }
    if trainer == "ppo":
        return Outcome(f"{trainer} {kind}", cells | {"resume": "none: PPOTrainer has no resume"})
    saving = [*common, "--callback", "--save-steps", "2"]
    interrupted = kill_at_random(resumed, saving, python)
    train(resumed, [*saving, "--resume"], python=python)
    cells["resume"] = same_runs(watched, resumed, f"killed at step {interrupted}")
    return Outcome(f"{trainer} {kind}", cells)


def check_engine(engine: str, kind: str, folder: Path, python: str) -> Outcome:
    """One engine with two processes, SFT: with and without the callback."""
    lora = ["--lora"] if kind == "lora" else []
    bare, watched = folder / f"{engine}-{kind}-bare", folder / f"{engine}-{kind}-watched"
    common = ["--engine", engine, *lora]
    train(bare, common, processes=2, python=python)
    train(watched, [*common, "--limited"], processes=2, python=python)
    cells = {
        "weights": same_weights(bare, watched),
        "log rows": same_logs(bare, watched),
        "record": same_record(watched, kind),
    }
    return Outcome(f"{engine} {kind}", cells)


def train(
    out: Path, arguments: list[str], *, processes: int = 1, python: str = sys.executable
) -> None:
    """One call of train.py, to its end.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    with start(out, arguments, processes, python) as process:
        printed, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{arguments} failed:\n{printed[-3000:]}")


def start(
    out: Path, arguments: list[str], processes: int, python: str, output: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start one call of train.py."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [python, *(launcher if processes > 1 else []), str(TRAIN), str(out), *arguments]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    return subprocess.Popen(
        command, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT
    )


def kill_at_random(out: Path, arguments: list[str], python: str) -> int:
    """Start a run and kill it at a random moment after its first checkpoint; the last step seen.

    Raises:
        RuntimeError: if it has come to its end each time before it could be killed.
    """
    draw = random.Random()
    for longest in (0.8, 0.4, 0.1, 0.0):
        shutil.rmtree(out, ignore_errors=True)
        process = start(out, arguments, 1, python, output=subprocess.DEVNULL)
        while process.poll() is None and not list(out.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, longest))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL or not (out / "crystalmon" / "run.json").is_file():
            continue
        for checkpoint in out.glob("checkpoint-*"):  # one that was being written
            if not (checkpoint / "trainer_state.json").is_file():
                shutil.rmtree(checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a torn line
            step = read_run(out).records[-1].step
        if step < STEPS:
            return step
    raise RuntimeError(f"{arguments} ended before it could be killed. Train more steps.")


def same_weights(one: Path, two: Path) -> str:
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, two))
    different = [name for name in a if not torch.equal(a[name], b[name])]
    if a.keys() != b.keys() or different:
        return f"no: {len(different)} of {len(a)} tensors differ"
    return "yes"


def same_logs(one: Path, two: Path) -> str:
    a, b = (json.loads((folder / "logs.json").read_text()) for folder in (one, two))
    losses = sum("loss" in row or "loss/policy_avg" in row for row in a)
    # NaN is not equal to itself, but its text is
    return f"yes ({losses})" if json.dumps(a) == json.dumps(b) and losses else "no"


def same_by_default(bare: Path, limited: Path) -> str:
    """Whether weights and log rows are the same; partial probes must be among those made."""
    found = (same_weights(bare, limited), same_logs(bare, limited))
    asked = [next(iter(record.tasks.values())).asked for record in read_run(limited).records]
    partial = sum(each is not None for each in asked)
    made = f"yes ({partial} of {len(asked)} probes partial)" if partial else "no partial probe"
    return next((each for each in found if not each.startswith("yes")), made)


def same_runs(one: Path, two: Path, note: str) -> str:
    """Whether records and events are the same but for the clock."""
    a, b = read_run(one), read_run(two)
    if contents(a) != contents(b):
        return f"no ({note})"
    return f"yes ({note})"


def contents(run: Run) -> str:
    records = [record.to_json() for record in run.records]
    for record in records:
        for clock in ("time", "seconds", "share"):
            del record[clock]
    return json.dumps([records, [event.to_json() for event in run.events]])


def same_record(folder: Path, kind: str) -> str:
    """The last record of a run against one process that has the final weights."""
    model, tokenizer = load()
    if kind == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora_config())
    model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    last = read_run(folder).records[-1]
    asked = next(iter(last.tasks.values())).asked
    prompts = None if asked is None else len(asked)
    alone = Monitor(model, tokenizer, SUITE, folder).probe(0, prompts=prompts)
    error = max(float(np.abs(last.tasks[n].q - alone.tasks[n].q).max()) for n in alone.tasks)
    error = max(error, abs(last.metrics["free_energy"] - alone.metrics["free_energy"]))
    return f"{'yes' if error < SAME_RECORD else 'no'} ({error:.0e})"


def show(outcomes: list[Outcome]) -> None:
    """Two tables: trainers and engines."""
    for columns in dict.fromkeys(tuple(outcome.cells) for outcome in outcomes):
        table = Table("run", *columns)
        for outcome in outcomes:
            if tuple(outcome.cells) == columns:
                table.add_row(outcome.name, *outcome.cells.values())
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
