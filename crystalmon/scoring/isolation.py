"""Running a model that is being trained without a trace, and in more precision than it trains in.

`undisturbed` puts back all that a forward pass may change. `float32_layers` and
`answer_positions` decide what the numbers are: half-precision weights are multiplied in float32,
one weight at a time, so that no second copy of the model is ever held.

Axes: B sequences, T tokens, M positions needed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode

HEAD_DTYPE = {"cpu": torch.float64}
"""In what the output projection is computed, float32 elsewhere: many GPUs are slow in float64. A
sum over the vocabulary's width rounds by 1e-5 in float32, which adds up along a path of tokens."""

MASKED_ATTENTION = ("sdpa", "eager")
"""transformers' attention implementations that take any 4-D mask, in any precision."""

_HALF = (torch.float16, torch.bfloat16)
_WIDE = (torch.float32, torch.float64)
_LEFT_ALONE = ("__get__", "__set__", "__setitem__")
_CASTS = ("to", "half", "bfloat16")


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compilation; afterwards everything is as it was.

    Restores each module's own train/eval flag and cached lengths, the random states, the precision
    of float32 products, and what fully sharded modules hold, also when the body raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    caches = [(module, *_cached(module)) for module, _ in modes if _buffers_not_saved(module)]
    try:
        for module, _ in modes:
            module.training = False  # eval() may do more, such as merging adapters
        with (
            same_random_states(),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            _full_float32(),
        ):
            yield
    finally:
        for module, buffers, values in caches:
            module._buffers.update(buffers)
            vars(module).update(values)
        for module, training in modes:
            module.training = training
            # the root of a sharded model stays whole after a forward pass until a backward one
            if isinstance(module, FSDPModule):
                module.reshard()


def _buffers_not_saved(module: nn.Module) -> set[str]:
    return getattr(module, "_non_persistent_buffers_set", set())


def _cached(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """What a module keeps of the lengths that it has seen, such as the base of dynamic RoPE."""
    buffers = {name: module._buffers.get(name) for name in _buffers_not_saved(module)}
    plain = (int, float, str, type(None), Tensor)
    return buffers, {key: v for key, v in vars(module).items() if isinstance(v, plain)}


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """Afterwards, the random states of Python, NumPy, torch and its devices are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    devices = range(torch.accelerator.device_count()) if accelerator else []
    device_type = accelerator.type if accelerator else "cuda"
    try:
        with torch.random.fork_rng(devices, device_type=device_type):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32 and its like, which cut a float32 product to ten bits."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    if not all(hasattr(place, "fp32_precision") for place in places):  # torch before 2.9
        old = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(old)
        return
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextlib.contextmanager
def masked_attention(model: nn.Module) -> Iterator[None]:
    """Within, attention is computed by a kernel that takes a mask and float32: `sdpa`.

    The likes of flash attention take neither. The choice lies in the configurations, which are
    put back.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found}
    before = [
        (config, config._attn_implementation)
        for config in configs.values()
        if getattr(config, "_attn_implementation", None) not in (None, *MASKED_ATTENTION)
    ]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "sdpa"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


class _Widening(TorchFunctionMode):
    """Within, a function of floats of different widths takes the narrow ones as the widest.

    A lookup in a half-precision table gives single precision, so that what follows is single; what
    is wide is not cast back to half; autocast is off. Tensors are converted one at a time, when
    they are used. Nothing of the model is changed.

    Args:
        narrow: the dtypes to convert.
    """

    def __init__(self, narrow: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self._narrow = narrow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LEFT_ALONE or (name.endswith("_") and not name.endswith("__")):
            return func(*args, **kwargs)
        if name in _CASTS and args[0].dtype in _WIDE:
            args, kwargs = _kept_wide(name, args, kwargs)
            return args[0] if len(args) == 1 and not kwargs else Tensor.to(*args, **kwargs)
        if func is nn.functional.embedding:
            found = func(*args, **kwargs)
            return found.float() if found.dtype in _HALF else found
        widest = _widest(args, kwargs)
        if widest is None:
            return func(*args, **kwargs)
        args = [self._widened(value, widest) for value in args]
        kwargs = {key: self._widened(value, widest) for key, value in kwargs.items()}
        device = next(_tensors(args, kwargs)).device.type
        if not torch.is_autocast_enabled(device):
            return func(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return func(*args, **kwargs)

    def _widened(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.dtype in self._narrow else value
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)(self._widened(item, dtype) for item in value)
        return value


def float32_layers() -> _Widening:
    """Within, what half-precision weights are multiplied with is float32, and so is the result."""
    return _Widening(_HALF)


def _kept_wide(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of `Tensor.to` that cast as asked, but not to half precision."""
    if name in ("half", "bfloat16"):
        return args[:1], {}
    own = args[0].dtype

    def keep(value: Any) -> Any:
        if isinstance(value, Tensor):  # `x.to(other)`: where that lies, and as what
            return value.device if value.dtype in _HALF else value
        return own if isinstance(value, torch.dtype) and value in _HALF else value

    return (args[0], *map(keep, args[1:])), {key: keep(value) for key, value in kwargs.items()}


def _tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def _widest(args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
    """The widest floating dtype among the arguments, or None if none is over half precision."""
    found = {tensor.dtype for tensor in _tensors(args, kwargs)} & set(_WIDE)
    return max(found, key=_WIDE.index) if found else None


@contextlib.contextmanager
def answer_positions(head: nn.Module, where: Tensor) -> Iterator[None]:
    """Within, the head projects the needed positions only, in `HEAD_DTYPE`: [B, T, D] → [1, M, V].

    The model's own forward still scales or soft-caps what the head returns, in that dtype.
    Replacing `forward` keeps the module's hooks, on which sharded engines gather its weight.

    Args:
        head: the output projection.
        where: [M, 2] (sequence, position) pairs.
    """

    def project(forward: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        at = where.to(hidden.device)
        dtype = HEAD_DTYPE.get(hidden.device.type, torch.float32)
        needed = hidden[at[:, 0], at[:, 1]].unsqueeze(0).to(dtype)
        with torch.autocast(hidden.device.type, enabled=False), _Widening((*_HALF, torch.float32)):
            return forward(needed, *args, **kwargs)

    forward, replaced = head.forward, "forward" in vars(head)
    head.forward = lambda hidden, *args, **kwargs: project(forward, hidden, *args, **kwargs)
    try:
        yield
    finally:
        del head.forward
        if replaced:
            head.forward = forward
