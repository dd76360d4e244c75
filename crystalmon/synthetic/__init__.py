"""Training data whose outcome is known: post-training towards a target distribution per task.

A *target* gives, for each task, how probable each choice shall be. The functions here turn it into
what the TRL trainers read: prompt-completion rows (SFT), preferences (DPO), labelled completions
(KTO), prompts and a reward (GRPO, RLOO, PPO). For `liquid-tiny` the target is the planted seed's
distribution, so a monitor must find that seed; all later stages stay inside its 90% support.

    suite = crystalmon.load_suite("liquid-tiny")
    targets = load_targets("liquid-tiny")
    rows = sft_rows(suite, targets, size=2000, seed=0)

Everything is drawn with Python's `random`: the same arguments give the same rows everywhere.
"""

from __future__ import annotations

from crystalmon.synthetic.reward import PlantedReward, read_choice
from crystalmon.synthetic.rows import feedback_rows, preference_rows, prompt_rows, sft_rows
from crystalmon.synthetic.targets import Targets, load_targets, load_truth, normalised, support

__all__ = [
    "PlantedReward",
    "Targets",
    "feedback_rows",
    "load_targets",
    "load_truth",
    "normalised",
    "preference_rows",
    "prompt_rows",
    "read_choice",
    "sft_rows",
    "support",
]
