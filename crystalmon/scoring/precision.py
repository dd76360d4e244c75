"""Running a model in more precision than it trains in: layers in float32, answers in `HEAD_DTYPE`.

Axes: B sequences, T tokens, M positions needed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

HEAD_DTYPE = {"cpu": torch.float64}
"""Dtype of the output projection, by device; float32 elsewhere, as many GPUs are slow in float64.
In float32 a sum over the hidden size rounds by 1e-5, which adds up along a path of tokens."""

MASKED_ATTENTION = ("sdpa", "eager")
"""transformers' attention implementations that take any 4-D mask, in any precision."""

HALF = (torch.float16, torch.bfloat16)
_WIDE = (torch.float32, torch.float64)
_LEFT_ALONE = ("__get__", "__set__", "__setitem__")
_CASTS = ("to", "half", "bfloat16")


@contextlib.contextmanager
def float32_layers(model: nn.Module) -> Iterator[None]:
    """Within, half-precision weights are multiplied in float32, and so is the attention.

    Flash attention and its like take neither float32 nor a mask: `sdpa` stands in for them.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            kind = getattr(config, "_attn_implementation", None)
            if kind not in (None, *MASKED_ATTENTION):
                stack.callback(setattr, config, "_attn_implementation_internal", kind)
                config._attn_implementation_internal = "sdpa"
        stack.enter_context(_Widening(HALF, _gathered_storages(model)))
        yield


@contextlib.contextmanager
def answer_positions(head: nn.Module, where: Tensor) -> Iterator[None]:
    """Within, the head projects the needed positions only, in `HEAD_DTYPE`: [B, T, D] → [1, M, V].

    The model's own forward still scales or soft-caps what the head returns, in that dtype.
    Replacing `forward` keeps the module's hooks, on which sharded engines gather its weight.
    `where` holds [M, 2] (sequence, position) pairs.
    """
    forward, replaced = head.forward, "forward" in vars(head)

    def project(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        at = where.to(hidden.device)
        dtype = HEAD_DTYPE.get(hidden.device.type, torch.float32)
        needed = hidden[at[:, 0], at[:, 1]].unsqueeze(0).to(dtype)
        with torch.autocast(hidden.device.type, enabled=False), _Widening((*HALF, torch.float32)):
            return forward(needed, *args, **kwargs)

    head.forward = project
    try:
        yield
    finally:
        del head.forward
        if replaced:
            head.forward = forward


class _Widening(TorchFunctionMode):
    """Within, a function of floats of different widths takes the narrow ones as the widest.

    A lookup in a half-precision table gives float32, so all that follows is float32; nothing wide
    is cast back to half; autocast is off. Tensors are converted one at a time, when they are used,
    and of the stacked matrices of experts one matrix, so no second copy of the model is ever held.
    """

    def __init__(
        self, narrow: tuple[torch.dtype, ...], storages: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self._narrow, self._storages = narrow, storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LEFT_ALONE or (name.endswith("_") and not name.endswith("__")):
            return func(*args, **kwargs)
        if name in _CASTS and args[0].dtype in _WIDE:
            if self._storages and args[0].untyped_storage().data_ptr() in self._storages:
                return func(*args, **kwargs)
            if name != "to":
                return args[0]
            own, *rest = args
            kept = {key: _kept_wide(value, own.dtype) for key, value in kwargs.items()}
            return own.to(*(_kept_wide(value, own.dtype) for value in rest), **kept)
        if func is nn.functional.embedding:
            found = func(*args, **kwargs)
            return found.float() if found.dtype in HALF else found
        tensors = [*_tensors(args, kwargs)]
        kinds = {tensor.dtype for tensor in tensors}
        wide = [dtype for dtype in _WIDE if dtype in kinds]
        if not wide:
            return func(*args, **kwargs)
        if len(kinds) > 1 and name in _BY_MATRIX:
            func = _BY_MATRIX[name]
        elif len(kinds) > 1:
            args = [self._widened(value, wide[-1]) for value in args]
            kwargs = {key: self._widened(value, wide[-1]) for key, value in kwargs.items()}
        device = tensors[0].device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return func(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return func(*args, **kwargs)

    def _widened(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.dtype in self._narrow else value
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)(self._widened(item, dtype) for item in value)
        return value


def _gathered_storages(model: nn.Module) -> frozenset[int]:
    """Where the shards lie that FSDP 2 casts when it gathers them, into buffers that it keeps."""
    shards = {
        weight
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for weight in module.parameters()
        if isinstance(weight, DTensor)
    }
    return frozenset(each.to_local().untyped_storage().data_ptr() for each in shards)


def _grouped_mm(
    rows: Tensor, matrices: Tensor, offs: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """torch's `grouped_mm`, each matrix widened alone: [S, D] × [G, D, F] → [S, F].

    The rows of group g end at `offs[g]`. Rows of no group are zero.
    """
    dtype = torch.promote_types(rows.dtype, matrices.dtype)
    product = rows.new_zeros(len(rows), matrices.shape[-1], dtype=dtype)
    start = 0
    for matrix, end in zip(matrices, offs.tolist(), strict=True):
        if end > start:  # experts that no token goes to are not widened
            product[start:end] = rows[start:end].to(dtype) @ matrix.to(dtype)
        start = end
    return product if bias is None else product + bias


def _bmm(one: Tensor, other: Tensor) -> Tensor:
    """torch's `bmm`, each matrix widened alone: [G, S, D] × [G, D, F] → [G, S, F]."""
    dtype = torch.promote_types(one.dtype, other.dtype)
    return torch.stack([a.to(dtype) @ b.to(dtype) for a, b in zip(one, other, strict=True)])


_BY_MATRIX = {
    "bmm": _bmm,
    "_grouped_mm": _grouped_mm,
    "grouped_mm_fallback": _grouped_mm,  # transformers'
}


def _kept_wide(value: Any, own: torch.dtype) -> Any:
    """An argument of `Tensor.to`; where it asks for half precision, the tensor's own instead."""
    if isinstance(value, Tensor):  # `x.to(other)`: where that lies, and as what
        return value.device if value.dtype in HALF else value
    return own if isinstance(value, torch.dtype) and value in HALF else value


def _tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))
