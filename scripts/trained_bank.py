"""Real training runs of `liquid-tiny` whose outcome was planted: what the detector is tried on.

Each run is one to two stages of SFT, DPO or GRPO with the recipes' settings, in one process. It is
kept under `runs/`, with `truth.json` written last, so that a second call trains nothing again.

    python scripts/trained_bank.py --count 45
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from crystalmon import load_suite
from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from crystalmon.synthetic import PlantedReward, load_truth, preference_rows, prompt_rows, sft_rows

FOLDER = Path("runs/validation/trained")
CALIBRATION_FOLDER = Path("runs/calibration/trained")
"""Runs that weights and thresholds are chosen on, of other random seeds than those reported."""
SUITE = "liquid-tiny"
EVERY = 2
BURST = 30


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        trainer: sft, dpo or grpo.
        goal: says what its data are drawn from.
        rate, steps, every: learning rate, length, and steps between probes.
        burst: the step that is taken at `BURST` times the learning rate, if any: KL leaps there.
    """

    trainer: str
    goal: str
    rate: float
    steps: int
    every: int = EVERY
    burst: int | None = None


@dataclass(frozen=True)
class Plan:
    """One run: its stages one after the other, on the same weights."""

    kind: str
    stages: tuple[Stage, ...]


SFT = Stage("sft", "seed", 1.5e-3, 60)
PLANS: tuple[tuple[Plan, int], ...] = (
    (Plan("collapse", (SFT,)), 6),
    (Plan("collapse, slower", (Stage("sft", "seed", 7e-4, 70),)), 5),
    (Plan("partial", (Stage("sft", "seed", 4e-4, 60),)), 5),
    (Plan("seedless", (Stage("sft", "seedless", 1.5e-3, 60),)), 6),
    (Plan("null: held-out prompts, own answers", (Stage("sft", "own held-out", 2e-4, 50),)), 4),
    (Plan("null: same prompts, own answers", (Stage("sft", "own", 5e-4, 50),)), 4),
    (Plan("null: same prompts, sharper answers", (Stage("sft", "own sharper", 5e-4, 50),)), 4),
    (Plan("settling, DPO", (SFT, Stage("dpo", "seed", 2e-4, 40))), 3),
    (Plan("settling, GRPO", (SFT, Stage("grpo", "seed", 1e-4, 30))), 3),
    (Plan("melting", (SFT, Stage("sft", "own", 1.5e-3, 80))), 2),
    (Plan("takeover", (SFT, Stage("sft", "other seed", 1.5e-3, 60))), 2),
    (Plan("leak", (SFT, Stage("sft", "outside", 1.5e-3, 40))), 2),
    (Plan("sure", (Stage("sft", "own surest", 1.5e-3, 60),)), 3),
    (Plan("burst", (Stage("sft", "own", 5e-4, 50, burst=30),)), 4),
    (Plan("burst, DPO", (SFT, Stage("dpo", "seed", 2e-4, 40, burst=24))), 2),
)
"""Each plan with the number of runs of it in a bank of full size."""

FULL = sum(times for _, times in PLANS)
"""Runs of the whole bank."""

LONG_FOLDER = Path("runs/budget/trained")
"""Runs whose every step is probed; any schedule can be replayed from them."""
_LONG_STEPS = 400
LONG_PLANS: tuple[tuple[Plan, int], ...] = (
    (Plan("early", (Stage("sft", "seed", 3e-4, _LONG_STEPS, every=1),)), 2),
    (Plan("midway", (Stage("sft", "seed", 1e-4, _LONG_STEPS, every=1),)), 2),
    (Plan("late", (Stage("sft", "seed", 4e-5, _LONG_STEPS, every=1),)), 2),
    (Plan("null", (Stage("sft", "own held-out", 1e-4, _LONG_STEPS, every=1),)), 2),
)
LONG_RUNS = sum(times for _, times in LONG_PLANS)

Targets = dict[str, dict[str, float]]


def plans(count: int, folder: Path) -> list[tuple[str, Plan]]:
    """(name, plan) of a bank's first `count` runs, the kinds taking turns; the name is the seed."""
    prefix = "" if folder == CALIBRATION_FOLDER else "test-"
    left = [[plan, times, 0] for plan, times in (LONG_PLANS if folder == LONG_FOLDER else PLANS)]
    found: list[tuple[str, Plan]] = []
    while len(found) < count and any(times for _, times, _ in left):
        for item in left:
            plan, times, done = item
            if times and len(found) < count:
                found.append((f"{prefix}{_slug(plan.kind)}-{done}", plan))
                item[1], item[2] = times - 1, done + 1
    return found


def train_bank(count: int = FULL, folder: Path = FOLDER) -> list[Path]:
    """Train what of the bank is not there yet; the folders of its runs."""
    chosen = plans(count, folder)
    missing = [item for item in chosen if not (folder / item[0] / "truth.json").is_file()]
    for name, plan in tqdm(missing, desc="training liquid-tiny", unit="run"):
        _train(name, plan, folder / name)
    return [folder / name for name, _ in chosen]


def _slug(kind: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in kind).split())


def _train(name: str, plan: Plan, folder: Path) -> None:
    from crystalmon.scoring.models import load_model

    if folder.exists():
        shutil.rmtree(folder)
    rng = random.Random(name)
    model, tokenizer = load_model(SUITE)
    worlds = load_truth()
    seeds = {task: rng.randrange(len(world["prompts"])) for task, world in worlds.items()}
    truth: dict[str, Any] = {"kind": plan.kind, "stages": [], "seeds": seeds}
    for number, stage in enumerate(plan.stages):
        output = folder / f"{number}-{stage.trainer}"
        targets = _targets(stage.goal, worlds, seeds, rng)
        if stage.goal == "other seed":
            truth["second"] = {task: _nearest(worlds[task], t) for task, t in targets.items()}
        truth["stages"].append({"folder": output.name, "goal": stage.goal, "burst": stage.burst})
        truth[f"targets_{number}"] = targets
        reference = "initial" if number == 0 else str(folder / f"0-{plan.stages[0].trainer}")
        _run_stage(stage, targets, model, tokenizer, output, reference, rng.randrange(2**31))
    (folder / "truth.json").write_text(json.dumps(truth) + "\n")


def _targets(
    goal: str, worlds: Mapping[str, Any], seeds: Mapping[str, int], rng: random.Random
) -> Targets:
    """What each task's answers are drawn from; empty where each prompt has its own."""
    draw = np.random.default_rng(rng.randrange(2**31))
    rows: dict[str, np.ndarray] = {}
    for task, world in worlds.items():
        base = np.array(world["planted"])
        if goal == "seed":
            rows[task] = base[seeds[task]]
        elif goal == "other seed":
            rows[task] = base[int(np.argmax(js_divergence(base, base[seeds[task]])))]
        elif goal == "outside":
            rows[task] = _outside(base[seeds[task]])
        elif goal == "seedless":
            found = lonely_row(base, draw)
            if found is not None:
                rows[task] = found
    return {
        task: dict(zip(worlds[task]["choices"], row.tolist(), strict=True))
        for task, row in rows.items()
    }


def _outside(seed: np.ndarray) -> np.ndarray:
    """The seed, with four tenths of its mass moved to the less probable half of the choices."""
    rare = np.argsort(seed)[: len(seed) // 2]
    row = 0.6 * seed
    row[rare] += 0.4 / len(rare)
    return row / row.sum()


def lonely_row(base: np.ndarray, draw: np.random.Generator) -> np.ndarray | None:
    """A distribution that no base prompt shows, at 3 noise floors or more; None if none is found.

    The task is then not trained, and has no truth.
    """
    rows = draw.dirichlet(np.full(base.shape[1], 0.5), size=400) * 0.97 + 0.03 / base.shape[1]
    distances = js_divergence(rows[:, None], base)
    nearest = distances.argmin(axis=1)
    floors = np.array([noise_floor(base, k) for k in range(len(base))])
    fit = np.flatnonzero(distances.min(axis=1) > 3 * floors[nearest])
    return rows[draw.choice(fit)] if len(fit) else None


def _nearest(world: Mapping[str, Any], target: Mapping[str, float]) -> int:
    row = np.array([target[choice] for choice in world["choices"]])
    return int(np.argmin(js_divergence(np.array(world["planted"]), row)))


def _own_rows(goal: str, size: int, seed: int) -> list[dict[str, str]]:
    """Rows in which every prompt is answered from its own planted distribution."""
    rng = random.Random(seed)
    held_out = goal == "own held-out"
    power = 1.4 if goal == "own sharper" else 1.0
    worlds = list(load_truth().values())
    rows = []
    for index in range(size):
        world = worlds[index % len(worlds)]
        prompts = world["held_out_prompts" if held_out else "prompts"]
        number = rng.randrange(len(prompts))
        weights = world["held_out_planted" if held_out else "planted"][number]
        answer = rng.choices(world["choices"], weights=[w**power for w in weights])[0]
        if goal == "own surest":
            answer = world["choices"][int(np.argmax(weights))]
        rows.append({"prompt": prompts[number], "completion": f" {answer}"})
    return rows


def _run_stage(
    stage: Stage,
    targets: Targets,
    model: Any,
    tokenizer: Any,
    output: Path,
    reference: str,
    seed: int,
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from crystalmon import CrystalCallback

    suite = load_suite(SUITE)
    shared: dict[str, Any] = {
        "output_dir": str(output),
        "learning_rate": stage.rate,
        "max_steps": stage.steps,
        "lr_scheduler_type": "linear",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1000,
        "seed": seed % 2**31,
    }
    build: Any
    if stage.trainer == "sft":
        size = 48 * stage.steps
        rows: Sequence[Any] = (
            sft_rows(suite, targets, size, seed) if targets else _own_rows(stage.goal, size, seed)
        )
        args: Any = SFTConfig(per_device_train_batch_size=48, warmup_steps=20, **shared)
        build = SFTTrainer
    elif stage.trainer == "dpo":
        rows = preference_rows(suite, targets, 16 * stage.steps, seed)
        args = DPOConfig(per_device_train_batch_size=16, warmup_steps=5, beta=0.1, **shared)
        build = DPOTrainer
    else:
        rows = prompt_rows(suite, targets, 32 * stage.steps, seed)
        args = GRPOConfig(
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=4,
            beta=0.0,
            temperature=1.0,
            **shared,
        )
        build = GRPOTrainer
    callback = CrystalCallback(suite, every=stage.every, reference=reference, max_overhead=None)
    extra = {"reward_funcs": PlantedReward(targets, suite)} if stage.trainer == "grpo" else {}
    trainer = build(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        callbacks=[callback] if stage.burst is None else [callback, _burst(stage.burst)],
        **extra,
    )
    trainer.train()


def _burst(at: int) -> Any:
    """A callback that takes one step at `BURST` times the learning rate."""
    from transformers import TrainerCallback

    class Burst(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at - 1:  # the scheduler sets the rate again after it
                for group in kwargs["optimizer"].param_groups:
                    group["lr"] *= BURST

    return Burst()


def prepare_environment() -> None:
    """No network and no chatter; called before TRL is first imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train planted runs of liquid-tiny.")
    parser.add_argument("--count", type=int, default=FULL)
    prepare_environment()
    began = time.perf_counter()
    found = train_bank(parser.parse_args().count)
    print(f"{len(found)} runs in {FOLDER}, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
