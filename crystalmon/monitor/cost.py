"""What monitoring a run will cost, from the model's configuration and tokenizer alone.

No weights are loaded: parameters are counted on a model without storage. The result is arithmetic,
not a measurement; the caller says how many FLOP/s the machine achieves.

Axes: N prompts, P and C prompts and choices of a task, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from torch import Tensor, nn

from crystalmon.monitor.budget import DEFAULT_SHARE, check_share
from crystalmon.monitor.schedule import check_every, probe_steps
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import Stored
from crystalmon.runs.shares import LEAST
from crystalmon.scoring.forward import output_head
from crystalmon.scoring.memory import logits_bytes
from crystalmon.scoring.models import empty_model
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.trie import count_tree
from crystalmon.suites.checks import is_number, is_whole

EXAMPLE_RATES = (1e12, 1e13, 1e14)
"""FLOP/s for which seconds are printed if no rate is given."""

BASE_METRICS = 6
"""That a reference keeps of each prompt; see `metrics.vocabulary.vocabulary_observables`."""

MAX_COUNT = 10**18
"""The largest count or number of seconds, so that products do not overflow."""

Unit = Literal["FLOP/s", "tokens/s"]
_UNITS: dict[str, Unit] = {"flop/s": "FLOP/s", "flops": "FLOP/s", "tokens/s": "tokens/s"}


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
    max_overhead: float | None = None,
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
        max_overhead: the callback's, for `probes_allowed`; None for its default.

    Raises:
        ValueError: for a number that is not positive or too large, or lacks another that it needs.
        TypeError: for what is no number, and for a model without a language-modelling head.
    """
    run = {"every": every, "tokens_per_step": tokens_per_step, "step_seconds": step_seconds}
    steps = _positive("steps", steps)
    run = _check_run(run, steps, rate)
    size = config if isinstance(config, ModelSize) else model_size(config)
    limit = check_share(DEFAULT_SHARE if max_overhead is None else max_overhead)
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


def parse_rate(text: str) -> Rate:
    """A rate as it is written: `3e13`, `3e13FLOP/s` or `2e4tokens/s`.

    Raises:
        ValueError: for anything else, or what is not positive.
    """
    number = text.strip().lower()
    suffix = next((suffix for suffix in _UNITS if number.endswith(suffix)), "")
    try:
        value = float(number.removesuffix(suffix))
    except ValueError as error:
        raise ValueError(
            f"rate must be FLOP/s or tokens/s, got {text!r}. Write e.g. 1e13 or 2e4tokens/s."
        ) from error
    return Rate(value, _UNITS.get(suffix, "FLOP/s"))


def format_cost(cost: Cost) -> str:
    """A cost in a few lines of words and numbers."""
    if cost.rate is not None and cost.seconds is not None:
        times = f"{cost.seconds:.3g} s at {cost.rate.value:g} {cost.rate.unit}"
    else:
        each = (f"{cost.probe_flops / rate:.2g} s at {rate:g}" for rate in EXAMPLE_RATES)
        times = f"{', '.join(each)} achieved FLOP/s"
    size, logits = cost.size, cost.logits_bytes
    lines = [
        f"suite: {counted(cost.prompts, 'prompt')}, {counted(cost.rows, 'row')}, "
        f"{cost.unique_tokens} unique tokens ({cost.row_tokens} with every row from its start)",
        f"model: {_short(size.layer_parameters)} layer parameters, output {size.hidden} × "
        f"{size.vocabulary}",
        f"a probe: {_short(cost.probe_flops)}FLOP, {times}",
        f"on disk: the reference, {_mebibytes(cost.reference_bytes)}",
        "memory: the reference, a forward pass without gradients, and a batch of logits of "
        f"{_mebibytes(logits)} (CPU: {_mebibytes(cost.logits_bytes_on_cpu)}), a few times",
    ]
    if cost.steps is not None and cost.probes is not None:
        probing = _short(cost.probes * cost.probe_flops)
        run, probes = counted(cost.steps, "step"), counted(cost.probes, "probe")
        lines.append(f"a run of {run}: {probes}, {probing}FLOP")
    if cost.share is not None and cost.training_flops is not None:
        lines.append(
            f"its training: {cost.tokens_per_step} tokens a step, "
            f"{_short(cost.training_flops)}FLOP; probes are {cost.share:.2%} of all FLOPs"
        )
    if cost.time_share is not None and cost.probes_allowed is not None:
        default = ", the default," if cost.max_overhead == DEFAULT_SHARE else ""
        lines.append(
            f"its time: {cost.step_seconds:g} s a step; without a limit probes are "
            f"{cost.time_share:.2%} of all time; max_overhead={cost.max_overhead:g}{default} has "
            f"time for {cost.probes_allowed} such, or more of fewer prompts"
        )
        if cost.probes_allowed <= LEAST:
            lines.append(
                f"a run gets its base, scored once and then known, and {LEAST} small probes all "
                "the same: monitoring can take more than that limit"
            )
    return "\n".join(lines)


def _check_run(
    run: Mapping[str, float | None], steps: int | None, rate: Rate | None
) -> dict[str, Any]:
    checked = {
        name: check_every(value) if name == "every" else _positive(name, value)
        for name, value in run.items()
    }
    needs = [*((name, "steps", steps) for name in run), ("step_seconds", "rate", rate)]
    for name, other, needed in needs:
        if run[name] is not None and needed is None:
            raise ValueError(
                f"{name} must come with {other}, got {checked[name]!r} alone. Give both."
            )
    return checked


def _positive(name: str, value: Any) -> Any:
    seconds = name == "step_seconds"
    if value is None:
        return None
    if not (is_number(value) if seconds else is_whole(value)):
        raise TypeError(f"{name} must be {'a number' if seconds else 'an integer'}, got {value!r}.")
    if not 0 < value <= MAX_COUNT:
        raise ValueError(f"{name} must be positive, at most {MAX_COUNT:g}, got {value!r:.20}.")
    return float(value) if seconds else int(value)  # NumPy's integers overflow


def _short(value: float) -> str:
    """1234567 → `1.23 M`."""
    for power, unit in zip((18, 15, 12, 9, 6, 3), "EPTGMk", strict=True):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {unit}"
    return f"{value:g} "


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"
