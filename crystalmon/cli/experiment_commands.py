"""The commands of the essay's experiments: on a model, on runs, on results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.cli.options import add_model, add_placement, add_prompts, load_placed

if TYPE_CHECKING:
    from crystalmon.experiments.common.experiment import Experiment
    from crystalmon.experiments.common.parts import Parts
    from crystalmon.experiments.common.subject import Subject
    from crystalmon.runs.results import Result

Commands = argparse._SubParsersAction  # type: ignore[type-arg]


def add_experiments(commands: Commands) -> None:
    """Add the commands to the parser."""
    landscape = _on_model(commands, "landscape", "free energy against a base, by instruction")
    landscape.add_argument("--base", required=True, help="the model that it was trained from")
    landscape.add_argument("--together", action="store_true", help="hold both models at once")
    landscape.add_argument("--tokens", type=int, help="of a response, at most")
    landscape.set_defaults(run=_run_landscape)
    context = _on_model(commands, "context", "compliance as adversarial context grows")
    context.add_argument("--levels", type=int, help="of the adversarial share")
    context.add_argument("--count", type=int, help="of the instructions; default: 10")
    context.set_defaults(run=_run_on_model)
    drift = _on_model(commands, "drift", "how an instruction's hold fades along a response")
    drift.add_argument("--tokens", type=int, help="to generate")
    drift.set_defaults(run=_run_on_model)
    temperature = _on_model(commands, "temperature", "answers at every sampling temperature")
    add_prompts(temperature)
    temperature.add_argument("--weight", type=float, help="λ of the objective; default: 1")
    temperature.set_defaults(run=_run_on_model)
    _add_sharpness(commands)
    _add_predictions(commands)


def _on_model(commands: Commands, name: str, words: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=words)
    add_model(command)
    add_placement(command)
    _add_output(command)
    command.set_defaults(experiment=name)
    return command


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--output", type=Path, default=Path("experiments"), help="default: experiments"
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON line")


def _add_sharpness(commands: Commands) -> None:
    command = commands.add_parser("sharpness", help="transitions of runs against their KL penalty")
    command.add_argument("run_folder", nargs="+", help="output or run folders")
    command.add_argument(
        "--beta", type=float, nargs="+", help="each run's KL penalty, where run.json has none"
    )
    _add_output(command)
    command.set_defaults(run=_run_sharpness)


def _add_predictions(commands: Commands) -> None:
    command = commands.add_parser("predictions", help="the essay's predictions on results")
    command.add_argument("folder", type=Path, help="the folder of the experiments' results")
    command.add_argument("--json", action="store_true", help="print the result as one JSON line")
    command.set_defaults(run=_run_predictions)


def _run_on_model(args: argparse.Namespace) -> None:
    experiment = _experiment(args)
    _finish(
        args,
        experiment,
        {"settings": experiment.settings, "model": _mark(args.model), "dtype": args.dtype},
        lambda parts: experiment.measure(_load(args, args.model), args.output, parts),
    )


def _run_landscape(args: argparse.Namespace) -> None:
    from crystalmon.experiments.landscape.landscape_pair import measure_landscape
    from crystalmon.scoring.models import load_config

    experiment: Any = _experiment(args)
    load_config(args.base)  # a wrong name is told before the other model is measured
    marks = {"model": _mark(args.model), "base": _mark(args.base), "dtype": args.dtype}
    _finish(
        args,
        experiment,
        {"settings": experiment.settings, "together": args.together, **marks},
        lambda parts: measure_landscape(
            lambda: _load(args, args.model),
            lambda: _load(args, args.base),
            experiment,
            args.output,
            parts,
            together=args.together,
        ),
    )


def _run_sharpness(args: argparse.Namespace) -> None:
    from crystalmon.experiments.sharpness.kl_penalty import Sharpness

    _finish(args, Sharpness, {}, lambda _: Sharpness.measure(args.run_folder, args.beta))


def _run_predictions(args: argparse.Namespace) -> None:
    from crystalmon.experiments.predictions.predicted import Predictions

    args.output = args.folder
    _finish(args, Predictions, {}, lambda _: Predictions.measure(args.folder))


def _experiment(args: argparse.Namespace) -> Experiment:
    """The experiment that a command names, with the options that were given."""
    import dataclasses

    from crystalmon import experiments

    kind = getattr(experiments, experiments.ON_MODELS[args.experiment])
    names = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in vars(args).items() if value is not None}
    return kind(**{key: value for key, value in given.items() if key in names})


def _load(args: argparse.Namespace, name: str) -> Subject:
    from crystalmon.experiments.common.subject import Subject

    return Subject(*load_placed(name, args.dtype, args.device), name)


def _mark(name: str) -> list[str | None]:
    from crystalmon.scoring.models import find_mark

    return [name, find_mark(name)]


def _finish(
    args: argparse.Namespace, shown: Any, of: Mapping[str, Any], measure: Callable[[Parts], Result]
) -> None:
    """Measure, write, and print what was found: the table, or the result as JSON."""
    from crystalmon.experiments.common.command import run_alone, write_display

    _check_place(args.output / f"{shown.name}.json", of)
    result = run_alone(shown.name, args.output, of, measure, progress=True)
    table = shown.table(result)
    files = write_display(args.output, shown.name, table, shown.figure(result))
    if args.json:
        print(json.dumps(result.to_json(), allow_nan=False, ensure_ascii=False))
        return
    print(table)
    print(f"\nresult: {args.output / shown.name}.json, figure: {files[-1]}", file=sys.stderr)


def _check_place(file: Path, of: Mapping[str, Any]) -> None:
    """Refuse to write over the result of other models; one that is broken may be replaced."""
    from crystalmon.runs.results import read_result

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
