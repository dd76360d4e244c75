"""Proximal policy optimisation with TRL 1.12, watched by crystalmon.

python recipes/ppo.py --config recipes/liquid-tiny/ppo.yaml --output_dir runs/ppo

Later TRL has no PPO trainer. The reward is the planted one, so `dataset_name` is `planted` here.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
import trl
from common import PLANTED, load, load_prompts, parse
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from trl import get_peft_config

from crystalmon import CrystalCallback, load_suite
from crystalmon.scoring.models import find_model
from crystalmon.synthetic import PlantedReward, load_targets

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit(
        f"recipes/ppo.py needs TRL 1.12, the last release with a PPO trainer; this is TRL "
        f"{trl.__version__}. In an environment of its own, run: pip install -e '.[ppo]'"
    )


class RewardModel(nn.Module):
    """`PlantedReward` in the shape in which PPOTrainer calls a reward model.

    It asks the backbone for hidden states, `score` for a value per token [B, T, 1], and takes the
    last token's. Here the hidden states are the tokens, and every token's value is the text's.
    """

    base_model_prefix = "backbone"

    def __init__(self, reward: PlantedReward, tokenizer: Any, tasks: dict[str, str]) -> None:
        super().__init__()
        self.reward, self.tokenizer, self.tasks = reward, tokenizer, tasks

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        return SimpleNamespace(hidden_states=[input_ids.masked_fill(~attention_mask, -1)])

    def score(self, tokens: Tensor) -> Tensor:
        values = [self._worth(row[row >= 0]) for row in tokens]
        return torch.tensor(values, device=tokens.device)[:, None, None].expand(*tokens.shape, 1)

    def _worth(self, tokens: Tensor) -> float:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        prompt = max((p for p in self.tasks if text.startswith(p)), key=len)
        return self.reward.score(self.tasks[prompt], text.removeprefix(prompt))


def main() -> None:
    data, args, model_args, monitor = parse(PPOConfig)
    if data.dataset_name != PLANTED:
        raise ValueError(f"dataset_name must be {PLANTED!r} for PPO, got {data.dataset_name!r}.")

    model, tokenizer = load(model_args)
    tokenizer.padding_side = "left"
    source = find_model(model_args.model_name_or_path or "liquid-tiny")
    value_model = AutoModelForSequenceClassification.from_pretrained(
        source.path, num_labels=1, **source.options
    )
    rows = load_prompts(data, monitor.suite, args.seed)
    reward = PlantedReward(load_targets(data.targets), load_suite(monitor.suite))
    tasks = dict(zip(rows["prompt"], rows["task"], strict=True))
    callback = CrystalCallback(
        monitor.suite,
        every=monitor.probe_every,
        reference=monitor.reference,
        view=monitor.view,
        max_overhead=monitor.max_overhead,
        experiments=monitor.intervals,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=RewardModel(reward, tokenizer, tasks),  # type: ignore[arg-type]
        value_model=value_model,
        train_dataset=rows.map(
            lambda row: tokenizer(row["prompt"]), remove_columns=rows.column_names
        ),
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(args.output_dir)  # the next stage starts from this folder


if __name__ == "__main__":
    main()
