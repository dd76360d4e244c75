"""Training with the callback and without, for `gpu_check.py`: is it the same, and what it holds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from crystalmon import read_run
from crystalmon.scoring.memory import batch_logits
from crystalmon.scoring.precision import HEAD_DTYPE

FOLDER = Path(__file__).parent / "no_trace"
TRAIN = FOLDER / "train.py"
sys.path.insert(0, str(FOLDER))
check = importlib.import_module("check")


def measure_training(device: str) -> dict[str, Any]:
    """An SFT of liquid-tiny, twice: are weights and log rows the same, and the peaks in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        bare, watched = Path(folder) / "bare", Path(folder) / "watched"
        peaks = [train(bare, device), train(watched, device, "--callback")]
        reference = (watched / "crystalmon/reference/reference.safetensors").stat().st_size
        logits = batch_logits(device) * HEAD_DTYPE.get(device, torch.float32).itemsize
        return {
            "weights": check.same_weights(bare, watched),
            "log rows": check.same_logs(bare, watched),
            "probes": len(read_run(watched).records),
            "peaks": peaks,
            "allowed": reference + logits,
        }


def train(out: Path, device: str, *options: str) -> int:
    """One run by `no_trace/train.py` in a process of its own; its peak in bytes.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    command = [sys.executable, str(TRAIN), str(out), "--device", device]
    environment = {
        **os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [*command, *options],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"training on {device} failed:\n{done.stdout[-3000:]}")
    return int((out / "peak").read_text(encoding="ascii"))
