"""Training data whose outcome is known: post-training towards a target distribution per task.

A *target* says how probable each choice of a task shall become. The makers of rows and the reward
turn targets into what the TRL trainers read: prompts with completions (SFT), preferences (DPO),
labelled completions (KTO), prompts and a reward (GRPO, RLOO, PPO). For `liquid-tiny` the target is
the planted seed's distribution, so a monitor must find that seed; every later stage stays inside
the seed's 90% support.

    suite = crystalmon.load_suite("liquid-tiny")
    targets = load_targets("liquid-tiny")
    rows = sft_rows(suite, targets, size=2000, random_seed=0)
"""

from __future__ import annotations

from crystalmon.synthetic.reward import PlantedReward
from crystalmon.synthetic.rows import feedback_rows, preference_rows, prompt_rows, sft_rows
from crystalmon.synthetic.targets import load_targets, load_truth, support

__all__ = [
    "PlantedReward",
    "feedback_rows",
    "load_targets",
    "load_truth",
    "preference_rows",
    "prompt_rows",
    "sft_rows",
    "support",
]
