"""What an engine has made of a model: where it is run, what cannot be measured, who runs what.

Engines that this module knows are recognized by their objects. Whatever else ties the ranks'
passes together is found by trying: on every rank the same prompts must get the same answers,
whichever prompts other ranks run at that moment.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from crystalmon.scoring.forward import Route, next_token_log_probs, output_head
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.models import UnsupportedModel
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.ranks import ONE, Ranks, current_ranks
from crystalmon.scoring.route import deviation
from crystalmon.scoring.sequences import TokenSequence, chain

SAME = 0.05
"""Largest `deviation` at which passes of one shape on two ranks agree: kernels may round a half
precision differently on other devices. Mixed up prompts deviate by about 1."""

TRIED = 7
"""Rows in the trial: odd, so that ranks of groups of any even size take them in other orders."""
COLUMNS = 2048
"""Tokens of the vocabulary, at most, whose log-probabilities ranks compare."""

_WRAPPERS = ("_orig_mod", "module", "policy")


def runnable(model: Any) -> Any:
    """The module to run: from within PPO's, an engine's or the compiler's wrapper.

    The root of FSDP 1 stays, as its own forward alone gathers its own parameters. It hands on every
    attribute of the language model in it.
    """
    while not isinstance(model, FullyShardedDataParallel):
        within = next((getattr(model, name) for name in _WRAPPERS if hasattr(model, name)), None)
        if within is None:
            return model
        model = within
    return model


def unwrapped(model: Any) -> Any:
    """The language model itself, also from within the root of FSDP 1."""
    found = runnable(model)
    return unwrapped(found.module) if isinstance(found, FullyShardedDataParallel) else found


def check_engine(model: Any, args: Any = None) -> None:
    """Refuse what would be measured wrongly, or would break the training.

    Args:
        model: the trainer's, or what is run.
        args: the trainer's arguments, if there is one.

    Raises:
        UnsupportedModel: for `DataParallel`, pipeline parallelism, Ulysses that is also on in
            evaluation, and a model whose FSDP root is not the language model.
    """
    quantized = getattr(model, "is_loaded_in_8bit", False) or getattr(
        model, "is_loaded_in_4bit", False
    )
    if isinstance(model, nn.DataParallel) or (getattr(args, "n_gpu", 1) > 1 and not quantized):
        raise UnsupportedModel(
            "DataParallel is not supported: start one process a GPU with torchrun or accelerate "
            "launch, or show the training one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    if (getattr(getattr(config, "distributed_config", None), "pp_size", 1) or 1) > 1:
        raise UnsupportedModel(
            "pipeline parallelism is not supported: a rank holds some layers alone. Use FSDP or "
            "tensor parallelism, or train without the callback."
        )
    if _mixes_sequences(config):
        raise UnsupportedModel(
            "Ulysses must leave the evaluation alone, but here it splits sequences there too. Use "
            "versions of accelerate and DeepSpeed that pass disable_in_eval, or train without the "
            "callback."
        )
    if _within_another_root(runnable(model)):
        raise UnsupportedModel(
            "FSDP must have the language model as its root, got one within another module, which "
            "gathers its weights in its own forward alone. Shard the language model itself, or "
            "train without the callback."
        )


def _mixes_sequences(config: Any) -> bool:
    """Whether DeepSpeed's Ulysses stands for the attention, and not only in training."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = ALL_ATTENTION_FUNCTIONS.get(getattr(config, "_attn_implementation", None))
    if not inspect.isfunction(attention):
        return False
    ulysses = inspect.getclosurevars(attention).nonlocals.get("uattn")
    size = getattr(ulysses, "world_size", 1)
    return size > 1 and not getattr(ulysses, "disable_in_eval", False)


def _within_another_root(model: nn.Module) -> bool:
    """Whether a wrapper that is not run here gathers some of this model's weights."""
    if isinstance(model, FSDPModule | FullyShardedDataParallel):
        return False
    if any(isinstance(each, FullyShardedDataParallel) for each in model.modules()):
        return True
    sharded = [each for each in model.modules() if isinstance(each, FSDPModule)]
    own = {id(weight) for each in sharded for weight in each.parameters()}
    rest = (weight for weight in model.parameters() if id(weight) not in own)
    return bool(sharded) and any(isinstance(weight, DTensor) for weight in rest)


def probing_ranks(model: nn.Module, plan: ScoringPlan) -> Ranks:
    """The ranks that may split the prompts of a plan, found out on some of them.

    Ranks that hold parts of the same matrices, such as those of a tensor-parallel group, run every
    prompt together.

    Raises:
        UnsupportedModel: if the same prompts do not get the same answers on every rank.
        RankError: if another rank has failed.
    """
    ranks = current_ranks()
    if ranks.size == 1:
        return ONE
    head = output_head(model)
    order = np.unique(np.linspace(0, len(plan.rows) - 1, TRIED, dtype=int)).tolist()
    prompts = [chain(plan.rows[row], (len(plan.rows[row]) - 1,), row) for row in order]

    def answers(turn: int) -> Tensor:
        """[M, V] to the prompts, taken in another order."""
        taken = [*prompts[turn:], *prompts[:turn]]
        found = ranks.together(lambda: _answers(model, head, taken))
        return found.roll(turn, dims=0)

    with undisturbed(model):
        truth = answers(0)
        first = ranks.broadcast(truth)
        if not ranks.all(deviation(truth, first) < SAME):
            raise UnsupportedModel(
                "ranks must give the same answers to the same prompts, but they do not: their "
                "weights differ, or a sequence is split among them. Train without the callback."
            )
        found = replace(ranks, alike=getattr(model, "_tp_size", None) or 1)
        share, shares = found.share
        if shares == 1 or ranks.all(deviation(answers(share % len(prompts)), truth) < SAME):
            return found
    return replace(ranks, alike=ranks.size)


def _answers(model: nn.Module, head: nn.Module, prompts: Sequence[TokenSequence]) -> Tensor:
    """[M, V'] log-probabilities of some tokens of the vocabulary, as the model computes."""
    _, log_p = next_token_log_probs(model, head, prompts, Route())
    step = -(-log_p.shape[1] // COLUMNS)
    return log_p[:, ::step].cpu()
