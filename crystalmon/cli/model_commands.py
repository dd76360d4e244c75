"""The commands on a model: `probe`, `cost` and `cache`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from crystalmon.cli.options import (
    VIEW_WORDS,
    command,
    console,
    load_placed,
    option,
    print_json,
    view_text,
)
from crystalmon.metrics.answers import answer_distributions
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import BRIEF, BY_KEY, NOT_MEASURABLE
from crystalmon.metrics.measurement import measure_task
from crystalmon.monitor.budget import DEFAULT_SHARE
from crystalmon.phases.in_words import tasks_by_phase
from crystalmon.runs.files import RUN_FILE
from crystalmon.runs.find_reference import named_reference
from crystalmon.runs.notebook import number
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.reference import Reference, load_reference
from crystalmon.runs.wordings import quoted_suite
from crystalmon.suites.tasks import TaskSuite, list_suites, load_suite

if TYPE_CHECKING:
    from rich.table import Table

OWN = tuple(BY_KEY[key] for key in ("coverage", "entropy", "entropy_mixture", "liquidity"))
"""What a model's answers tell without a base to compare them with."""
OF_SEED = tuple(metric for metric in BRIEF if metric.held or metric.brief_if_held)
COMPARED = tuple(metric for metric in BRIEF if metric not in (*OWN, *OF_SEED))


@command(
    "probe",
    "score one model and print its table",
    "model dtype device json",
    option("--base", default="auto", help="compare with this run, reference folder or model"),
    option("--suite", help="a bundled suite or a YAML file; default: the run's, or randomness"),
    option("--view", type=view_text, help=f"default: the run's, or raw; {VIEW_WORDS}"),
)
def _probe(args: argparse.Namespace) -> None:
    from rich.markup import escape

    from crystalmon.monitor.probe import Monitor
    from crystalmon.report.caveats import unmeasurable
    from crystalmon.scoring.models import adapter_layers

    suite, view = _suite_and_view(args)
    model, tokenizer = load_placed(args.model, args.dtype, args.device)
    monitor = Monitor(model, tokenizer, suite, args.base, view=view, progress=not args.json)
    record = monitor.probe(unchanged=True)
    if args.json:
        print_json(record.to_json())
        return
    seconds = (monitor.is_own_base and monitor.seconds_a_probe) or record.seconds
    told = "known from the cache" if monitor.remembered else f"probe took {seconds:.1f} s"
    compared = not monitor.is_own_base or bool(adapter_layers(model))
    table = _table(record, suite, monitor.reference if compared else None, told)
    table.title = escape(f"{args.model} · {suite.name} · {view}")
    shown = console()
    shown.print(table)
    if compared:
        shown.print(escape(f"the suite is {record.phase}; tasks: {tasks_by_phase(record)}"))
    unknown = [name for name, task in record.tasks.items() if task.phase == NOT_MEASURABLE]
    lacking = [] if monitor.is_own_base else monitor.unanswered
    if warning := unmeasurable(unknown, lacking, len(record.tasks), "--base"):
        shown.print(escape(warning))


def _suite_and_view(args: argparse.Namespace) -> tuple[TaskSuite, str]:
    """As typed; what is not, as in the run that `--base` names, else the defaults.

    Raises:
        ValueError: if that run has a suite of its own and does not quote all of it.
    """
    stored = named_reference(args.base)
    known = None if stored is None else load_reference(stored).info
    asked = args.suite or (known.suite if known else "randomness")
    if args.suite is None and stored is not None and (stored.parent / RUN_FILE).is_file():
        asked = quoted_suite(read_run(stored.parent, stream=True).info) or asked
    if isinstance(asked, str) and args.suite is None and asked not in list_suites():
        raise ValueError(f"the run in {args.base} has a suite of its own: add --suite FILE.")
    return load_suite(asked), args.view or (known.view if known else "raw")


def _table(record: ProbeRecord, suite: TaskSuite, base: Reference | None, told: str) -> Table:
    """A row per task, and last the suite's means, with what is told of the probe; of a base too."""
    from rich.markup import escape
    from rich.table import Table

    metrics = (*OWN, *COMPARED) if base else OWN
    table = Table(title_justify="left")
    table.add_column("task")
    table.add_column("choices", justify="right")
    for metric in metrics:
        unit = f"\n[{metric.unit}]" if metric.unit else ""
        table.add_column(escape(metric.label + unit), justify="right")
    table.add_column("pooled answers")
    for task in suite:
        found = record.tasks[task.name]
        ranked = sorted(zip(found.q.mean(axis=0), task.choice_texts, strict=True), reverse=True)
        top = ", ".join(f"{text} {share:.0%}" for share, text in ranked[:3])
        cells = [number(found.metrics[metric.key]) for metric in metrics]
        table.add_row(escape(task.name), str(len(task.choices)), *cells, escape(top))
    table.add_section()
    means = [record.metrics.get(metric.key) for metric in metrics]
    cells = ["" if mean is None else f"{mean:.3f}" for mean in means]
    table.add_row("mean", "", *cells, told)
    if base is not None:
        rows = {"base": base.log_choice}
        rows |= {"base, plain prompts": base.compared} if base.plain else {}
        for name, tables in rows.items():
            own = _own_means(tables)
            cells = [f"{own[metric.key]:.3f}" if metric in OWN else "" for metric in metrics]
            table.add_row(name, "", *cells, f"in {len(base.plain)} tasks" if "," in name else "")
    return table


def _own_means(log_choice: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The means over tasks of what a base's answers tell by themselves."""
    found = []
    for table in log_choice.values():
        q, coverage = answer_distributions(table)
        weights = uniform_weights(len(q))[None]
        found.append(measure_task(q, q, {"coverage": coverage}, weights).metrics)
    return {metric.key: float(np.mean([own[metric.key] for own in found])) for metric in OWN}


@command(
    "cost",
    "what monitoring will cost, without loading weights",
    "model suite view json",
    option("--steps", type=int, help="optimizer steps of the run"),
    option("--every", type=float, help="steps, or a share of the run; default: the callback's"),
    option("--tokens-per-step", type=int, help="tokens of a training step, over all devices"),
    option("--rate", help="speed of the machine: 1e13 (FLOP/s) or 2e4tokens/s"),
    option("--step-seconds", type=float, help="seconds of a training step; needs --rate"),
    option(
        "--max-overhead",
        type=float,
        default=DEFAULT_SHARE,
        help="share of the time that monitoring may take; default: %(default)s",
    ),
)
def _cost(args: argparse.Namespace) -> None:
    from crystalmon.cli.cost_words import format_cost, parse_rate
    from crystalmon.monitor.cost import estimate_cost
    from crystalmon.scoring.models import load_config, load_tokenizer
    from crystalmon.scoring.plan import build_plan

    if args.step_seconds is not None and args.rate is None:
        raise ValueError("--step-seconds needs --rate, which tells how long a probe takes.")
    rate = None if args.rate is None else parse_rate(args.rate)
    suite, config = load_suite(args.suite), load_config(args.model)
    cost = estimate_cost(
        config,
        build_plan(suite, load_tokenizer(args.model), args.view),
        steps=args.steps,
        every=args.every,
        tokens_per_step=args.tokens_per_step,
        rate=rate,
        step_seconds=args.step_seconds,
        max_overhead=args.max_overhead,
    )
    print_json(cost.to_json()) if args.json else print(format_cost(cost))


@command(
    "cache",
    "list the bases that need not be scored again",
    "json",
    option("--clear", action="store_true", help="remove them; run folders keep their own copies"),
)
def _cache(args: argparse.Namespace) -> None:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from crystalmon.runs.base_cache import cache_folder, cached_bases, clear_cache

    try:
        place = cache_folder()
    except RuntimeError as error:
        raise ValueError(f"CRYSTALMON_CACHE must name a folder: {error}") from error
    if place.exists() and not place.is_dir():
        raise ValueError(
            f"the cache must be a folder, and {place} is a file. Set CRYSTALMON_CACHE."
        )
    if args.clear:
        freed = clear_cache()
        told = f"{place} is empty; {decimal(freed)} freed (run folders keep their copies)"
        print_json({"freed_bytes": freed}) if args.json else print(told)
        return
    bases = cached_bases()
    if args.json:
        print_json(
            [
                {"model": base.info.model, "suite": base.info.suite, "view": base.info.view}
                | {"bytes": base.size, "last_used": base.used}
                for base in bases
            ]
        )
        return
    total = decimal(sum(base.size for base in bases))
    table = Table("model", "suite", "view", "size", "last used", title_justify="left")
    table.title = escape(f"{cache_folder()} · {total}")
    for base in bases:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(base.used))
        info = base.info
        row = (info.model or "a model without a name", info.suite, info.view, decimal(base.size))
        table.add_row(*map(escape, row), used)
    console().print(table)
