"""What `crystalmon cost` reads and prints: rates and costs in words."""

from __future__ import annotations

from crystalmon.monitor.budget import DEFAULT_SHARE
from crystalmon.monitor.cost import Cost, Rate, Unit
from crystalmon.runs.plurals import counted
from crystalmon.runs.shares import LEAST

EXAMPLE_RATES = (1e12, 1e13, 1e14)
"""FLOP/s for which seconds are printed if no rate is given."""

_UNITS: dict[str, Unit] = {"flop/s": "FLOP/s", "flops": "FLOP/s", "tokens/s": "tokens/s"}


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
            f"{_short(cost.training_flops)}FLOP; without a limit probes are "
            f"{cost.share:.2%} of all FLOPs"
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


def _short(value: float) -> str:
    """1234567 → `1.23 M`."""
    for power, unit in zip((18, 15, 12, 9, 6, 3), "EPTGMk", strict=True):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {unit}"
    return f"{value:g} "


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"
