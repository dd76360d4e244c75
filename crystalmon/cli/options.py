"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from typing import Any

MODEL_HELP = "liquid-tiny, smollm2-135m, a .gguf file, a folder, or a hub id"


def add_model(command: argparse.ArgumentParser) -> None:
    """The model to look at."""
    command.add_argument("model", help=MODEL_HELP)


def add_prompts(command: argparse.ArgumentParser) -> None:
    """What it is asked: a suite, and how its prompts are sent."""
    command.add_argument("--suite", default="randomness", help="a bundled suite or a YAML file")
    command.add_argument("--view", default="raw", choices=("raw", "chat"))


def add_placement(command: argparse.ArgumentParser) -> None:
    """In what precision its weights are loaded, and where to."""
    command.add_argument("--dtype", default="float32", help="torch dtype of the weights")
    command.add_argument(
        "--device", default=None, help="torch device; the accelerator if there is one"
    )


def load_placed(name: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    """(model, tokenizer) as `--dtype` and `--device` ask for.

    Raises:
        ValueError: if either is no such thing, or the device not usable.
        FileNotFoundError: if there is no such model.
    """
    import torch

    from crystalmon.scoring.models import load_model

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype, got {dtype!r}. Try float32 or bfloat16.")
    model, tokenizer = load_model(name, dtype=kind)
    try:
        model.to(device or torch.accelerator.current_accelerator() or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be usable here, got {device!r}: {error}") from error
    return model, tokenizer
