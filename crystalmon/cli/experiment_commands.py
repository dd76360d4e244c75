"""The commands of the essay's experiments: on a model, on runs, on results."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon import experiments
from crystalmon.cli.options import command, load_placed, option, print_json
from crystalmon.experiments.common.command import run_alone, write_display
from crystalmon.runs.results import Result, read_result, write_result

if TYPE_CHECKING:
    from crystalmon.experiments.common.experiment import Experiment, Shown
    from crystalmon.experiments.common.parts import Parts
    from crystalmon.experiments.common.subject import Subject

ON_MODEL = "model dtype device results json"


@command(
    "landscape",
    "free energy against a base, by instruction",
    ON_MODEL,
    option("--base", required=True, help="the model that it was trained from"),
    option("--together", action="store_true", help="hold both models at once"),
    option("--tokens", type=int, help="longest response, in tokens"),
)
def _landscape(args: argparse.Namespace) -> None:
    from crystalmon.experiments.landscape.landscape_pair import measure_landscape
    from crystalmon.scoring.models import load_config

    experiment: Any = _experiment(args)
    load_config(args.base)  # a wrong name is told before the other model is measured
    _show_from_model(
        args,
        experiment,
        _given(args, experiment) | {"together": args.together, "base": _mark(args.base)},
        lambda parts: measure_landscape(
            lambda: _load(args, args.model),
            lambda: _load(args, args.base),
            experiment,
            args.output,
            parts,
            together=args.together,
        ),
    )


def _measure(args: argparse.Namespace) -> None:
    experiment = _experiment(args)
    _show_from_model(
        args,
        experiment,
        _given(args, experiment),
        lambda parts: experiment.measure(_load(args, args.model), args.output, parts),
    )


command(
    "context",
    "compliance as adversarial context grows",
    ON_MODEL,
    option("--levels", type=int, help="number of adversarial shares to test, at least 8"),
    option("--count", type=int, help="number of instructions; default: 10"),
)(_measure)
command(
    "drift",
    "how an instruction's hold fades along a response",
    ON_MODEL,
    option("--tokens", type=int, help="tokens to generate"),
)(_measure)
command(
    "temperature",
    "answers at every sampling temperature",
    f"{ON_MODEL} suite view",
    option("--weight", type=float, help="λ of the objective; default: 1"),
)(_measure)


@command(
    "sharpness",
    "transitions of runs against their KL penalty",
    "runs results json",
    option("--beta", type=float, nargs="+", help="each run's KL penalty, where run.json has none"),
)
def _sharpness(args: argparse.Namespace) -> None:
    shown = experiments.Sharpness
    _show_from_files(args, shown, lambda: shown.measure(args.run_folder, args.beta))


@command(
    "predictions",
    "the essay's predictions on results",
    "json",
    option("output", metavar="folder", type=Path, help="the folder of the experiments' results"),
)
def _predictions(args: argparse.Namespace) -> None:
    shown = experiments.Predictions
    _show_from_files(args, shown, lambda: shown.measure(args.output))


def _experiment(args: argparse.Namespace) -> Experiment:
    """The experiment that the command is named after, with the options that were given."""
    kind = getattr(experiments, experiments.ON_MODELS[args.command])
    given = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def _given(args: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    """What determines the result: a command with other options does not go on with its parts."""
    return {"settings": experiment.settings, "model": _mark(args.model), "dtype": args.dtype}


def _mark(name: str) -> list[str | None]:
    from crystalmon.scoring.models import find_mark

    return [name, find_mark(name)]


def _load(args: argparse.Namespace, name: str) -> Subject:
    from crystalmon.experiments.common.subject import Subject

    return Subject(*load_placed(name, args.dtype, args.device), name)


def _show_from_model(
    args: argparse.Namespace,
    shown: Experiment,
    of: Mapping[str, Any],
    measure: Callable[[Parts], Result],
) -> None:
    """Measure on a model, going on from finished parts, and show the result."""
    _check_place(args.output / f"{shown.name}.json", of)
    _show(args, shown, run_alone(shown.name, args.output, of, measure))


def _show_from_files(
    args: argparse.Namespace, shown: type[Shown], measure: Callable[[], Result]
) -> None:
    """Measure what lies on file, and show the result; nothing is written where that fails."""
    began = time.perf_counter()
    result = dataclasses.replace(measure(), seconds=time.perf_counter() - began)
    write_result(args.output, result)
    _show(args, shown, result)


def _show(args: argparse.Namespace, shown: type[Shown] | Shown, result: Result) -> None:
    """Write the display of a result, and print what was found: the table, or the result as JSON."""
    table = shown.table(result)
    files = write_display(args.output, shown.name, table, shown.figure(result))
    if args.json:
        print_json(result.to_json())
        return
    print(table)
    print(f"\nresult: {args.output / shown.name}.json, figure: {files[-1]}", file=sys.stderr)


def _check_place(file: Path, of: Mapping[str, Any]) -> None:
    """Refuse to write over the result of other models; a broken one may be replaced."""
    try:
        there = read_result(file).models
    except (OSError, ValueError):
        return
    for role in ("model", "base"):
        if role in of and there.get(role) not in (None, of[role][0]):
            raise ValueError(
                f"{file} must be of the same {role}, got one of {there[role]!r} for "
                f"{of[role][0]!r}. Keep each model's results in a folder of its own."
            )
