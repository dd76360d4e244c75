"""The most memory that this process has held: on a GPU by torch, else its largest resident set."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def peak_memory(device: str = "cpu") -> int:
    """Bytes held at most since the process began, or since `reset_peak`.

    Not by `ru_maxrss`: Linux counts into that what the process held that started this one.

    Raises:
        RuntimeError: where the system does not say.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    if found is None:
        raise RuntimeError("/proc/self/status must say VmHWM. Run this on Linux.")
    return int(found[1]) * 1024


def reset_peak(device: str = "cpu") -> int | None:
    """Forget the peak so far; bytes held now, None where the system cannot."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return peak_memory(device)
