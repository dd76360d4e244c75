"""One training run of liquid-tiny for the table of `check.py`: with the callback or without.

python scripts/no_trace/train.py OUT --trainer sft [--lora] [--engine ddp] [--callback] [--resume]

Writes to OUT what the run has left: `logs.json` (log rows without timings) and
`weights.safetensors`; with `--device` also `peak`, the bytes held at most. Dropout is on in every
run, so a monitor that touched a random state shows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.trainer_utils import get_last_checkpoint

from crystalmon import CrystalCallback, TaskSuite, load_suite
from crystalmon.scoring.models import find_model, load_model
from crystalmon.synthetic import (
    PlantedReward,
    feedback_rows,
    load_targets,
    preference_rows,
    prompt_rows,
    sft_rows,
)

TRAINERS = ("trainer", "sft", "dpo", "kto", "grpo", "rloo", "ppo")
ENGINES = ("one", "ddp", "zero2", "zero3", "fsdp2")
STEPS = 8
DROPOUT = 0.1
TIMINGS = ("runtime", "per_second", "flos", "time", "num_tokens")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"

SUITE = load_suite("liquid-tiny")
TARGETS = load_targets("liquid-tiny")
PROBED = TaskSuite("three", tuple(SUITE[name] for name in ("coin", "number", "color")))


def main() -> None:
    args = parse()
    if args.device != "cuda":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    set_seed(0)
    if args.device is not None:
        torch.use_deterministic_algorithms(True)
    if args.engine == "fsdp2":
        logs, weights = train_sharded(args)
    else:
        logs, weights = train(args)
    if int(os.environ.get("RANK", "0")) == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "logs.json").write_text(json.dumps(logs))
        save_file(
            {k: v.contiguous().clone() for k, v in weights.items()},
            args.out / "weights.safetensors",
        )
        if args.device is not None:
            sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
            peak = importlib.import_module("peak").peak_memory(args.device)
            (args.out / "peak").write_text(str(peak), encoding="ascii")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trainer", choices=TRAINERS, default="sft")
    parser.add_argument("--engine", choices=ENGINES, default="one")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--callback", action="store_true")
    parser.add_argument(
        "--limited", action="store_true", help="all tasks as by default, not three at each step"
    )
    parser.add_argument("--two", action="store_true", help="a second callback with another suite")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--restore-states", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--save-steps", type=int, default=0)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="train there by deterministic algorithms"
    )
    return parser.parse_args()


def callbacks_of(args: argparse.Namespace) -> list[Any]:
    if args.limited:
        return [CrystalCallback(SUITE, strict=True)]
    suites = [PROBED, SUITE][: 2 if args.two else 1] if args.callback else []
    return [CrystalCallback(suite, every=1, strict=True, max_overhead=None) for suite in suites]


def load() -> tuple[Any, Any]:
    model, tokenizer = load_model("liquid-tiny")
    model.config.attention_dropout = DROPOUT
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = DROPOUT
    return model, tokenizer


def lora_config() -> LoraConfig:
    return LoraConfig(r=4, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM")


def train(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Through the trainer itself."""
    model, tokenizer = load()
    settings: dict[str, Any] = {
        "output_dir": str(args.out), "max_steps": args.steps, "logging_steps": 1, "seed": 1,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "report_to": "none",
        "save_strategy": "steps" if args.save_steps else "no", "save_steps": args.save_steps or 500,
        "use_cpu": args.device != "cuda", "bf16": args.device == "cuda", "disable_tqdm": True,
        "restore_callback_states_from_checkpoint": args.restore_states,
    }  # fmt: skip
    if args.engine in ("zero2", "zero3"):
        settings["deepspeed"] = deepspeed_config(int(args.engine[-1]))
    if args.engine != "one":
        settings["ddp_backend"] = "gloo"
    trainer = MAKERS[args.trainer](args, model, tokenizer, settings)
    last = get_last_checkpoint(str(args.out)) if args.resume else None
    if args.trainer == "ppo":
        trainer.train()
    else:
        trainer.train(resume_from_checkpoint=last)
    logs = [
        {k: v for k, v in row.items() if k != "eps" and not any(t in k for t in TIMINGS)}
        for row in trainer.state.log_history
    ]
    trained = getattr(trainer, "model_wrapped", trainer.model)
    return logs, trainer.accelerator.get_state_dict(trained)


def deepspeed_config(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {
            "stage": stage, "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto", "gradient_clipping": "auto",
    }  # fmt: skip


def rows(make: Callable[..., list[Any]], size: int = 256) -> Dataset:
    return Dataset.from_list(make(SUITE, TARGETS, size, 0))


def make_plain(args: Any, model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """transformers' own Trainer."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    def tokenize(row: dict[str, str]) -> dict[str, Any]:
        return tokenizer(row["prompt"] + row["completion"])

    data = rows(sft_rows)
    return Trainer(
        model=get_peft_model(model, lora_config()) if args.lora else model,
        args=TrainingArguments(**settings),
        train_dataset=data.map(tokenize, remove_columns=data.column_names),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=callbacks_of(args),
    )


def make_trl(name: str, make: Callable[..., list[Any]], **options: Any) -> Callable[..., Any]:
    """One of TRL's trainers, which share their arguments."""

    def maker(args: Any, model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
        import trl

        trainer_class, config_class = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
        rewards = {"reward_funcs": PlantedReward(TARGETS, SUITE)} if make is prompt_rows else {}
        names = config_class.__dataclass_fields__
        own = {"gradient_checkpointing": False, "activation_checkpointing": False, **options}
        return trainer_class(
            model=model,
            args=config_class(**settings, **{k: v for k, v in own.items() if k in names}),
            train_dataset=rows(make),
            processing_class=tokenizer,
            peft_config=lora_config() if args.lora else None,
            callbacks=callbacks_of(args),
            **rewards,
        )

    return maker


def make_ppo(args: Any, model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """TRL 1.12's PPO trainer, with the recipe's reward model."""
    sys.path.insert(0, str(RECIPES))
    ppo = importlib.import_module("ppo")
    tokenizer.padding_side = "left"
    data = rows(prompt_rows)
    settings = {k: v for k, v in settings.items() if k != "max_steps"}
    source = find_model("liquid-tiny")
    tasks = dict(zip(data["prompt"], data["task"], strict=True))
    return ppo.PPOTrainer(
        args=ppo.PPOConfig(
            **settings, total_episodes=8 * args.steps, response_length=4, stop_token="eos",
            num_sample_generations=0, num_ppo_epochs=1, gradient_checkpointing=False,
        ),
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=ppo.RewardModel(PlantedReward(TARGETS, SUITE), tokenizer, tasks),
        value_model=AutoModelForSequenceClassification.from_pretrained(source.path, num_labels=1),
        train_dataset=data.map(
            lambda row: tokenizer(row["prompt"]), remove_columns=data.column_names
        ),
        peft_config=lora_config() if args.lora else None,
        callbacks=callbacks_of(args),
    )  # fmt: skip


SAMPLING = {"num_generations": 4, "max_completion_length": 4}
MAKERS: dict[str, Callable[..., Any]] = {
    "trainer": make_plain,
    "sft": make_trl("SFT", sft_rows),
    "dpo": make_trl("DPO", preference_rows),
    "kto": make_trl("KTO", feedback_rows),
    "grpo": make_trl("GRPO", prompt_rows, **SAMPLING),
    "rloo": make_trl("RLOO", prompt_rows, **SAMPLING),
    "ppo": make_ppo,
}


def train_sharded(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """torch's own FSDP2, in a loop that calls the callback as a trainer does.

    accelerate starts no FSDP on CPU.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from transformers import TrainerControl, TrainerState, TrainingArguments

    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, tokenizer = load()
    if args.lora:
        model = get_peft_model(model, lora_config())
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for layer in inner.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    training = TrainingArguments(output_dir=str(args.out), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=args.steps, is_world_process_zero=rank == 0)
    control, callbacks = TrainerControl(), callbacks_of(args)
    told = {"model": model, "processing_class": tokenizer}
    data = [row["prompt"] + row["completion"] for row in sft_rows(SUITE, TARGETS, 256, 0)]
    set_seed(1 + rank)
    for callback in callbacks:
        callback.on_train_begin(training, state, control, **told)
    logs = []
    tokenizer.padding_side = "right"
    for step in range(args.steps):
        model.train()
        batch = tokenizer(data[step * 8 * size + rank * 8 :][:8], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        logs.append({"step": step + 1, "loss": loss.item()})
        state.global_step = step + 1
        for callback in callbacks:
            callback.on_step_end(training, state, control, **told)
    for callback in callbacks:
        callback.on_train_end(training, state, control, **told)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return logs, get_model_state_dict(model, options=options)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
