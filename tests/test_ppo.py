"""The PPO recipe, in the environment that has TRL 1.12: `make test-oldest`."""

import importlib.util
import os
import sys

import pytest
from test_recipes import HAS_PPO, RECIPES, ROOT, run_recipe

from crystalmon import load_suite, read_run
from crystalmon.synthetic import PlantedReward, load_targets

pytestmark = pytest.mark.skipif(not HAS_PPO, reason="needs TRL 1.12: run make test-oldest")


@pytest.fixture
def ppo(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    return importlib.import_module("ppo")


@pytest.mark.parametrize("folder", ["liquid-tiny", "smollm2"])
def test_config_parses(ppo, monkeypatch, tmp_path, folder):
    config = RECIPES / folder / "ppo.yaml"
    monkeypatch.setenv("WANDB_MODE", os.environ.get("WANDB_MODE", ""))
    monkeypatch.setattr(
        sys, "argv", ["ppo", "--config", str(config), "--output_dir", str(tmp_path)]
    )
    data, args, _, _ = ppo.parse(ppo.PPOConfig)
    assert args.stop_token == "eos"
    assert args.total_episodes % args.per_device_train_batch_size == 0
    load_targets(data.targets if data.targets == "liquid-tiny" else ROOT / data.targets)


def test_reward_model_scores_the_text_behind_the_prompt(ppo, tokenizer):
    import torch

    suite, targets = load_suite("liquid-tiny"), load_targets("liquid-tiny")
    reward = PlantedReward(targets, suite)
    # one prompt begins with the other: the longer one counts
    tasks = {"Flip:": "coin", "Flip: heads or tails, quick:": "coin", "Roll:": "die"}
    model = ppo.RewardModel(reward, tokenizer, tasks)
    texts = [
        "Flip: heads or tails, quick: tails<|endoftext|>",
        "Flip: heads<|endoftext|>",
        "Roll: 6",
        "Roll: none",
    ]
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    mask = batch["attention_mask"].bool()
    tokens = model.backbone(batch["input_ids"].masked_fill(~mask, 0), mask).hidden_states[-1]
    values = model.score(tokens)
    assert values.shape == (*batch["input_ids"].shape, 1)
    expected = [
        reward.score("coin", " tails"),
        reward.score("coin", " heads"),
        reward.score("die", " 6"),
        reward.score("die", " none"),
    ]
    torch.testing.assert_close(values[:, -1, 0], torch.tensor(expected))


def test_ppo_runs_and_keeps_the_base(tmp_path):
    arguments = ["--config", RECIPES / "liquid-tiny" / "ppo.yaml", "--report_to", "none"]
    arguments += ["--model_name_or_path", "liquid-tiny", "--output_dir", tmp_path / "run"]
    done = run_recipe("ppo.py", *arguments, "--total_episodes", 128, "--probe_every", 1)
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    assert [record.step for record in run.records] == [0, 1, 2]
    assert run.records[0].metrics["order"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "run" / "model.safetensors").is_file()
