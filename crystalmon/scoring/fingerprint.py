"""A model's fingerprint: what changes when anything changes that decides its answers.

The weights are summed where they lie. The bits of each tensor are read as integers x_i and added up
in chunks as Σ_i m_i x_i mod 2^64. Each place of a chunk has a random odd multiplier m_i of its own:
an odd number has an inverse mod 2^64, so one changed element always changes the sum, and several
cancel out with a probability of 2^-32 in each chunk that they are in. A SHA-256 binds all sums.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from crystalmon.scoring.models import adapter_layers

CHUNK = 2**16
"""Elements that are added up to one sum."""

CHUNKS_AT_ONCE = {"cpu": 4}
DEFAULT_CHUNKS_AT_ONCE = 64
"""More need more memory, 8 bytes an element, and fewer launches."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""By the bytes of an element; a wider one is read as several integers of four bytes."""

_BESIDE = ("transformers_version", "use_cache", "architectures", "dtype", "torch_dtype")
_BESIDE_ENDS = ("name_or_path", "_token_id")
"""What a configuration says that does not change an answer, or that the tensors say themselves."""


_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "trl", "deepspeed")
"""What these hook on a module is known by its name."""

_FOR_GRADIENTS = (".make_inputs_require_grads", ".make_inputs_require_grad")
"""Hooks of the libraries that ask for gradients, as for checkpointing: no answer changes."""


def fingerprint(model: Any, *, without_adapters: bool = False) -> str | None:
    """SHA-256 over a model's weights, class, configuration and code, 64 hex digits.

    Args:
        model: a causal language model; it is only read.
        without_adapters: as the model is within `models.without_adapters`; then it is that of the
            model which PEFT's adapters were put on.

    Returns:
        None where the weights do not say what the model answers: if this process does not hold them
        whole (they are sharded, or lie on the meta device), if a quantizer's own code reads them,
        for adapters at work, whose scales are no weights, or if somebody has hooked a function of
        their own on the model.
    """
    layers = adapter_layers(model)
    if layers and (not without_adapters or any(getattr(each, "merged", False) for each in layers)):
        return None
    base = model.get_base_model() if layers and hasattr(model, "get_base_model") else model
    if getattr(base.config, "quantization_config", None) or (getattr(base, "_tp_size", 1) or 1) > 1:
        return None
    digest, sums = hashlib.sha256(), list[Tensor]()
    names, tensors = set[str](), dict[int, str]()
    for path, module in _modules(base):
        if isinstance(module, FSDPModule | FullyShardedDataParallel):
            return None
        code = [_code(type(module)), *_changes(module)]
        if None in code:
            return None
        names.update(map(str, code))
        for name, tensor in _tensors_of(module):
            if not _is_whole(tensor):
                return None
            first = tensors.setdefault(id(tensor), path + name)
            digest.update(f"{path}{name} {first} {tensor.dtype} {[*tensor.shape]}\n".encode())
            if first == path + name:
                sums.append(_sums(tensor.detach()))
    digest.update("\n".join(sorted(names)).encode())
    digest.update(
        json.dumps(_settings(base.config.to_dict()), sort_keys=True, default=str).encode()
    )
    digest.update(_joined(sums).numpy().tobytes())
    return digest.hexdigest()


def _modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, as if there were no adapters."""
    while hasattr(module, "_disable_adapters"):
        inner = getattr(module, "base_layer", None)
        module = module.original_module if inner is None else inner  # type: ignore[assignment]
    yield path, module
    for name, child in module.named_children():
        yield from _modules(child, f"{path}{name}.")


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers; also those that a checkpoint does not hold."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _is_whole(tensor: Any) -> bool:
    """Whether a tensor's numbers lie here: ZeRO-3 marks its parameters, others have a class."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_meta and not hasattr(tensor, "ds_id")


def _sums(tensor: Tensor) -> Tensor:
    """Σ_i m_i x_i mod 2^64 of each chunk of a tensor, int64 on its device."""
    flat = tensor.reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    bits = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))
    factors = _factors(bits.device)
    whole = len(bits) // CHUNK * CHUNK
    at_once = CHUNKS_AT_ONCE.get(bits.device.type, DEFAULT_CHUNKS_AT_ONCE)
    found = [(part * factors).sum(1) for part in bits[:whole].view(-1, CHUNK).split(at_once)]
    rest = bits[whole:]
    return torch.cat([*found, (rest * factors[: len(rest)]).sum().view(1)])


@functools.lru_cache(maxsize=16)
def _factors(device: torch.device) -> Tensor:
    """The odd multiplier of each place of a chunk, int64: the same everywhere, for ever."""
    drawn = np.random.Philox(key=0).random_raw(CHUNK) | np.uint64(1)
    return torch.from_numpy(drawn.view(np.int64)).to(device)


def _joined(sums: list[Tensor]) -> Tensor:
    """All sums in their order, in the memory of the host; fetched once from each device."""
    places = [each.device for each in sums]
    fetched = {
        place: iter(
            torch.cat([s for s in sums if s.device == place])
            .cpu()
            .split([len(s) for s in sums if s.device == place])
        )
        for place in dict.fromkeys(places)
    }
    return torch.cat([next(fetched[place]) for place in places])


@functools.cache
def _code(kind: type) -> str | None:
    """A class of modules by its name and its file's content; None if it was defined in no file."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] == "torch":
        return name
    try:
        content = Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return None
    return f"{name} {hashlib.sha256(content).hexdigest()}"


def _changes(module: nn.Module) -> Iterator[str | None]:
    """What runs as a module's `forward`, and is hooked on it; None if that may be anything.

    TRL's `_fused_forward`, and a class's own `forward` put back on its module, change nothing.
    """
    kind, own = type(module), vars(module).get("forward")
    homes = {each.__module__ for each in kind.__mro__}
    of_class = [*_wrapped(kind.forward)]
    for each in of_class:  # somebody may have put another function into the class
        yield f"forward of {_name(each)}" if _is_known(each, homes) else None
    links = [] if own is None else [each for each in _wrapped(own, module) if not _is_fused(each)]
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    added = [] if links == of_class else links
    for each in (*added, *(link for hook in hooks for link in _wrapped(hook))):
        if not _is_known(each):
            yield None
        elif not _name(each).endswith(_FOR_GRADIENTS):
            yield f"changed by {_name(each)}"


def _wrapped(function: Any, module: nn.Module | None = None) -> Iterator[Any]:
    """A function without what it is bound to, then each that it wraps.

    Args:
        function: or whatever can be called.
        module: what a method must be bound to; where it is not, None comes in its place.
    """
    while function is not None:
        bare, holder = getattr(function, "__func__", function), getattr(function, "__self__", None)
        if isinstance(bare, functools.partial):
            bare, holder = bare.func, next(iter(bare.args), None)
        yield bare if module is None or holder in (None, module) else None
        below = inspect.getclosurevars(bare).nonlocals if _is_fused(bare) else {}
        function = below.get("original_forward", getattr(function, "__wrapped__", None))


def _is_fused(function: Any) -> bool:
    """Whether it is TRL's `_fused_forward`, which calls what it wraps unless asked for a loss."""
    return _name(function).startswith("trl.") and _name(function).endswith("._fused_forward")


def _is_known(function: Any, homes: Collection[str] = ()) -> bool:
    """Whether a function is one of the libraries', or of these modules."""
    home = _home(function)
    return home.partition(".")[0] in _LIBRARIES or home in homes


def _name(function: Any) -> str:
    """By its code: `functools.wraps` gives a function the name of the one that it wraps."""
    code = getattr(function, "__code__", None)
    name = type(function).__qualname__ if code is None else code.co_qualname
    return f"{_home(function)}.{name}"


def _home(function: Any) -> str:
    """The module of a function's code, or of the class of what else can be called."""
    return getattr(function, "__globals__", {}).get("__name__") or type(function).__module__


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what changes no answer."""
    return {
        key: _settings(value) if isinstance(value, Mapping) else value
        for key, value in ((str(key), value) for key, value in config.items())
        if key not in _BESIDE and not key.endswith(_BESIDE_ENDS)
    }
