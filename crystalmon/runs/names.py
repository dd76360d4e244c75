"""Names on disk and in trackers that several modules share."""

from __future__ import annotations

DEFAULT_NAME = "crystalmon"
"""Of the run folder within an output folder, and what the names of its metrics begin with. Another
callback of the same trainer has a longer one that begins with it."""

REFERENCE_FOLDER = "reference"
TENSOR_FILE = "reference.safetensors"
CHOICE_PREFIX = "log_choice/"
"""Within the run folder: the frozen base's answers, a file in it, and in that the log-probabilities
of a task's choices, before the task's name."""

SCAN_FILE = "scan.json"
"""Within the run folder of a scan: what was found, and the verdicts."""

EXPERIMENTS_FOLDER = "experiments"
"""Within the run folder: the results of experiments that run inside the training."""

STEP_KEY = "train/global_step"
"""The key under which transformers logs the step to wandb and trackio."""
