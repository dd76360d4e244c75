"""What monitoring a run will cost, from the model's configuration and tokenizer alone.

No weights are loaded: parameters are counted on a model without storage. The result is arithmetic,
not a measurement; the caller says how many FLOP/s the machine achieves.

Axes: N prompts, P and C prompts and choices of a task, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from torch import Tensor, nn

from crystalmon.monitor.budget import DEFAULT_SHARE, check_share
from crystalmon.monitor.schedule import check_every, probe_steps
from crystalmon.runs.json_values import Stored
from crystalmon.scoring.forward import output_head
from crystalmon.scoring.memory import logits_bytes
from crystalmon.scoring.models import empty_model
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.trie import count_tree
from crystalmon.suites.checks import is_number, is_whole

BASE_METRICS = 6
"""That a reference keeps of each prompt; see `metrics.vocabulary.vocabulary_observables`."""

MAX_COUNT = 10**18
"""The largest count or number of seconds, so that products do not overflow."""

Unit = Literal["FLOP/s", "tokens/s"]


@dataclass(frozen=True)
class Rate:
    """How fast a machine runs the model.

    Args:
        value: positive and finite.
        unit: achieved FLOP/s, or tokens/s of a forward pass.
    """

    value: float
    unit: Unit = "FLOP/s"

    def __post_init__(self) -> None:
        if not 1 / MAX_COUNT <= self.value < math.inf:
            raise ValueError(
                f"rate must be positive and finite, got {self.value!r}. "
                "Give what the machine achieves, e.g. 1e13 or 2e4tokens/s."
            )


@dataclass(frozen=True)
class ModelSize:
    """What a model multiplies by.

    Args:
        layer_parameters: those used for each token, without embeddings and output projection; of
            a mixture of experts, the experts that a token is sent to.
        hidden, vocabulary: D and V of the output projection.
        attention_width: layers × heads × head size.
    """

    layer_parameters: int
    hidden: int
    vocabulary: int
    attention_width: int

    @property
    def head_parameters(self) -> int:
        """D · V."""
        return self.hidden * self.vocabulary


@dataclass(frozen=True)
class Cost(Stored):
    """What a run's probes cost.

    Args:
        prompts, rows: N, and the positions whose next-token distribution is needed.
        unique_tokens: tokens of the suite as one prefix tree; `row_tokens`: with every row run
            from its start, as for a model that does not honour the mask of a tree.
        size: the model's.
        probe_flops: of one probe over the unique tokens.
        reference_bytes: on disk; `logits_bytes`: of one batch on a GPU;
            `logits_bytes_on_cpu`: there.
        rate, seconds: of one probe at this rate, None without one.
        steps, every, tokens_per_step, step_seconds: the run, None where not given.
        probes: over the run, None without `steps`.
        training_flops: of the whole run without its probes.
        share: probes' part of all FLOPs; `time_share`: of all time.
        max_overhead: the share of all time that the probes may take.
        probes_allowed: how many of all prompts that has room for.
    """

    prompts: int
    rows: int
    unique_tokens: int
    row_tokens: int
    size: ModelSize
    probe_flops: int
    reference_bytes: int
    logits_bytes: int
    logits_bytes_on_cpu: int
    rate: Rate | None = None
    seconds: float | None = None
    steps: int | None = None
    every: float | None = None
    tokens_per_step: int | None = None
    probes: int | None = None
    training_flops: int | None = None
    share: float | None = None
    step_seconds: float | None = None
    time_share: float | None = None
    max_overhead: float = DEFAULT_SHARE
    probes_allowed: int | None = None


def estimate_cost(
    config: Any,
    plan: ScoringPlan,
    *,
    steps: int | None = None,
    every: float | None = None,
    tokens_per_step: int | None = None,
    rate: Rate | None = None,
    step_seconds: float | None = None,
    max_overhead: float | None = DEFAULT_SHARE,
) -> Cost:
    """Estimate what monitoring costs before anything is attached.

    With U tokens and K pairs of a token and an ancestor or itself in the suite's prefix tree, R
    rows, p layer parameters and a = layers × heads × head size:

        probe    = 2·p·U + 4·a·K + 2·D·V·R                              FLOPs
        training = 6·(p + D·V) · tokens_per_step · steps                 FLOPs
        share    = probes · probe / (probes · probe + training), likewise of the time
        on disk  = 4·N·V + 8·Σ P·C + 48·N bytes, and a header of some 100 bytes a task

    Left out: padding, what several packs begin with alike (the header of a chat template), the
    pairs that a masked kernel computes for nothing, elementwise functions, the search for the
    route at the start, the reference of another model, and the metrics. The share of *time* is
    larger where probes run at fewer FLOP/s, as half-precision layers do in float32.

    Args:
        config: a transformers configuration, or a `ModelSize`.
        plan: the suite in the model's tokens.
        steps: optimizer steps of the run; needed by all that follow but `rate`.
        every: see `schedule.check_every`; None for `schedule.probe_steps`' own interval.
        tokens_per_step: over all devices, for `share`.
        rate: of the machine, for `seconds`.
        step_seconds: of one training step, for `time_share`; needs `rate`.
        max_overhead: the callback's, for `probes_allowed`; None or 1 for no limit.

    Raises:
        ValueError: for a number that is not positive or too large, or lacks another that it needs.
        TypeError: for what is no number, and for a model without a language-modelling head.
    """
    steps, every = _count("steps", steps), check_every(every)
    tokens_per_step = _count("tokens_per_step", tokens_per_step)
    step_seconds = _seconds("step_seconds", step_seconds)
    run = {"every": every, "tokens_per_step": tokens_per_step, "step_seconds": step_seconds}
    for name, value in run.items():
        _needs(name, value, "steps", steps)
    _needs("step_seconds", step_seconds, "rate", rate)
    size = config if isinstance(config, ModelSize) else model_size(config)
    limit = check_share(max_overhead) or 1.0
    alone = replace(_of_a_probe(size, plan, rate), **run, max_overhead=limit)
    return alone if steps is None else _over_a_run(alone, steps)


def _of_a_probe(size: ModelSize, plan: ScoringPlan, rate: Rate | None) -> Cost:
    """The cost of a probe alone."""
    tokens, pairs = count_tree(plan.rows)
    rows, prompts = len(plan.rows), plan.num_prompts
    probe = forward_flops(size, tokens, pairs, rows)
    work = tokens if rate is not None and rate.unit == "tokens/s" else probe
    return Cost(
        prompts=prompts,
        rows=rows,
        unique_tokens=tokens,
        row_tokens=plan.num_tokens,
        size=size,
        probe_flops=probe,
        # log-probabilities of the vocabulary in float32, of the choices in float64, as the metrics
        reference_bytes=4 * prompts * size.vocabulary
        + 8 * (sum(p * c for p, c in plan.shapes) + BASE_METRICS * prompts),
        logits_bytes=logits_bytes("cuda", size.vocabulary, rows),
        logits_bytes_on_cpu=logits_bytes("cpu", size.vocabulary, rows),
        rate=rate,
        seconds=None if rate is None else work / rate.value,
    )


def _over_a_run(cost: Cost, steps: int) -> Cost:
    """The cost of a probe, with that of all probes over so many steps."""
    probes = len(probe_steps(steps, cost.every))
    found: dict[str, Any] = {"steps": steps, "probes": probes}
    if cost.tokens_per_step is not None:
        parameters = cost.size.layer_parameters + cost.size.head_parameters
        training = 6 * parameters * cost.tokens_per_step * steps
        probing = probes * cost.probe_flops
        found |= {"training_flops": training, "share": probing / (probing + training)}
    if cost.seconds is not None and cost.step_seconds is not None:
        time, probing = steps * cost.step_seconds, probes * cost.seconds
        # n probes of c seconds are a share s of all time: n·c = s · (n·c + time)
        spare, limit = 1 - cost.max_overhead, cost.max_overhead
        affordable = limit / spare * time / cost.seconds if spare else math.inf
        allowed = math.floor(min(steps + 1, affordable))
        found |= {"time_share": probing / (probing + time), "probes_allowed": allowed}
    return replace(cost, **found)


def forward_flops(size: ModelSize, tokens: int, pairs: int, outputs: int) -> int:
    """FLOPs of a forward pass: 2·p·tokens + 4·a·pairs + 2·D·V·outputs.

    Args:
        size: the model's p, a, D and V.
        tokens: that go through the layers.
        pairs: (token, token that it attends to).
        outputs: positions that are projected onto the vocabulary.

    >>> size = ModelSize(layer_parameters=1000, hidden=10, vocabulary=50, attention_width=20)
    >>> forward_flops(size, tokens=3, pairs=6, outputs=2)
    8480
    """
    layers = 2 * size.layer_parameters * tokens
    attention = 4 * size.attention_width * pairs
    return layers + attention + 2 * size.head_parameters * outputs


def model_size(config: Any) -> ModelSize:
    """Count the parameters of a configuration's model, without storage for them.

    Raises:
        TypeError: if it has no language-modelling head.
    """
    model = empty_model(config)
    head = cast(Tensor, output_head(model).weight)
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    apart = {id(head), *(id(module.weight) for module in embeddings)}
    text = config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((n for name in names if (n := getattr(text, name, None))), None)
    sent_to = getattr(text, "num_experts_per_tok", None)
    used = sent_to / experts if experts and sent_to else 1.0
    parameters = sum(
        parameter.numel() * (used if ".experts." in name else 1)
        for name, parameter in model.named_parameters()
        if id(parameter) not in apart
    )
    heads = getattr(text, "num_attention_heads", 0) or 0
    width = (getattr(text, "head_dim", None) or text.hidden_size // heads) if heads else 0
    return ModelSize(
        layer_parameters=round(parameters),
        hidden=head.shape[1],
        vocabulary=head.shape[0],
        attention_width=text.num_hidden_layers * heads * width,
    )


def _needs(name: str, value: float | None, other: str, needed: object) -> None:
    if value is not None and needed is None:
        raise ValueError(f"{name} must come with {other}, got {value!r} alone. Give both.")


def _count(name: str, value: Any) -> int | None:
    if value is not None and not is_whole(value):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    return None if value is None else int(_bounded(name, value))  # NumPy's integers overflow


def _seconds(name: str, value: Any) -> float | None:
    if value is not None and not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return None if value is None else float(_bounded(name, value))


def _bounded(name: str, value: Any) -> Any:
    if not 0 < value <= MAX_COUNT:
        raise ValueError(f"{name} must be positive, at most {MAX_COUNT:g}, got {value!r:.20}.")
    return value
