"""Two families of tiny models, fine-tuned on the same planted seeds, scanned and compared.

Family A is the bundled `liquid-tiny`. B is built here from the same world, with weights drawn from
another seed, a tokenizer of another vocabulary and the corpus in another order. Each goes through
SFT, DPO and GRPO by the recipes, and is scanned. Then A's seeds are looked for in B's stages and
B's in A's. Two planted negatives go through SFT alone: `B-other` towards other prompts than the
planted seeds, `B-seedless` towards answers that no base prompt gives. A's seeds must not be found
there. A stage that was trained to its end is not trained again, a stage that was scanned is kept.
The exit status is 1 where what was planted is not found, or found where it was not.

    python scripts/study.py              # two tiny families, about ten minutes on two cores
    python scripts/study.py --smollm2    # also SmolLM2-135M by its recipes, much longer
    python scripts/study.py --output runs/short --max_steps 5    # the rest goes to the recipes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo import environment, run_logged, seed_is_right
from tqdm.auto import tqdm
from trained_bank import lonely_row

from crystalmon import Run, read_run
from crystalmon.analysis.transfer import NOTABLE, StageTransfer, find_transfer, format_transfer
from crystalmon.analysis.verdicts import FAILS, HOLDS, NUCLEATED, format_verdicts
from crystalmon.report.page import write_report
from crystalmon.report.scan_figures import write_scan_figures
from crystalmon.report.style import write_figure
from crystalmon.report.transfer_figure import transfer_figure
from crystalmon.runs.json_values import json_value
from crystalmon.scan.scan import scan
from crystalmon.scan.stages import Stage
from crystalmon.scoring.models import find_mark
from crystalmon.synthetic import load_truth

ROOT = Path(__file__).resolve().parents[1]
MARK = "study.json"
"""In a stage's folder, once it is trained: what it was trained from and towards."""
WRONG = 0.1
"""The largest share of tasks with a wrong seed in a study that ends well."""
B_SETTINGS = ("--seed", "1", "--vocab-size", "640", "--digits", "joined")
TRANSFERS = (
    ("A", "B"),
    ("B", "A"),
    ("A", "B-other"),
    ("A", "B-seedless"),
    ("B-other", "A"),
)
"""Whose seeds are looked for in whose stages: found in the first two, and in no other. The planted
seeds were drawn with room around them, so that they rank low where they have not won; the last
looks for prompts drawn at random."""
COLUMNS = ("order", "variety", "final_seed_mse", "final_seed_mass", "proxy_mse", "proxy_mass")


@dataclass(frozen=True)
class Family:
    """One chain of stages.

    Args:
        name: of its folder.
        base: a model, as recipes take it.
        recipes: the folder of its recipes' settings.
        suite: that it is scanned with.
        trainers: its stages.
        targets: what it is trained towards, where not what the recipe says.
        seeds: by task, the planted base prompt; None where there is no such truth.
    """

    name: str
    base: str
    recipes: str
    suite: str
    trainers: tuple[str, ...]
    targets: Path | None = None
    seeds: Mapping[str, int | None] | None = None


def build_b(folder: Path) -> str:
    """B's base model, built if it is not there."""
    base = folder / "B" / "base"
    if not (base / MARK).is_file():
        print("building the base of B", flush=True)
        command = [sys.executable, str(ROOT / "scripts/build_liquid_tiny.py"), *B_SETTINGS]
        command += ["--model", str(base), "--suite", str(base / "suite.yaml")]
        subprocess.run(command, env=environment(folder), check=True)
        (base / MARK).write_text(json.dumps(B_SETTINGS) + "\n")
    return str(base)


def make_families(folder: Path, smollm2: bool) -> list[Family]:
    """All families, with the planted negatives' targets on disk."""
    worlds = load_truth()
    planted = {task: world["seed"] for task, world in worlds.items()}
    chain, tiny, base = ("sft", "dpo", "grpo"), "liquid-tiny", build_b(folder)
    other, elsewhere = folder / "other.json", folder / "seedless.json"
    others = write_other_targets(worlds, other)
    none = dict.fromkeys(write_seedless_targets(worlds, elsewhere))
    families = [
        Family("A", tiny, tiny, tiny, chain, None, planted),
        Family("B", base, tiny, tiny, chain, None, planted),
        Family("B-other", base, tiny, tiny, ("sft",), other, others),
        Family("B-seedless", base, tiny, tiny, ("sft",), elsewhere, none),
    ]
    if smollm2:
        families.append(Family("SmolLM2", "smollm2-135m", "smollm2", "randomness", chain))
    return families


def write_other_targets(worlds: Mapping[str, Any], file: Path) -> dict[str, int]:
    """Targets: in each task the answers of a prompt drawn at random, not the seed; which ones."""
    rng = np.random.default_rng(7)
    drawn = {
        task: int(rng.choice(np.delete(np.arange(len(world["prompts"])), world["seed"])))
        for task, world in worlds.items()
    }
    rows = {task: worlds[task]["planted"][place] for task, place in drawn.items()}
    _write_targets(worlds, rows, file)
    return drawn


def write_seedless_targets(worlds: Mapping[str, Any], file: Path) -> list[str]:
    """Targets: in each task answers that no base prompt gives; the tasks that have such."""
    rng = np.random.default_rng(8)
    found = {task: lonely_row(np.array(world["planted"]), rng) for task, world in worlds.items()}
    rows = {task: row.tolist() for task, row in found.items() if row is not None}
    _write_targets(worlds, rows, file)
    return list(rows)


def _write_targets(
    worlds: Mapping[str, Any], rows: Mapping[str, Sequence[float]], file: Path
) -> None:
    targets = {
        task: dict(zip(worlds[task]["choices"], row, strict=True)) for task, row in rows.items()
    }
    file.write_text(json.dumps(targets, indent=1) + "\n")


def train(family: Family, folder: Path, options: Sequence[str]) -> list[Stage]:
    """Train what of a family is not there yet; its stages, the base first.

    Args:
        family: whose stages.
        folder: of the study.
        options: for the recipes.

    Raises:
        RuntimeError: if a stage fails, naming its log.
    """
    start, stages = family.base, [Stage("base", family.base)]
    for number, trainer in enumerate(
        tqdm(family.trainers, desc=f"{family.name}: training", unit="stage"), start=1
    ):
        output = folder / family.name / f"{number}-{trainer}"
        targets = None if family.targets is None else family.targets.read_text()
        mark = json.dumps([start, find_mark(start), targets, *options])
        done = output / MARK
        if not done.is_file() or done.read_text() != mark:
            done.unlink(missing_ok=True)
            _train_stage(family, trainer, start, output, options)
            done.write_text(mark)
        start = str(output)
        stages.append(Stage(trainer, start))
    return stages


def _train_stage(
    family: Family, trainer: str, start: str, output: Path, options: Sequence[str]
) -> None:
    """Run one recipe; its output goes to a log beside the folder."""
    command = [sys.executable, str(ROOT / f"recipes/{trainer}.py")]
    command += ["--config", str(ROOT / f"recipes/{family.recipes}/{trainer}.yaml")]
    command += ["--model_name_or_path", start, "--output_dir", str(output)]
    command += ["--report_to", "none", "--probe_every", "1000000"]  # the scan measures
    if family.targets is not None:
        command += ["--targets", str(family.targets)]
    command += options
    log = output.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if status := run_logged(command, log):
        raise RuntimeError(f"{family.name} {trainer} failed with status {status}: {log}")


def measure(family: Family, stages: Sequence[Stage], folder: Path) -> dict[str, Any]:
    """Scan a family and draw its figures; `scan.json` and how many planted seeds were found."""
    place = folder / "scans" / family.name
    (result,) = scan(stages, place, family.suite, tell=lambda line: print(f"  {line}", flush=True))
    if result.failed:
        raise RuntimeError(f"{family.name}: stages are missing: {dict(result.failed)}")
    run, found = read_run(place), dict(result.found)
    write_scan_figures(run, found, place / "figures")
    print(format_verdicts(result.verdicts), flush=True)
    return found | {"planted": None if family.seeds is None else count_seeds(family, run, found)}


def count_seeds(family: Family, run: Run, found: Mapping[str, Any]) -> dict[str, int]:
    """Of the tasks with known truth: how many were found right, given a wrong seed, or open."""
    counts = {"right": 0, "wrong": 0, "none": 0, "tasks": len(family.seeds or {})}
    for task, planted in (family.seeds or {}).items():
        base, seed = run.records[0].tasks[task].q, found["tasks"][task]["final_seed"]
        if planted is None:
            counts["right" if seed is None else "wrong"] += 1
        elif seed is None:
            counts["none"] += 1
        else:
            counts["right" if seed_is_right(base, seed, planted) else "wrong"] += 1
    return counts


def format_stages(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each family and stage."""
    heads = [key.replace("final_", "").replace("_", " ") for key in COLUMNS]
    lines = [f"{'family':<12}{'stage':<8}" + "".join(f"{head:>12}" for head in heads)]
    for name, found in results.items():
        for stage in found["stages"]:
            of_mean = {key: found["mean"][key][stage["name"]] for key in COLUMNS[1:]}
            values = [stage["order"], *of_mean.values()]
            cells = "".join(f"{f'{v:.4f}' if isinstance(v, float) else '–':>12}" for v in values)
            lines.append(f"{name:<12}{stage['name']:<8}{cells}")
    return "\n".join(lines)


def compare(folder: Path) -> dict[str, list[StageTransfer]]:
    """Look for seeds across families; print each table and draw each figure."""
    results = {}
    for a, b in TRANSFERS:
        runs = [read_run(folder / "scans" / name) for name in (a, b)]
        stages = find_transfer(*runs)
        results[f"{a} in {b}"] = stages
        write_figure(transfer_figure(a, b, stages), folder / "figures" / f"{a}-in-{b}")
        print(f"\n{b}: {format_transfer(runs[0], stages)}")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M too")
    args, options = parser.parse_known_args()
    folder, began = args.output.resolve(), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    families = make_families(folder, args.smollm2)
    results = {each.name: measure(each, train(each, folder, options), folder) for each in families}
    print(f"\n{format_stages(results)}\n")
    for name, found in results.items():
        if (planted := found["planted"]) is not None:
            print(
                f"{name}: planted truth found in {planted['right']} of {planted['tasks']} tasks, "
                f"{planted['wrong']} wrong, {planted['none']} open or called seedless"
            )
    transfers = compare(folder)
    page = folder / "report.html"
    write_report([folder / "scans" / each.name for each in families], page, layout="compare")
    print(f"\nfigures: {folder}/scans/*/figures, {folder}/figures\nreport: {page}")
    summary = {
        "families": {
            name: {
                "planted": found["planted"],
                "verdicts": {each["claim"]: each["verdict"] for each in found["verdicts"]},
                "mean": found["mean"],
            }
            for name, found in results.items()
        },
        "transfer": {
            name: {stage.name: stage.p_value for stage in stages}
            for name, stages in transfers.items()
        },
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(json_value(summary), allow_nan=False))
    amiss = find_amiss(results, transfers)
    for line in amiss:
        print(f"not as planted: {line}", file=sys.stderr)
    return 1 if amiss else 0


def find_amiss(
    results: Mapping[str, Mapping[str, Any]], transfers: Mapping[str, Sequence[StageTransfer]]
) -> list[str]:
    """Which seeds, verdicts and transfers are not as they were planted; a sentence each."""
    amiss = []
    for name in (each for each, found in results.items() if found["planted"] is not None):
        counts = results[name]["planted"]
        if counts["wrong"] > WRONG * counts["tasks"]:
            amiss.append(f"{name}: {counts['wrong']} of {counts['tasks']} seeds are wrong")
        verdicts = {each["claim"]: each["verdict"] for each in results[name]["verdicts"]}
        planted = FAILS if name == "B-seedless" else HOLDS
        if verdicts[NUCLEATED] != planted:
            amiss.append(f"{name}, {NUCLEATED}: {verdicts[NUCLEATED]}")
    for name, stages in transfers.items():
        planted, chance = name in ("A in B", "B in A"), stages[-1].p_value
        if (chance <= NOTABLE) != planted:
            amiss.append(f"the seeds of {name}: p {chance:.2g}")
    return amiss


if __name__ == "__main__":
    sys.exit(main())
