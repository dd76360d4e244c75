"""One of two processes that go through the engines; `test_engines.py` starts both and judges.

python two_engines.py FOLDER RANK

Each engine trains two steps with the callback, and again without it. Those that shard a model by a
GPU's kernels alone are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.big_modeling import _attach_context_parallel_hooks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from two_ranks import Scene, main

from crystalmon import CrystalCallback, Monitor, TaskSuite, read_run
from crystalmon.experiments.common.subject import Subject
from crystalmon.scoring.models import find_model, load_model

HALF = torch.bfloat16
Engine = Callable[[Any], nn.Module]
"""Takes the language model and gives what trains it."""


def fsdp1(model: Any, **options: Any) -> nn.Module:
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    own = {"auto_wrap_policy": layers, "device_id": torch.device("cpu"), **options}
    return FullyShardedDataParallel(model, use_orig_params=True, **own)


def fsdp2(model: Any, half: bool = False) -> nn.Module:
    policy = MixedPrecisionPolicy(HALF, HALF, output_dtype=HALF) if half else MixedPrecisionPolicy()
    for part in (*model.model.layers, model):
        fully_shard(part, mp_policy=policy)
    return model


def context_parallel(model: Any) -> nn.Module:
    _attach_context_parallel_hooks(model)
    return fsdp2(model)


def compiled(model: Any, inside: bool) -> Any:
    if inside:
        return DistributedDataParallel(torch.compile(model, backend="eager"))
    return torch.compile(DistributedDataParallel(model), backend="eager")


def weights_of(engine: Any) -> dict[str, Tensor]:
    """Whole, by name."""
    if isinstance(engine, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(engine, writeback=False):
            named = [(name, each.detach().clone()) for name, each in engine.named_parameters()]
        return {name.replace("_fsdp_wrapped_module.", ""): each for name, each in named}
    found: Any = get_model_state_dict(engine, options=StateDictOptions(full_state_dict=True))
    own = {name.replace("_orig_mod.", "").removeprefix("module."): v for name, v in found.items()}
    return {name: each.detach().clone() for name, each in own.items()}


def trained(scene: Scene, make: Engine, watched: bool) -> tuple[dict[str, Tensor], list[float]]:
    """Two steps: the weights and the losses."""
    model, _ = load_model("liquid-tiny")
    engine = make(model)
    args = TrainingArguments(str(scene.folder / "out"), report_to=[], disable_tqdm=True)
    state, control = TrainerState(max_steps=2), TrainerControl()
    state.is_world_process_zero = scene.ranks.is_main
    told = {"model": engine, "processing_class": scene.tokenizer}
    callback = CrystalCallback(
        scene.suite, every=1, reference="initial", precision="float32", max_overhead=None,
        strict=True,
    )  # fmt: skip
    if watched:
        callback.on_train_begin(args, state, control, **told)
    optimizer, losses = torch.optim.SGD(engine.parameters(), lr=0.05), []
    for step in (1, 2):
        torch.manual_seed(10 * step + scene.ranks.rank)
        tokens = torch.randint(5, 200, (2, 12))
        engine.train()
        loss = engine(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        state.global_step = step
        if watched:
            callback.on_step_end(args, state, control, **told)
    if watched:
        callback.on_train_end(args, state, control, **told)
    return weights_of(engine), losses


def same(make: Engine, rounded: bool, scene: Scene) -> list[Any]:
    """[weights and losses as without the callback, error of the first probe, of the last].

    Errors are those of a probability, against the plain model with the engine's weights; `rounded`
    says that the engine rounds them to half precision before it computes.
    """
    scene.suite = TaskSuite("two", scene.suite.tasks[:2])
    weights, losses = trained(scene, make, watched=True)
    bare, bare_losses = trained(scene, make, watched=False)
    equal = all(torch.equal(weights[name], bare[name]) for name in bare)
    records = scene.ranks.on_main(lambda: read_run(scene.folder / "out").records)
    errors = []
    for record, known in ((records[0], None), (records[-1], weights)):
        model, tokenizer = load_model("liquid-tiny")
        known = known or model.state_dict()
        round_to = HALF if rounded else torch.float32
        model.load_state_dict({n: v.to(round_to).float() for n, v in known.items()}, strict=False)
        plain = Monitor(model, tokenizer, scene.suite, "initial").probe(0)
        differences = [np.abs(record.tasks[n].q - plain.tasks[n].q).max() for n in plain.tasks]
        errors.append(float(max(differences)))
    return [equal and losses == bare_losses and weights.keys() == bare.keys(), *errors]


def probed(scene: Scene, make: Engine) -> list[Any]:
    """[how many ranks run the same prompts, error of a probability]."""
    plain = scene.monitor("initial").probe(0)
    monitor = Monitor(make(scene.model), scene.tokenizer, scene.suite, "initial")
    record = monitor.probe(0)
    error = max(np.abs(record.tasks[n].q - plain.tasks[n].q).max() for n in plain.tasks)
    return [monitor.ranks.alike, float(error)]


def tensor_parallel(scene: Scene) -> list[Any]:
    def load(_: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(find_model("liquid-tiny").path, tp_plan="auto")

    return probed(scene, load)


class Summed(nn.Linear):
    """Each rank holds some columns of the matrix."""

    def forward(self, values: Tensor) -> Tensor:
        output = super().forward(values)
        dist.all_reduce(output)
        return output


def hidden_tensor_parallel(scene: Scene) -> list[Any]:
    """No attribute tells of it, as with DeepSpeed's AutoTP."""

    def split(model: Any) -> Any:
        for layer in model.model.layers:
            mlp, rank = layer.mlp, scene.ranks.rank
            for each in (mlp.gate_proj, mlp.up_proj):
                each.weight.data = each.weight.data.chunk(2)[rank].clone()
            down = Summed(1, 1, bias=False)
            down.weight.data = mlp.down_proj.weight.data.chunk(2, dim=1)[rank].clone()
            mlp.down_proj = down
        return model

    return probed(scene, split)


def split_sequences(scene: Scene) -> list[Any]:
    """Each rank holds a part of the sequence, and looks back at those of the ranks before it."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def gathered(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any):
        both = [[torch.empty_like(each) for _ in range(2)] for each in (query, key, value)]
        for parts, own in zip(both, (query, key, value), strict=True):
            dist.all_gather(parts, own.contiguous())
        output, _ = plain(module, *(torch.cat(parts, dim=2) for parts in both), None, **more)
        return output.chunk(2, dim=1)[scene.ranks.rank], None

    scene.patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", gathered)
    return probed(scene, lambda model: model)


def root_elsewhere(scene: Scene) -> None:
    class Policy(nn.Module):
        def __init__(self, policy: nn.Module) -> None:
            super().__init__()
            self.policy = policy

    for layer in scene.model.model.layers:
        fully_shard(layer)
    told = {"model": fully_shard(Policy(scene.model)), "processing_class": scene.tokenizer}
    args = TrainingArguments(str(scene.folder / "out"), report_to=[], disable_tqdm=True)
    state = TrainerState(max_steps=2, is_world_process_zero=scene.ranks.is_main)
    CrystalCallback(scene.suite).on_train_begin(args, state, TrainerControl(), **told)


def generated(scene: Scene) -> None:
    Subject(fsdp1(scene.model), scene.tokenizer, "tiny", scene.ranks).generate([(1, 2)], 2)


MIXED = {"mixed_precision": MixedPrecision(param_dtype=HALF, reduce_dtype=HALF)}
GRADIENTS = {"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP}
SCENARIOS: dict[str, Callable[[Scene], Any]] = {
    "FSDP 1": partial(same, fsdp1, False),
    "FSDP 1, gradients alone": partial(same, partial(fsdp1, **GRADIENTS), False),
    "FSDP 1, mixed precision": partial(same, partial(fsdp1, **MIXED), True),
    "FSDP 2, mixed precision": partial(same, partial(fsdp2, half=True), True),
    "context parallelism": partial(same, context_parallel, False),
    "compiled inside DDP": partial(same, partial(compiled, inside=True), False),
    "compiled outside DDP": partial(same, partial(compiled, inside=False), False),
    "tensor parallelism": tensor_parallel,
    "tensor parallelism, hidden": hidden_tensor_parallel,
    "split sequences": split_sequences,
    "root elsewhere": root_elsewhere,
    "texts under FSDP 1": generated,
}

if __name__ == "__main__":
    main(SCENARIOS)
