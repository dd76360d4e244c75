"""How a command is declared, the options that several share, and what these stand for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmon.runs.files import explained

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Run = Callable[[argparse.Namespace], int | None]
Option = Callable[[argparse.ArgumentParser], Any]
"""Adds itself to a command's parser."""

USER_ERRORS = (OSError, ValueError, TypeError, ModuleNotFoundError)
"""What bad input raises anywhere in the package: printed as one sentence, exit status 2."""

NO_RUN = 1
"""The exit status where a run that was named is not there, or none has a probe yet."""

FIGURES = (".png", ".svg", ".pdf")

COMMANDS: dict[str, tuple[str, Run, Sequence[Option]]] = {}
"""By name, such as `suite list`: a command's help, what runs it, and its options."""


def command(name: str, words: str, shared: str, *own: Option) -> Callable[[Run], Run]:
    """Make a function a command; `shared` names its options in `SHARED`, `words` are its help."""

    def register(run: Run) -> Run:
        COMMANDS[name] = words, run, (*(SHARED[each] for each in shared.split()), *own)
        return run

    return register


def option(*names: str, **settings: Any) -> Option:
    """An option, or an argument, as `ArgumentParser.add_argument` takes it."""
    return lambda parser: parser.add_argument(*names, **settings)


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layouts = parser.add_mutually_exclusive_group()
    for name, words in (("chain", "as stages of one chain"), ("compare", "side by side")):
        layouts.add_argument(
            f"--{name}", dest="layout", action="store_const", const=name, default="auto", help=words
        )


VIEW_WORDS = r"or chat, or a template such as 'Q: {prompt}\nA:'"


def view_text(text: str) -> str:
    r"""A view as typed in a shell: `\n` and `\t` become a line break and a tab."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The model, by its place or as `--model`; `main` sees that it is given once."""
    words = "liquid-tiny, smollm2-135m, gemma3-270m, a .gguf file, a folder, or a hub id"
    parser.add_argument("model", nargs="?", help=words)
    parser.add_argument("--model", dest="named_model", help=argparse.SUPPRESS)


SHARED: dict[str, Option] = {
    "model": _add_model,
    "suite": option("--suite", default="randomness", help="a bundled suite or a YAML file"),
    "view": option("--view", default="raw", type=view_text, help=f"default: raw; {VIEW_WORDS}"),
    "dtype": option("--dtype", default="float32", help="torch dtype of the weights"),
    "device": option("--device", help="torch device; the accelerator if there is one"),
    "run": option("run_folder", help="an output or run folder"),
    "runs": option("run_folder", nargs="+", help="output or run folders, in order"),
    "layout": _add_layout,
    "texts": option("--suite", help="the runs' suite file, for the words of its prompts"),
    "figure": option("--figure", type=Path, help="also draw it, as .png, .svg or .pdf"),
    "results": option(
        "-o", "--output", type=Path, default="experiments", help="default: experiments"
    ),
    "json": option("--json", action="store_true", help="print it as one JSON line"),
}


def print_json(value: Any) -> None:
    """Print one line of strict JSON."""
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def console() -> Console:
    """A console that does not cut a table where no terminal says how wide it is."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def check_output(file: Path | None, endings: Sequence[str], force: bool) -> None:
    """Refuse a file that is not to be written; None is no file.

    Raises:
        ValueError: if its ending is none of these.
        FileNotFoundError: if its folder does not exist.
        FileExistsError: if it exists itself, without `force`.
    """
    if file is None:
        return
    if file.suffix.lower() not in endings:
        raise ValueError(f"the file must end in {' or '.join(endings)}, got {str(file)!r}.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the folder {file.parent} is not there. Make it first.")
    if not force and file.exists():
        raise FileExistsError(f"{file} is there already. Choose another name, or add --force.")


def draw_to(figure: Figure, file: Path) -> None:
    """Draw a figure to a file, in the format of its ending.

    Raises:
        RunFolderError: if the folder cannot take it.
    """
    with explained(file.parent, "take the figure"):
        figure.savefig(file)


def torch_dtype(name: str) -> Any:
    """The torch dtype of a name.

    Raises:
        ValueError: if there is none.
    """
    import torch

    if not isinstance(dtype := getattr(torch, name, None), torch.dtype):
        raise ValueError(f"dtype must be a torch dtype, got {name!r}. Try float32 or bfloat16.")
    return dtype


def load_placed(name: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    """(model, tokenizer) as `--dtype` and `--device` ask for.

    Raises:
        ValueError: if there is no such dtype, or the device cannot be used.
        FileNotFoundError: if there is no such model.
    """
    import torch

    from crystalmon.scoring.models import load_model

    model, tokenizer = load_model(name, dtype=torch_dtype(dtype))
    try:
        model.to(device or torch.accelerator.current_accelerator() or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be usable here, got {device!r}: {error}") from error
    return model, tokenizer
