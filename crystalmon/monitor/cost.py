"""What monitoring a run will cost, from the model's configuration and tokenizer alone.

No weights are loaded: parameters are counted on a model without storage. What comes out is
arithmetic, not a measurement; how many FLOP/s a machine achieves is for the caller to say.

Axes: N prompts, P and C prompts and choices of a task, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from torch import Tensor, nn

from crystalmon.monitor.schedule import probe_steps
from crystalmon.scoring.forward import MAX_BATCH_LOGITS, output_head
from crystalmon.scoring.models import empty_model
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.trie import count_tree

EXAMPLE_RATES = (1e12, 1e13, 1e14)
"""FLOP/s at which seconds are named where no rate is given: examples, not any machine's."""

EXAMPLE_OVERHEAD = 0.01
"""The share of a run's time for which it is said how many probes it allows."""

MAX_COUNT = 10**18
"""The largest count or number of seconds, and the inverse of the lowest rate, that is taken: beyond
it floating-point numbers overflow, and nothing is."""

_UNITS = {"": "FLOP/s", "flop/s": "FLOP/s", "flops": "FLOP/s", "tokens/s": "tokens/s"}
_BYTES = {"log_p": 4, "log_choice": 8}  # float32 and float64; see reference.py


@dataclass(frozen=True)
class Rate:
    """How fast a machine runs the model.

    Args:
        value: positive and finite.
        unit: achieved FLOP/s, or tokens/s of a forward pass.
    """

    value: float
    unit: Literal["FLOP/s", "tokens/s"] = "FLOP/s"

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
class Cost:
    """What a run's probes cost.

    Args:
        prompts, rows: N, and the positions whose next-token distribution is needed.
        unique_tokens: tokens of the suite as one prefix tree; `row_tokens`: with every row run
            from its start, as for a model that does not honour the mask of a tree.
        size: the model's.
        probe_flops: of one probe over the unique tokens.
        reference_bytes: on disk; `logits_bytes`: of one batch in float32, twice that on a CPU.
        rate, seconds: of one probe at this rate, None without one.
        steps, every, tokens_per_step, step_seconds: the run, None where not given.
        probes: over the run, None without `steps`.
        training_flops: of the whole run without its probes.
        share: probes' part of all FLOPs; `time_share`: of all time.
        probes_allowed: how many `EXAMPLE_OVERHEAD` of all time has room for.
    """

    prompts: int
    rows: int
    unique_tokens: int
    row_tokens: int
    size: ModelSize
    probe_flops: int
    reference_bytes: int
    logits_bytes: int
    rate: Rate | None = None
    seconds: float | None = None
    steps: int | None = None
    every: int | None = None
    tokens_per_step: int | None = None
    probes: int | None = None
    training_flops: int | None = None
    share: float | None = None
    step_seconds: float | None = None
    time_share: float | None = None
    probes_allowed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def estimate_cost(
    config: Any,
    plan: ScoringPlan,
    *,
    steps: int | None = None,
    every: int | None = None,
    tokens_per_step: int | None = None,
    rate: Rate | None = None,
    step_seconds: float | None = None,
) -> Cost:
    """Estimate what monitoring costs before anything is attached.

    With U tokens and K pairs of a token and an ancestor or itself in the suite's prefix tree, R
    rows, p layer parameters and a = layers × heads × head size:

        probe    = 2·p·U + 4·a·K + 2·D·V·R                              FLOPs
        training = 6·(p + D·V) · tokens_per_step · steps                 FLOPs
        share    = probes · probe / (probes · probe + training), likewise of the time
        on disk  = 4·N·V + 8·Σ P·C bytes, and a header of some 100 bytes a task

    Left out: padding, what several packs begin with alike (the header of a chat template), the
    pairs that a masked kernel computes for nothing, elementwise functions,
    the search for the route at the start, the reference of another model, and the metrics. The
    share of *time* is larger where probes achieve fewer FLOP/s than training does: half-precision
    layers are computed in float32.

    Args:
        config: a transformers configuration, or a `ModelSize`.
        plan: the suite in the model's tokens.
        steps: optimizer steps of the run.
        every: interval between probes; None for `schedule.probe_steps`' own.
        tokens_per_step: over all devices.
        rate: of the machine, for `seconds`.
        step_seconds: of one training step, for `time_share`.

    Raises:
        ValueError: for counts or seconds that are not positive, or too large to multiply; for what
            is said of a run without its `steps`, and for `step_seconds` without `rate`.
        TypeError: for counts or seconds that are no numbers, and if the configuration's model has
            no language-modelling head.
    """
    for name, value in (("steps", steps), ("every", every), ("tokens_per_step", tokens_per_step)):
        _check_count(name, value)
    _check_seconds(step_seconds)
    run = {"every": every, "tokens_per_step": tokens_per_step, "step_seconds": step_seconds}
    _check_company(run, {"steps": steps})
    _check_company({"step_seconds": step_seconds}, {"rate": rate})
    size = config if isinstance(config, ModelSize) else model_size(config)
    tokens, pairs = count_tree(plan.rows)
    probe = forward_flops(size, tokens, pairs, len(plan.rows))
    cells = sum(prompts * choices for prompts, choices in plan.shapes)
    batch = min(len(plan.rows), max(1, MAX_BATCH_LOGITS // size.vocabulary))
    alone = Cost(
        prompts=plan.num_prompts,
        rows=len(plan.rows),
        unique_tokens=tokens,
        row_tokens=plan.num_tokens,
        size=size,
        probe_flops=probe,
        reference_bytes=_BYTES["log_p"] * plan.num_prompts * size.vocabulary
        + _BYTES["log_choice"] * cells,
        logits_bytes=4 * batch * size.vocabulary,
        rate=rate,
        seconds=None if rate is None else _seconds(rate, probe, tokens),
        every=every,
        tokens_per_step=tokens_per_step,
        step_seconds=step_seconds,
    )
    return alone if steps is None else _over_a_run(alone, steps)


def _over_a_run(cost: Cost, steps: int) -> Cost:
    """A probe's cost with what it makes over so many steps."""
    probes = _count_probes(steps, cost.every)
    training = share = time_share = allowed = None
    if cost.tokens_per_step is not None:
        parameters = cost.size.layer_parameters + cost.size.head_parameters
        training = 6 * parameters * cost.tokens_per_step * steps
        share = probes * cost.probe_flops / (probes * cost.probe_flops + training)
    if cost.seconds is not None and cost.step_seconds is not None:
        time = steps * cost.step_seconds
        time_share = probes * cost.seconds / (probes * cost.seconds + time)
        # N·c = s · (N·c + training)
        for_probes = EXAMPLE_OVERHEAD / (1 - EXAMPLE_OVERHEAD) * time
        allowed = math.floor(min(steps + 1, for_probes / cost.seconds))
    return replace(
        cost,
        steps=steps,
        probes=probes,
        training_flops=training,
        share=share,
        time_share=time_share,
        probes_allowed=allowed,
    )


def forward_flops(size: ModelSize, tokens: int, pairs: int, outputs: int) -> int:
    """FLOPs of a forward pass: 2·p·tokens + 4·a·pairs + 2·D·V·outputs.

    Args:
        size: the model's p, a, D and V.
        tokens: that go through the layers.
        pairs: (token, token that it attends to).
        outputs: positions that are projected onto the vocabulary.
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
    used = _used_experts(text)
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


def _used_experts(config: Any) -> float:
    """The share of a mixture's experts that a token is sent to; 1 without one."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((n for name in names if (n := getattr(config, name, None))), None)
    each = getattr(config, "num_experts_per_tok", None)
    return each / experts if experts and each else 1.0


def parse_rate(text: str) -> Rate:
    """A rate as it is written: `3e13`, `3e13FLOP/s` or `2e4tokens/s`.

    Raises:
        ValueError: for anything else, or what is not positive.
    """
    found = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([a-z/]*)\s*", text.lower())
    unit = _UNITS.get(found[2]) if found else None
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    if unit is None or math.isnan(value):
        raise ValueError(
            f"rate must be FLOP/s or tokens/s, got {text!r}. Write e.g. 1e13 or 2e4tokens/s."
        )
    return Rate(value, cast(Literal["FLOP/s", "tokens/s"], unit))


def _count_probes(steps: int, every: int | None) -> int:
    """How many `probe_steps` gives; without a list of them, which no memory may hold."""
    return len(probe_steps(steps)) if every is None else -(-steps // every) + 1


def format_cost(cost: Cost) -> str:
    """A cost in a few lines of words and numbers."""
    size = cost.size
    lines = [
        f"suite: {cost.prompts} prompts, {cost.rows} rows, {cost.unique_tokens} unique tokens "
        f"({cost.row_tokens} with every row from its start)",
        f"model: {_short(size.layer_parameters)} layer parameters, output {size.hidden} × "
        f"{size.vocabulary}",
        f"a probe: {_short(cost.probe_flops)}FLOP, {_times(cost)}",
        f"on disk: the reference, {_mebibytes(cost.reference_bytes)}",
        f"memory: the reference, a forward pass without gradients, and a batch of logits of "
        f"{_mebibytes(cost.logits_bytes)} (CPU: {_mebibytes(2 * cost.logits_bytes)}), a few times",
    ]
    if cost.probes is not None:
        probing = _short(cost.probes * cost.probe_flops)
        lines.append(f"a run of {cost.steps} steps: {cost.probes} probes, {probing}FLOP")
    if cost.share is not None and cost.training_flops is not None:
        lines.append(
            f"its training: {cost.tokens_per_step} tokens a step, "
            f"{_short(cost.training_flops)}FLOP; probes are {cost.share:.2%} of all FLOPs"
        )
    if cost.time_share is not None and cost.probes_allowed is not None:
        allowed = cost.probes_allowed
        fit = f"has time for at most {allowed}" if allowed else "has time for the first alone"
        lines.append(
            f"its time: {cost.step_seconds:g} s a step; probes are {cost.time_share:.2%} of all "
            f"time; max_overhead={EXAMPLE_OVERHEAD:g} {fit}"
        )
    return "\n".join(lines)


def _times(cost: Cost) -> str:
    if cost.rate is not None and cost.seconds is not None:
        return f"{cost.seconds:.3g} s at {cost.rate.value:g} {cost.rate.unit}"
    times = (f"{cost.probe_flops / rate:.2g} s at {rate:g}" for rate in EXAMPLE_RATES)
    return f"{', '.join(times)} achieved FLOP/s"


def _seconds(rate: Rate, flops: int, tokens: int) -> float:
    return (flops if rate.unit == "FLOP/s" else tokens) / rate.value


def _check_count(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}. Give a whole number.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}. Give a positive number.")
    if value > MAX_COUNT:
        raise ValueError(f"{name} must be at most {MAX_COUNT:g}, got more. Give less.")


def _check_company(given: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Refuse what means nothing alone, instead of leaving it out in silence."""
    for name, value in given.items():
        if value is not None:
            for other, there in needed.items():
                if there is None:
                    raise ValueError(
                        f"{name} must come with {other}, got {value!r} alone. Give both."
                    )


def _check_seconds(step_seconds: Any) -> None:
    if step_seconds is None:
        return
    if isinstance(step_seconds, bool) or not isinstance(step_seconds, int | float):
        raise TypeError(f"step_seconds must be a number, got {step_seconds!r}. Give seconds.")
    if not 0 < step_seconds <= MAX_COUNT:
        raise ValueError(
            f"step_seconds must be positive and finite, got {step_seconds!r}. Give what a "
            "training step takes."
        )


def _short(value: float) -> str:
    """1234567 → `1.23 M`."""
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:g} "


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"
