"""Running a model that is being trained without a trace: what a pass may change is put back."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

_LOGITS_WANTED = {"UNSLOTH_RETURN_LOGITS": "1", "UNSLOTH_RETURN_HIDDEN_STATES": "0"}
"""What makes Unsloth's models return logits; in training they may return hidden states, or none."""

_SETTLED = "compute_type_is_set"
"""Marks a layer of bitsandbytes in 4 bits."""
_REPACKS = "support_avx512bf16_for_cpu"
"""Where it is set, such a layer rewrites its weights in evaluation mode, and not back."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compilation; afterwards everything is as it was.

    Restores each module's own train/eval flag and cached lengths, what layers in 4 bits settle at
    their first pass, the random states, the precision of float32 products, the environment, and the
    shards of fully sharded modules, also when the body raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    caches = [(each, *_cached(each)) for each, _ in modes if each._non_persistent_buffers_set]
    settled: list[Any] = [each for each, _ in modes if hasattr(each, _SETTLED)]
    packed = [(each, *_of_4_bits(each)) for each in settled]
    try:
        for module, values, _ in packed:
            if _REPACKS in values:
                setattr(module, _REPACKS, False)
        for module, _ in modes:
            module.training = False  # eval() may do more, such as merging adapters
        with (
            same_random_states(),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            _full_float32(),
            _environment(_LOGITS_WANTED),
        ):
            yield
    finally:
        for module, buffers, values in caches:
            module._buffers.update(buffers)
            vars(module).update(values)
        for module, values, bias in packed:
            vars(module).update(values)
            if bias is not None:
                module.bias.data = bias
        for module, training in modes:
            module.training = training
            _reshard(module)


def _reshard(module: Any) -> None:
    """Free what a sharded module has gathered: a root keeps it until a backward pass."""
    if isinstance(module, FSDPModule):
        module.reshard()
    elif isinstance(module, FullyShardedDataParallel) and module._is_root is not None:
        from torch.distributed.fsdp._common_utils import HandleTrainingState, TrainingState

        module.training_state = TrainingState.IDLE  # a pass that failed has left it
        if (handle := module._handle) is not None:
            handle._training_state = HandleTrainingState.IDLE
            if handle.uses_sharded_strategy and not handle.is_sharded(handle.flat_param):
                # torch's own way also queues an event that a later unshard of the training awaits
                handle.reshard(True)
                handle.post_reshard()
                handle._prefetched = False


def _cached(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """What a module keeps of the lengths that it has seen, such as the base of dynamic RoPE."""
    buffers = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
    plain = (int, float, str, type(None), Tensor)
    return buffers, {key: v for key, v in vars(module).items() if isinstance(v, plain)}


def _of_4_bits(module: Any) -> tuple[dict[str, Any], Tensor | None]:
    """What the first pass through a layer of bitsandbytes settles for all others: its dtypes."""
    keys = (_SETTLED, _REPACKS, "compute_dtype")
    values = {key: vars(module)[key] for key in keys if key in vars(module)}
    return values, None if module.bias is None else module.bias.data


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """Afterwards, the random states of Python, NumPy, torch and its devices are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    devices = range(torch.accelerator.device_count())  # none without an accelerator
    device_type = accelerator.type if accelerator else "cuda"
    try:
        with torch.random.fork_rng(devices, device_type=device_type):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Within, float32 products are exact: TF32 and its like, which keep ten bits, are off."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    with contextlib.ExitStack() as stack:
        if all(hasattr(place, "fp32_precision") for place in places):
            for place in places:
                stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
                place.fp32_precision = "ieee"
        else:  # torch before 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Within, these variables are set so."""
    before = {name: os.environ.pop(name) for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update(before)
