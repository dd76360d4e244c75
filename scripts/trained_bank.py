"""Real training runs of tiny models whose outcome was planted: what the detector is tried on.

Weights and thresholds are chosen on runs of `liquid-tiny` and of a second model. What is reported
are runs of a third one. Second and third are built here at the first call: each has tasks,
wordings, answers and a tokenizer of its own. Each run is one to two stages of SFT, DPO or GRPO with
the recipes' settings, in one process. It is kept under `runs/`, with `truth.json` written last, so
that a second call trains nothing again.

    python scripts/trained_bank.py --count 45
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
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
from crystalmon.suites.tasks import TaskSuite
from crystalmon.synthetic import PlantedReward, preference_rows, prompt_rows, sft_rows

ROOT = Path(__file__).resolve().parents[1]
EVERY = 2
BURST = 30
BATCH = {"sft": 48, "dpo": 16, "grpo": 64}
ROWS = {"sft": 48, "dpo": 16, "grpo": 32}
"""By trainer: the batch of a step, and how many rows are made for it."""


@dataclass(frozen=True)
class Family:
    """A base model of known truth.

    Args:
        model, suite: as `load_model` and `load_suite` take them.
        truth: the file of what was planted.
        settings: of `build_liquid_tiny.py`, if the model is built here.
    """

    model: str
    suite: str
    truth: Path
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its model."""
        return Path(self.model).name

    @classmethod
    def built(cls, name: str, *settings: str) -> Family:
        """A family whose model is built in `runs/`."""
        folder = Path("runs") / name
        return cls(str(folder), str(folder / "suite.yaml"), folder / "truth.json", settings)

    def build(self) -> None:
        """Build the model, if it is not there."""
        if not self.settings or (
            self.truth.is_file() and Path(self.model, "config.json").is_file()
        ):
            return
        command = [sys.executable, str(ROOT / "scripts/build_liquid_tiny.py"), *self.settings]
        subprocess.run([*command, "--model", self.model, "--suite", self.suite], check=True)

    def worlds(self) -> dict[str, Any]:
        """By task what was planted; the keys are those of `load_truth`."""
        return json.loads(self.truth.read_text(encoding="utf-8"))["tasks"]


FIRST = Family("liquid-tiny", "liquid-tiny", ROOT / "crystalmon/assets/liquid-tiny/truth.json")
SECOND = Family.built(
    "second-tiny", "--words", "second", "--seed", "1", "--vocab-size", "512", "--digits", "joined"
)
THIRD = Family.built(
    "third-tiny", "--words", "third", "--seed", "2", "--vocab-size", "640", "--digits", "joined"
)


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

SEED_PLANS: tuple[tuple[Plan, int], ...] = (
    (Plan("collapse", (SFT,)), 10),
    (Plan("collapse, slower", (Stage("sft", "seed", 7e-4, 70),)), 6),
    (Plan("partial", (Stage("sft", "seed", 4e-4, 60),)), 10),
    (Plan("seedless", (Stage("sft", "seedless", 1.5e-3, 60),)), 8),
    (Plan("seedless, slower", (Stage("sft", "seedless", 7e-4, 70),)), 4),
)
"""What the seed's weights and thresholds are chosen on."""

_LONG_STEPS = 400
LONG_PLANS: tuple[tuple[Plan, int], ...] = (
    (Plan("early", (Stage("sft", "seed", 3e-4, _LONG_STEPS, every=1),)), 2),
    (Plan("midway", (Stage("sft", "seed", 1e-4, _LONG_STEPS, every=1),)), 2),
    (Plan("late", (Stage("sft", "seed", 4e-5, _LONG_STEPS, every=1),)), 2),
    (Plan("null", (Stage("sft", "own held-out", 1e-4, _LONG_STEPS, every=1),)), 2),
)

Targets = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Bank:
    """Runs of one family, kept in a folder.

    Args:
        folder, family: of its runs.
        plans: each with the number of runs of it in a bank of full size.
        prefix: of the runs' names, from which all that is random in them is drawn.
    """

    folder: Path
    family: Family
    plans: tuple[tuple[Plan, int], ...] = PLANS
    prefix: str = "test-"

    @property
    def full(self) -> int:
        """Runs of the whole bank."""
        return sum(times for _, times in self.plans)

    def runs(self, count: int | None = None) -> dict[str, Plan]:
        """Name and plan of the first `count` runs, the kinds taking turns."""
        left = [[plan, times, 0] for plan, times in self.plans]
        wanted = min(self.full if count is None else count, self.full)
        found: dict[str, Plan] = {}
        while len(found) < wanted:
            for item in left:
                plan, times, done = item
                if times and len(found) < wanted:
                    found[f"{self.prefix}{_slug(plan.kind)}-{done}"] = plan
                    item[1], item[2] = times - 1, done + 1
        return found

    def trained(self) -> list[Path]:
        """The folders of the runs that are there."""
        folders = [self.folder / name for name in self.runs()]
        return [folder for folder in folders if (folder / "truth.json").is_file()]

    def train(self, count: int | None = None) -> list[Path]:
        """Train what is not there yet; the folders of the first `count` runs."""
        chosen, there = self.runs(count), self.trained()
        missing = [name for name in chosen if self.folder / name not in there]
        if missing:
            self.family.build()
        for name in tqdm(missing, desc=f"training {self.family.name}", unit="run"):
            _train(name, chosen[name], self.folder / name, self.family)
        return [self.folder / name for name in chosen]


REPORTED = Bank(Path("runs/validation/third"), THIRD)
CALIBRATED = (
    Bank(Path("runs/calibration/trained"), FIRST, SEED_PLANS, prefix=""),
    Bank(Path("runs/calibration/second"), SECOND),
)
LONG = Bank(Path("runs/budget/trained"), FIRST, LONG_PLANS)
"""Runs whose every step is probed; any schedule can be replayed from them."""


BANKS = {"reported": (REPORTED,), "calibrated": CALIBRATED, "long": (LONG,)}


def _slug(kind: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in kind).split())


def _train(name: str, plan: Plan, folder: Path, family: Family) -> None:
    from crystalmon.scoring.models import load_model

    if folder.exists():
        shutil.rmtree(folder)
    rng = random.Random(name)
    model, tokenizer = load_model(family.model)
    worlds, suite = family.worlds(), load_suite(family.suite)
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
        seed = rng.randrange(2**31)
        rows = _rows(stage, targets, suite, worlds, seed)
        _run_stage(stage, rows, targets, suite, model, tokenizer, output, reference, seed)
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


def _rows(
    stage: Stage, targets: Targets, suite: TaskSuite, worlds: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """What a stage is trained on."""
    asked = {task: world["held_out_prompts"] for task, world in worlds.items()}
    size = ROWS[stage.trainer] * stage.steps
    if stage.trainer == "dpo":
        return preference_rows(suite, targets, size, seed, asked)
    if stage.trainer == "grpo":
        return prompt_rows(suite, targets, size, seed, asked)
    if targets:
        return sft_rows(suite, targets, size, seed, asked)
    return _own_rows(stage.goal, list(worlds.values()), size, seed)


def _own_rows(
    goal: str, worlds: Sequence[Mapping[str, Any]], size: int, seed: int
) -> list[dict[str, str]]:
    """Rows in which every prompt is answered from its own planted distribution."""
    rng = random.Random(seed)
    held_out = goal == "own held-out"
    power = 1.4 if goal == "own sharper" else 1.0
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
    rows: list[dict[str, Any]],
    targets: Targets,
    suite: TaskSuite,
    model: Any,
    tokenizer: Any,
    output: Path,
    reference: str,
    seed: int,
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from crystalmon import CrystalCallback

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sft": (SFTTrainer, SFTConfig, {"warmup_steps": 20}),
        "dpo": (DPOTrainer, DPOConfig, {"warmup_steps": 5, "beta": 0.1}),
        "grpo": (
            GRPOTrainer,
            GRPOConfig,
            {"num_generations": 8, "max_completion_length": 4, "beta": 0.0, "temperature": 1.0},
        ),
    }
    build, config, own = kinds[stage.trainer]
    args = config(
        output_dir=str(output),
        per_device_train_batch_size=BATCH[stage.trainer],
        learning_rate=stage.rate,
        max_steps=stage.steps,
        lr_scheduler_type="linear",
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1000,
        seed=seed % 2**31,
        **own,
    )
    callback = CrystalCallback(suite, every=stage.every, reference=reference, max_overhead=None)
    extra = {"reward_funcs": PlantedReward(targets, suite)} if stage.trainer == "grpo" else {}
    trainer = build(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
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
    parser = argparse.ArgumentParser(description="Train planted runs of tiny models.")
    parser.add_argument("--bank", choices=BANKS, default="reported")
    parser.add_argument("--count", type=int, help="runs of each model; all if not given")
    args = parser.parse_args()
    prepare_environment()
    for bank in BANKS[args.bank]:
        began = time.perf_counter()
        found = bank.train(args.count)
        print(f"{len(found)} runs in {bank.folder}, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
