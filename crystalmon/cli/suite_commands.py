"""The commands on suites: `suite list`, `show`, `new` and `validate`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.cli.options import (
    VIEW_WORDS,
    command,
    console,
    load_placed,
    option,
    print_json,
    view_text,
)
from crystalmon.metrics.answers import MAJORITY, MEASURABLE
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.places import counted
from crystalmon.runs.records import json_value
from crystalmon.suites.advice import (
    BUNDLED_WORDINGS,
    few_wordings,
    one_sided,
    shortened,
    trailing_space,
)
from crystalmon.suites.checks import harmless
from crystalmon.suites.draft import draft_suite
from crystalmon.suites.tasks import Task, TaskSuite, list_suites, load_suite

if TYPE_CHECKING:
    from rich.table import Table

    from crystalmon.monitor.suite_check import CheckedTask

SUFFIXES = (".yaml", ".yml")
LISTED = 10
"""Wordings of a task that are shown as hardly answered, at most."""


@command("suite list", "the bundled suites", "json")
def _list(args: argparse.Namespace) -> None:
    suites = [load_suite(name) for name in list_suites()]
    if args.json:
        print_json([_found(suite, ()) | {"tasks": [*map(_size, suite)]} for suite in suites])
    else:
        print("\n".join(map(_describe, suites)))


def _describe(suite: TaskSuite) -> str:
    tasks, prompts = counted(len(suite), "task"), counted(suite.num_prompts, "prompt")
    return f"{suite.name}: {tasks}, {prompts}, hash {suite.hash}"


@command(
    "suite new",
    "draft a suite of your own: one question in a dozen formats",
    "",
    option("file", type=Path, help="to write, .yaml"),
    option("--question", required=True),
    option("--answers", nargs="+", required=True, help="two or more"),
    option("--force", action="store_true", help="replace the file if it is there"),
)
def _new(args: argparse.Namespace) -> None:
    file = args.file
    if file.suffix not in SUFFIXES:
        raise ValueError(f"file must end in {' or '.join(SUFFIXES)}, got {str(file)!r}.")
    text = draft_suite(file, args.question, args.answers)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the folder {file.parent} is not there. Make it first.")
    if file.exists() and not args.force:
        raise FileExistsError(f"{file} is there already. Choose another name, or add --force.")
    with explained(file.parent, "take the suite"):
        write_whole(file, text.encode())
    print(harmless(f"{_describe(load_suite(file))}"))
    print(harmless(f"Edit the prompts in {file}, then see what can be measured:"))
    print(harmless(f"  crystalmon suite validate {shlex.quote(str(file))} --model MODEL"))


@command(
    "suite show",
    "a suite's tasks, or its prompts as they are sent",
    "",
    option("suite"),
    option("--task", help="the prompts and choices of this one"),
    option("--model", help="the prompts as this model gets them; only its tokenizer is loaded"),
    option("--view", type=view_text, help=f"the prompts in this view: raw, {VIEW_WORDS}"),
)
def _show(args: argparse.Namespace) -> None:
    suite = load_suite(args.suite)
    names = [task.name for task in suite]
    if args.task not in (None, *names):
        raise ValueError(f"task must be one of {', '.join(names)}, got {args.task!r}.")
    sent = _sent(suite, args.model, args.view)
    if args.task is None:
        for task in suite:
            shown = ", ".join(task.choice_texts[:8]) + (", …" if len(task.choices) > 8 else "")
            counts = f"{counted(len(task.prompts), 'prompt')}, {len(task.choices)} choices"
            print(harmless(f"{task.name}: {counts}: {shown}"))
            _print_texts(sent.get(task.name, ()))
        return
    _print_texts(sent.get(args.task, suite[args.task].prompts))
    for choice in suite[args.task].choices:
        shown = json.dumps(list(choice.forms), ensure_ascii=False)
        print(harmless(f"{choice.text}: {shown}"))


def _sent(suite: TaskSuite, model: str | None, view: str | None) -> dict[str, list[str]]:
    """By task, the prompts as they are sent; empty if neither a model nor a view was named."""
    from crystalmon.scoring.models import load_tokenizer
    from crystalmon.scoring.plan import render_suite

    if model is None and view is None:
        return {}
    if model is None and view == "chat":
        raise ValueError("view chat needs a model's chat template. Name the model with --model.")
    return render_suite(suite, model and load_tokenizer(model), view or "raw")


def _print_texts(texts: Sequence[str]) -> None:
    for text in texts:
        print(harmless(json.dumps(text, ensure_ascii=False)))


@command(
    "suite validate",
    "check a suite file, and with a model what it can measure",
    "view dtype device json",
    option("suite"),
    option("--model", help="score the suite with it, to tell what can be measured"),
)
def _validate(args: argparse.Namespace) -> None:
    suite = load_suite(args.suite)
    if args.model is not None:
        _validate_with_model(suite, args)
        return
    if args.view != "raw":
        raise ValueError(f"view {args.view!r} needs a model to try it. Name one with --model.")
    warnings = [*trailing_space(suite), *_few(suite), *one_sided(suite)]
    if args.json:
        print_json(_found(suite, warnings) | {"tasks": [_size(task) for task in suite]})
        return
    print(f"{_describe(suite)}: valid")
    _print_warnings(warnings)


def _few(suite: TaskSuite) -> Iterator[str]:
    for task in suite:
        if few := few_wordings(task):
            yield f"{task.name}, {few}. The bundled suites have {BUNDLED_WORDINGS}."


def _found(suite: TaskSuite, warnings: Sequence[str]) -> dict[str, Any]:
    return {"suite": suite.name, "hash": suite.hash, "warnings": warnings}


def _size(task: Task) -> dict[str, Any]:
    return {"name": task.name, "wordings": len(task.prompts), "choices": len(task.choices)}


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(harmless(f"warning: {warning}"))


def _validate_with_model(suite: TaskSuite, args: argparse.Namespace) -> None:
    from rich.markup import escape

    from crystalmon.monitor.probe import Monitor
    from crystalmon.monitor.suite_check import check_suite
    from crystalmon.scoring.plan import describe_merges

    model, tokenizer = load_placed(args.model, args.dtype, args.device)
    monitor = Monitor(model, tokenizer, suite, "initial", view=args.view, progress=not args.json)
    plan, tasks = monitor.plan, check_suite(monitor, tokenizer)
    size = {"rows": len(plan.rows), "tokens": plan.num_unique_tokens}
    merged = [describe_merges(plan.merges)] if plan.merges else []
    warnings = [*trailing_space(suite), *merged, *one_sided(suite)]
    if args.json:
        found = _found(suite, warnings) | {"model": args.model, "view": args.view} | size
        print_json(json_value(found | {"tasks": tasks}))
        return
    print(f"{_describe(suite)}: valid")
    rows, tokens = counted(size["rows"], "row"), counted(size["tokens"], "token")
    print(f"{args.model}: {rows}, {tokens} a probe")
    table = _table(tasks)
    table.title = escape(f"{args.model} · {suite.name} · {args.view}")
    console().print(table)
    for line in _unmeasurable(tasks, args.view, bool(getattr(tokenizer, "chat_template", None))):
        print(harmless(line))
    _print_warnings(warnings)


def _table(tasks: Sequence[CheckedTask]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title_justify="left")
    for head in ("task", "choices", "coverage", "wordings\nanswered", "liquidity\n[nats]"):
        table.add_column(escape(head), justify="left" if head == "task" else "right")
    table.add_column("what can be measured")
    for task in tasks:
        answered = f"{task.measurable} of {task.wordings}"
        measured = f"{task.coverage:.3f}", answered, f"{task.liquidity:.3f}"
        table.add_row(escape(task.name), str(task.choices), *measured, escape(task.verdict))
    return table


def _unmeasurable(tasks: Sequence[CheckedTask], view: str, with_chat: bool) -> Iterator[str]:
    """The wordings that the model hardly answers, what follows them, and what to try."""
    lacking = [task for task in tasks if task.unmeasurable]
    if not lacking:
        return
    yield (
        f"Hardly answered: listed answers under {MEASURABLE:.0%} (their probability, prompt → "
        "likeliest next token)"
    )
    for task in lacking:
        enough = task.measurable >= MAJORITY * task.wordings
        yield f"{task.name}{', which can be measured even so' if enough else ''}:"
        for each in task.unmeasurable[:LISTED]:
            token = f"{json.dumps(each.next_token, ensure_ascii=False)} {each.probability:.0%}"
            yield f"  {each.coverage:6.2%}  {shortened(each.prompt)} → {token}"
        if (rest := len(task.unmeasurable) - LISTED) > 0:
            yield f"  and {rest} more"
    # in another view the plain prompts have been tried already, and the table tells of them
    chat = "--view chat, " if view == "raw" and with_chat else ""
    yield f"Try {chat}another end of the prompt, or further forms of the choices."
