"""Causal language models by name: find one, load it, and ask a loaded one what it is.

A name is a bundled model, a GGUF file, a folder or a hub id. torch and transformers are imported
on use, so that finding files needs neither.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crystalmon.scoring.packaged import check_gguf, packaged_model

if TYPE_CHECKING:
    from torch import nn

ASSETS_DIR = Path(__file__).parents[1] / "assets"

_WEIGHT_FILE = re.compile(r"(adapter_)?(pytorch_)?model.*\.(safetensors|bin)")


class UnsupportedModel(TypeError, ValueError):
    """A model, or what an engine has made of it, that cannot be measured rightly.

    It is a TypeError and a ValueError at once, so that callers that catch either keep working.
    """


class ModelSource(NamedTuple):
    """Where `from_pretrained` finds a model: a folder or hub id, and further keyword arguments."""

    path: str
    options: dict[str, Any]


def find_model(name: str | Path) -> ModelSource:
    """Resolve a model's name to what transformers can load.

    Args:
        name: `liquid-tiny` (in this package), `smollm2-135m` or `gemma3-270m` (in packages of
            their own), a `.gguf` file, a folder, or a hub id; `id@revision` names a branch, tag or
            commit.

    Raises:
        ModuleNotFoundError: if the package that carries the model is not installed.
    """
    if str(name) == "liquid-tiny":
        return ModelSource(str(ASSETS_DIR / "liquid-tiny"), {})
    path = packaged_model(str(name)) or Path(name)
    if path.suffix == ".gguf" and path.is_file():
        check_gguf(path.name)
        return ModelSource(str(path.parent), {"gguf_file": path.name})
    hub_id, revision = split_revision(path)
    return ModelSource(hub_id, {} if revision is None else {"revision": revision})


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """(model, revision) of `id@revision`; an existing path has no revision."""
    hub_id, _, revision = str(name).rpartition("@")
    found = hub_id and revision and not Path(name).exists()
    return (hub_id, revision) if found else (str(name), None)


def find_commit(name: str | Path) -> str | None:
    """The commit of a hub id's files in the local cache; None for what is not from the hub."""
    from huggingface_hub import try_to_load_from_cache

    source = find_model(name)
    if Path(source.path).exists():
        return None
    for file in ("config.json", "adapter_config.json"):
        kept = try_to_load_from_cache(source.path, file, revision=source.options.get("revision"))
        if isinstance(kept, str):
            return Path(kept).parent.name  # …/snapshots/<commit>/config.json
    return None


def find_mark(name: str | Path) -> str | None:
    """What changes when other weights come under the same name, found without reading them.

    Returns:
        For a folder or file: the name, size in bytes and time of change in ns of each file of
        weights. For a hub id: the commit in the local cache. None where neither is known.
    """
    path = Path(name)
    files = weight_files(path) if path.is_dir() else [path] if path.is_file() else []
    if files:
        return " ".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
    try:
        return find_commit(name)
    except ModuleNotFoundError:
        return None


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its model's weights, by name."""
    return sorted(file for file in folder.iterdir() if _WEIGHT_FILE.fullmatch(file.name))


def load_model(name: str | Path, **options: Any) -> tuple[Any, Any]:
    """Load (model, tokenizer) by name; a GGUF file's weights as plain ones, fit for training.

    Args:
        name: see `find_model`.
        options: passed to `AutoModelForCausalLM.from_pretrained`, e.g. `dtype`.

    Raises:
        FileNotFoundError: if transformers finds no model there.
    """
    under = _gguf_under(Path(name))
    model = _from_pretrained("AutoModelForCausalLM", under or name, **options)
    if "gguf_file" in find_model(under or name).options:
        # its weights are plain floats once loaded, but trainers refuse what is marked as quantized
        model.hf_quantizer.remove_quantization_config(model)
    if under is not None:
        model.load_adapter(str(name))
    return model, load_tokenizer(name)


def _gguf_under(folder: Path) -> Path | None:
    """The GGUF file that a folder of adapters was trained over, which transformers cannot find."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return None
    base = Path(str(json.loads(config.read_text()).get("base_model_name_or_path")))
    found = list(base.glob("*.gguf")) if not (base / "config.json").is_file() else []
    return found[0] if len(found) == 1 else None


def load_whole(name: str | Path) -> tuple[Any, Any]:
    """`load_model` beside a training: unpartitioned also under ZeRO-3, no random number drawn."""
    from transformers.integrations import deepspeed

    from crystalmon.scoring.isolation import same_random_states

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        with same_random_states():  # weights that a checkpoint lacks are drawn at random
            return load_model(name)
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def free_memory() -> None:
    """Give back to the device what nothing refers to any more."""
    import torch

    gc.collect()  # hooks may make a model refer to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tokenizer(name: str | Path) -> Any:
    """Load the tokenizer of a model by name; see `load_model`.

    Raises:
        ValueError: if there is none. For a name without a model this may be the only error.
    """
    try:
        return _from_pretrained("AutoTokenizer", name)
    except ValueError as error:
        raise ValueError(
            f"the tokenizer of model {str(name)!r} cannot be loaded: "
            f"{' '.join(str(error).split())[:200]} Check the name, and that its files are there."
        ) from error


def load_config(name: str | Path) -> Any:
    """Load the configuration of a model by name, without its weights; see `load_model`."""
    return _from_pretrained("AutoConfig", name)


def _from_pretrained(kind: str, name: str | Path, **options: Any) -> Any:
    """What a class of transformers loads by name."""
    import transformers
    from huggingface_hub.errors import HFValidationError
    from safetensors import SafetensorError

    source = find_model(name)
    there, failed = Path(source.path).exists(), f"model {str(name)!r} cannot be loaded"
    if not there and _is_path(str(name)):
        what = "file" if str(name).endswith(".gguf") else "folder"
        raise FileNotFoundError(f"{failed}: there is no such {what}.")
    if there and kind != "AutoTokenizer" and not source.options and not _holds_model(source.path):
        raise FileNotFoundError(f"{failed}: name a folder with a config.json, or a .gguf file.")
    try:
        return getattr(transformers, kind).from_pretrained(source.path, **source.options, **options)
    except SafetensorError as error:
        raise ValueError(f"{failed}: its weights are damaged ({error}). Copy them anew.") from error
    except (OSError, HFValidationError) as error:  # the latter: no hub id
        where = "" if there else "there is no such folder, and on the hub: "
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(f"{failed}: {where}{said}") from error


def _holds_model(folder: str | Path) -> bool:
    return any((Path(folder) / name).is_file() for name in ("config.json", "adapter_config.json"))


def _is_path(name: str) -> bool:
    """Whether a name can only be a place on this machine: a hub id is `name` or `owner/name`."""
    hub_id, _ = split_revision(name)
    return name.startswith((".", "~")) or name.endswith(".gguf") or len(Path(hub_id).parts) > 2


def empty_model(config: Any) -> Any:
    """A configuration's causal language model on the meta device: shapes without storage.

    Raises:
        TypeError: if transformers knows no causal language model for it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping.keys():  # noqa: SIM118
        raise TypeError(
            f"model must have a language-modelling head, got {type(config).__name__}. "
            "Name a causal language model."
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def model_name(model: Any) -> str:
    """Where a model was loaded from: a hub id, a folder, or nothing."""
    config = getattr(model, "config", None)
    return str(getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", ""))


def quantization(model: Any) -> str | None:
    """How a model's weights are quantized, such as `bitsandbytes, 4 bits`; None if they are not."""
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return None
    told = found if isinstance(found, dict) else found.to_dict()
    widths = {4: told.get("load_in_4bit"), 8: told.get("load_in_8bit")}
    bits = next((width for width, is_it in widths.items() if is_it), told.get("bits"))
    method = getattr(told.get("quant_method"), "value", told.get("quant_method"))
    return f"{method}, {bits} bits" if bits else str(method)


def vocabulary_size(model: Any) -> int:
    """The number of tokens that a model can take."""
    embedding = model.get_input_embeddings()
    size = getattr(embedding, "num_embeddings", None)  # PEFT may wrap it
    return int(size if size is not None else model.config.get_text_config().vocab_size)


def context_length(model: Any) -> int | None:
    """The longest sequence that a model can take, in tokens; None if it does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if length is None or length > 0 else None


def longrope_switch(model: Any) -> int | None:
    """The longest sequence that gets longrope's short factors; None without longrope.

    A batch gets the long ones as soon as one sequence in it is longer.
    """
    config = model.config.get_text_config()
    whole = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [whole, *(part for part in whole.values() if isinstance(part, dict))]
    ropes = [each for each in kinds if "longrope" in (each.get("rope_type"), each.get("type"))]
    known = getattr(config, "original_max_position_embeddings", None)
    lengths = [each.get("original_max_position_embeddings", known) for each in ropes]
    return min((length for length in lengths if length), default=None)


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that carry PEFT's adapters."""
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


def adapters_change_nothing(model: nn.Module) -> bool:
    """Whether all adapters are LoRA as it begins, with one of its two factors all zeros.

    False where that cannot be seen: for other adapters, and for weights that are sharded.
    """
    from torch.distributed.tensor import DTensor

    for layer in adapter_layers(model):
        parts = [getattr(layer, name, None) for name in ("lora_B", "lora_embedding_A")]
        weights = [weight for part in parts if part is not None for weight in part.parameters()]
        others = ("lora_magnitude_vector", "lora_diag")  # DoRA's and KaSA's
        if not weights or any(getattr(layer, name, None) for name in others):
            return False
        if any(isinstance(each, DTensor) or not each.numel() or each.any() for each in weights):
            return False
    return True


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, PEFT's layers compute what the layers under them do.

    PEFT's own switch also changes which weights require a gradient; this one sets a flag only.
    Merged adapters stay merged: to take them out of the weights rounds.
    """
    layers: list[Any] = [*adapter_layers(model)]
    with contextlib.ExitStack() as stack:
        if not any(getattr(layer, "merged", False) for layer in layers):
            for layer in layers:
                stack.callback(setattr, layer, "_disable_adapters", layer._disable_adapters)
                layer._disable_adapters = True
        yield
