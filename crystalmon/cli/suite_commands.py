"""The commands on suites: `suite list`, `new`, `import`, `show` and `validate`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.cli.options import (
    VIEW_WORDS,
    check_output,
    command,
    console,
    load_placed,
    option,
    print_json,
    view_text,
)
from crystalmon.metrics.answers import MAJORITY, MEASURABLE
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.json_values import json_value
from crystalmon.runs.plurals import counted
from crystalmon.suites.advice import (
    BUNDLED_WORDINGS,
    few_wordings,
    lists_answers,
    one_sided,
    shortened,
    trailing_space,
)
from crystalmon.suites.checks import harmless
from crystalmon.suites.draft import draft_suite
from crystalmon.suites.imported import Remark, import_suite, suite_text
from crystalmon.suites.tasks import Task, TaskSuite, list_suites, load_suite

if TYPE_CHECKING:
    from rich.table import Table

    from crystalmon.monitor.suite_check import CheckedTask

SUFFIXES = (".yaml", ".yml")
LISTED = 10
"""Wordings of a task that are shown as hardly answered, and rows that are not taken, at most."""


@command("suite list", "the bundled suites", "json")
def _list(args: argparse.Namespace) -> None:
    suites = [load_suite(name) for name in list_suites()]
    if args.json:
        print_json([_found(suite, ()) for suite in suites])
    else:
        print("\n".join(map(_describe, suites)))


def _describe(suite: TaskSuite) -> str:
    tasks, prompts = counted(len(suite), "task"), counted(suite.num_prompts, "prompt")
    return f"{suite.name}: {tasks}, {prompts}, hash {suite.hash}"


@command(
    "suite new",
    "draft a suite of your own: each question in a dozen formats",
    "",
    option("file", type=Path, help="the file to write, .yaml"),
    option("--question", action="append", required=True, help="the question; once for each task"),
    option("--answers", nargs="+", required=True, help="two or more answers"),
    option("--force", action="store_true", help="replace the file if it is there"),
)
def _new(args: argparse.Namespace) -> None:
    file = args.file
    check_output(file, SUFFIXES, force=True)
    if file.exists() and not args.force:
        raise FileExistsError(
            f"{file} is there already. Give all questions at once, each with a --question of its "
            "own, and --force to replace the file; or choose another name."
        )
    _write(file, draft_suite(file, args.question, args.answers))
    print(harmless(_describe(load_suite(file))))
    _print_warnings([*lists_answers(args.question, [answer.strip() for answer in args.answers])])
    _print_next(f"Edit the prompts in {file}, then see what can be measured:", file)


def _write(file: Path, text: str) -> None:
    with explained(file.parent, "take the suite"):
        write_whole(file, text.encode())


def _print_next(words: str, file: Path) -> None:
    print(harmless(words))
    print(harmless(f"  crystalmon suite validate {shlex.quote(str(file))} --model MODEL"))


@command(
    "suite import",
    "make a suite of a data set: its questions and their answers",
    "json",
    option("file", type=Path, help="JSON or JSON lines; a row has a prompt and its targets"),
    option("-o", "--output", type=Path, required=True, help="the file to write, .yaml"),
    option("--force", action="store_true", help="replace the file if it is there"),
)
def _import(args: argparse.Namespace) -> None:
    file = args.output
    check_output(file, SUFFIXES, args.force)
    suite, remarks = import_suite(args.file, file.stem)
    _write(file, suite_text(suite, file, args.file))
    suite = load_suite(file)
    warnings = [*trailing_space(suite), *one_sided(suite)]
    if args.json:
        found = _found(suite, [*warnings, *_few(suite)])
        print_json(json_value(found | {"remarks": remarks}))
        return
    print(harmless(_describe(suite)))
    for task in suite:
        wordings = few_wordings(task) or counted(len(task.prompts), "wording")
        print(harmless(f"  {task.name}: {len(task.choices)} choices, {wordings}"))
    _print_remarks("left out", [each for each in remarks if not each.taken])
    _print_remarks("taken in part", [each for each in remarks if each.taken])
    _print_warnings(warnings)
    lone = any(len(task.prompts) == 1 for task in suite)
    words = "With one wording there is no liquidity, order or seed: add others." if lone else ""
    _print_next(f"{words} See what can be measured:".strip(), file)


def _print_remarks(head: str, remarks: Sequence[Remark]) -> None:
    if remarks:
        print(f"{head}:")
    for each in remarks[:LISTED]:
        print(harmless(f"  row {each.row}: {each.why}"))
    if (rest := len(remarks) - LISTED) > 0:
        print(f"  and {rest} more")


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
        print_json(_found(suite, warnings))
        return
    print(f"{_describe(suite)}: valid")
    _print_warnings(warnings)


def _few(suite: TaskSuite) -> Iterator[str]:
    for task in suite:
        if few := few_wordings(task):
            yield f"{task.name}, {few}. The bundled suites have {BUNDLED_WORDINGS}."


def _found(suite: TaskSuite, warnings: Sequence[str]) -> dict[str, Any]:
    tasks = [*map(_size, suite)]
    return {"suite": suite.name, "hash": suite.hash, "warnings": warnings, "tasks": tasks}


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
