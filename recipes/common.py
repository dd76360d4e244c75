"""What the recipes share: arguments, model, data. The callback is written out in each recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from datasets import Dataset, load_dataset
from transformers import TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser, get_quantization_config

from crystalmon import load_suite
from crystalmon.cli.options import view_text
from crystalmon.monitor.budget import DEFAULT_SHARE
from crystalmon.scoring.models import load_model
from crystalmon.synthetic import PlantedReward, load_targets, prompt_rows

PLANTED = "planted"
TrainerArguments = TypeVar("TrainerArguments", bound=TrainingArguments)


@dataclass
class DataArguments(ScriptArguments):
    """Which data to train on; the other fields are TRL's.

    Args:
        dataset_name: `planted` (rows made here, with known truth), a JSON file, or a hub id.
        targets: for `planted`: `liquid-tiny`, or a YAML file of task: {choice: weight}.
        prompts: for `planted`: `suite`, the prompts that are probed, or `heldout`, others.
        dataset_size: for `planted`: how many rows.
        reward: for reinforcement learning: `planted`; or `last_number`, which is 1 where the last
            number of the answer is the row's `ground_truth`; or `exact_match`, which is 1 where
            its first line is.
    """

    dataset_name: str = field(default=PLANTED, metadata={"help": "planted, a file or a hub id"})
    targets: str = field(default="liquid-tiny", metadata={"help": "liquid-tiny or a YAML file"})
    prompts: Literal["suite", "heldout"] = field(default="suite", metadata={"help": "which ones"})
    dataset_size: int = field(default=2000, metadata={"help": "rows of planted data"})
    reward: Literal["planted", "last_number", "exact_match"] = field(
        default=PLANTED, metadata={"help": "for RL"}
    )


@dataclass
class MonitorArguments:
    """The arguments of `CrystalCallback`, as YAML keys and command-line options.

    Args:
        suite: a bundled suite or a YAML file.
        probe_every: probe every so many steps, or such a share of the run; by default about 100
            probes, dense at first.
        reference: `auto`, `initial`, a run or reference folder, or a model.
        view: `auto` or others of `CrystalCallback`; several are probed side by side.
        max_overhead: the share of the run's time that monitoring may take; null in YAML, or 1, for
            no limit.
        experiments: further measurements, each with its interval in steps: `temperature=100`.
    """

    suite: str = field(default="randomness", metadata={"help": "a bundled suite or a YAML file"})
    probe_every: float | None = field(
        default=None, metadata={"help": "probe every so many steps, or such a share of the run"}
    )
    reference: str = field(default="auto", metadata={"help": "the base model to compare with"})
    view: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={"help": "auto, raw, chat or a template with {prompt}"},
    )
    max_overhead: float | None = field(
        default=DEFAULT_SHARE,
        metadata={"help": "share of the run's time that monitoring may take; 1 for no limit"},
    )
    experiments: list[str] = field(
        default_factory=list, metadata={"help": "further measurements, such as temperature=100"}
    )

    @property
    def intervals(self) -> dict[str, int]:
        """The experiments' intervals in steps, by name."""
        pairs = [text.partition("=") for text in self.experiments]
        wrong = [text for text, (_, _, steps) in zip(self.experiments, pairs, strict=True)
                 if not steps.isdigit()]  # fmt: skip
        if wrong:
            raise ValueError(f"experiments must be name=steps, got {wrong[0]!r}.")
        found = {name: int(steps) for name, _, steps in pairs}
        if len(found) < len(pairs):
            raise ValueError(f"experiments must each be there once, got {self.experiments!r}.")
        return found


def parse(
    trainer: type[TrainerArguments],
) -> tuple[DataArguments, TrainerArguments, ModelConfig, MonitorArguments]:
    """Read `--config FILE` and the command line, which overrides it."""
    kinds: Any = (DataArguments, trainer, ModelConfig, MonitorArguments)
    data, args, model, monitor = TrlParser(kinds).parse_args_and_config()
    views = [monitor.view] if isinstance(monitor.view, str) else monitor.view  # one, in YAML
    monitor.view = [view_text(view) for view in views]
    return data, args, model, monitor


def load(args: ModelConfig) -> tuple[Any, Any]:
    """The model and its tokenizer, by any name that `crystalmon.load_model` knows."""
    options: dict[str, Any] = {"revision": args.model_revision, "dtype": args.dtype}
    if args.attn_implementation is not None:
        options["attn_implementation"] = args.attn_implementation
    if (quantization := get_quantization_config(args)) is not None:
        options["quantization_config"] = quantization
    model, tokenizer = load_model(args.model_name_or_path or "liquid-tiny", **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def load_rows(
    data: DataArguments, suite: str, make_rows: Callable[..., list[Any]], seed: int
) -> Dataset:
    """The training set: planted rows, a JSON file, or a dataset from the hub.

    Args:
        data: what to load.
        suite: for planted data: whose tasks and prompts.
        make_rows: for planted data: `sft_rows` or one of its like in `crystalmon.synthetic.rows`.
        seed: for planted data: of the draws.
    """
    if data.dataset_name == PLANTED:
        targets = load_targets(data.targets)
        rows = make_rows(load_suite(suite), targets, data.dataset_size, seed, data.prompts)
        return Dataset.from_list(rows)
    if Path(data.dataset_name).suffix in {".json", ".jsonl"}:
        return load_dataset("json", data_files=data.dataset_name, split="train")
    return load_dataset(data.dataset_name, data.dataset_config, split=data.dataset_train_split)


def load_prompts(data: DataArguments, suite: str, seed: int) -> Dataset:
    """The prompts to answer in reinforcement learning, with the columns that the reward needs."""
    rows = load_rows(data, suite, prompt_rows, seed)
    if "prompt" not in rows.column_names and "messages" in rows.column_names:
        rows = rows.rename_column("messages", "prompt")
    return rows


def make_reward(data: DataArguments, suite: str) -> Any:
    """The reward function that `data.reward` names, as GRPO and RLOO call it."""
    if data.reward == PLANTED:
        return PlantedReward(load_targets(data.targets), load_suite(suite))
    return {"last_number": last_number, "exact_match": exact_match}[data.reward]


def last_number(completions: list[Any], ground_truth: list[str], **columns: Any) -> list[float]:
    """1 where the last number of an answer is the ground truth, 0 elsewhere: GSM8K's rule."""
    rewards = []
    for completion, truth in zip(completions, ground_truth, strict=True):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", _text(completion).replace(",", ""))
        rewards.append(float(bool(numbers) and float(numbers[-1]) == float(truth.replace(",", ""))))
    return rewards


def exact_match(completions: list[Any], ground_truth: list[str], **columns: Any) -> list[float]:
    """1 where an answer's first line is the ground truth, but for case and outer spaces."""
    lines = [_text(each).strip().partition("\n")[0].strip().casefold() for each in completions]
    pairs = zip(lines, ground_truth, strict=True)
    return [float(line == truth.strip().casefold()) for line, truth in pairs]


def _text(completion: Any) -> str:
    """Of a plain completion, or of a conversation's last turn."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
