"""A real base on real data: Gemma 3 270M through SFT, DPO and GRPO, watched as a user would.

Each chain begins with the pretrained base and is fine-tuned on one mix: `short`, T0's tasks with
short answers, or `prose`, answers of GPT-4. DPO on human preferences follows, then GRPO with a
reward for the exact answer. Prompts are asked as they stand and in the format of the data. A
stage that was finished is not trained again; one that was interrupted goes on from its last
checkpoint.

    python scripts/study_real.py --data FOLDER                   # all, many hours on two cores
    python scripts/study_real.py --data FOLDER --chains short-0  # one of them
    python scripts/real_results.py runs/real                     # what it shows so far

FOLDER holds `instructions.jsonl.gz` (prompt, completion, source: t0 or gpteacher) and
`preferences.jsonl.gz` (prompt, chosen, rejected). The same kinds of data are on the hub:
bigscience/P3, teknium/GPTeacher-General-Instruct and Anthropic/hh-rlhf.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import run_logged
from transformers.trainer_utils import get_last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DONE = "study.json"
"""In a stage's folder, once it is trained to its end."""
FORMAT = "### Instruction:\n{prompt}\n\n### Response:\n"
ROWS = {"sft": 1000, "dpo": 200, "grpo": 48}
PROBES = {"sft": 25, "dpo": 25, "grpo": 5}
"""Steps between probes."""


@dataclass(frozen=True)
class Chain:
    """One base's way through the stages.

    Args:
        mix: that SFT is on.
        seed: of the data's order and of training.
        lora: train adapters instead of all weights, in SFT alone.
    """

    mix: str
    seed: int
    lora: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        return ("sft",) if self.lora else ("sft", "dpo", "grpo")


CHAINS = {
    "short-0": Chain("short", 0),
    "prose-0": Chain("prose", 0),
    "short-1": Chain("short", 1),
    "prose-1": Chain("prose", 1),
    "short-lora": Chain("short", 0, lora=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the folder of the two files"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/real"))
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--model", default="gemma3-270m", help="the base")
    args, options = parser.parse_known_args()
    for name in args.chains:
        chain, start = CHAINS[name], args.model
        for number, stage in enumerate(chain.stages, start=1):
            output = args.output / name / f"{number}-{stage}"
            if not (output / DONE).is_file():
                print(f"{name}: {stage}, log in {output}.log", flush=True)
                rows = write_rows(args.data, stage, chain, output.with_suffix(".jsonl"))
                train(chain, stage, start, rows, output, options)
            start = str(output)
    return 0


def write_rows(data: Path, stage: str, chain: Chain, file: Path) -> Path:
    """The rows of one stage, drawn and formatted, as a JSONL file."""
    made = {"sft": _instructions, "dpo": _preferences, "grpo": _questions}[stage](data, chain.mix)
    random.Random(f"{stage} {chain.seed}").shuffle(made)
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = [{**row, "prompt": FORMAT.replace("{prompt}", row["prompt"])} for row in made]
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen[: ROWS[stage]]))
    return file


def _instructions(data: Path, mix: str) -> list[dict[str, Any]]:
    source, fits = MIXES[mix]
    rows = (row for row in _read(data / "instructions.jsonl.gz") if row["source"] == source)
    return [{key: row[key] for key in ("prompt", "completion")} for row in rows if fits(row)]


def _preferences(data: Path, mix: str) -> list[dict[str, Any]]:
    rows = _read(data / "preferences.jsonl.gz")
    return [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) <= 300]


def _questions(data: Path, mix: str) -> list[dict[str, Any]]:
    """Short questions, whatever SFT was on: their answers can be checked."""
    rows = _instructions(data, "short")
    short = (row for row in rows if len(row["completion"]) <= 16 and len(row["prompt"]) <= 200)
    return [{"prompt": row["prompt"], "ground_truth": row["completion"]} for row in short]


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise SystemExit(f"{file} is missing. See --help for what it must hold.") from error


MIXES: Mapping[str, tuple[str, Callable[[Mapping[str, str]], bool]]] = {
    "short": ("t0", lambda row: len(row["completion"]) <= 40 and len(row["prompt"]) <= 280),
    "prose": ("gpteacher", lambda row: len(row["prompt"]) <= 200),
}
"""By mix: the source of its rows, and which fit 96 tokens; of prose the answer is cut there."""


def train(
    chain: Chain, stage: str, start: str, rows: Path, output: Path, options: Sequence[str]
) -> None:
    """Run one recipe to its end, from its last checkpoint if there is one.

    Raises:
        SystemExit: if it fails, naming its log.
    """
    command = [sys.executable, str(ROOT / f"recipes/{stage}.py")]
    command += ["--config", str(ROOT / f"recipes/gemma3/{stage}.yaml")]
    command += ["--model_name_or_path", start, "--output_dir", str(output)]
    command += ["--dataset_name", str(rows), "--seed", str(chain.seed)]
    command += ["--view", "raw", FORMAT, "--probe_every", str(PROBES[stage])]
    command += ["--max_overhead", "1", "--report_to", "none"]
    if chain.lora:
        command += ["--use_peft", "true", "--learning_rate", "2e-4"]
    if output.is_dir() and (last := get_last_checkpoint(str(output))):
        command += ["--resume_from_checkpoint", last]
    log = output.with_suffix(".log")
    if run_logged([*command, *options], log, "a"):
        raise SystemExit(f"{stage} of {output.parent.name} failed: see {log}")
    (output / DONE).write_text(json.dumps({"from": start}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
