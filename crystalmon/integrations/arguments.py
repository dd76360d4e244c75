"""The callback's arguments, as variables `CRYSTALMON_<ARGUMENT>` and a YAML file give them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from crystalmon.suites.checks import read_yaml

PREFIX = "CRYSTALMON_"

CONFIG = f"{PREFIX}CONFIG"
"""The variable that names a YAML file of arguments."""

NOTES = f"{PREFIX}RUN_NOTES"
"""The variable that names the file in which processes tell `crystalmon run` what they met."""

_NO_ARGUMENTS = (CONFIG, NOTES, f"{PREFIX}CACHE")


class ArgumentsError(ValueError):
    """A variable or a file that does not give arguments of the callback."""


def _number(text: str) -> float | None:
    return None if text.lower() in ("null", "none") else float(text)


def _yaml_of(*kinds: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = yaml.safe_load(text)
        if not isinstance(value, kinds):
            raise ValueError
        return value

    return read


def _view(text: str) -> Any:
    if text.startswith("["):
        try:
            return _yaml_of(list)(text)
        except (ValueError, yaml.YAMLError):
            before, place, _ = text.partition("{prompt}")
            if not place or "]" not in before:  # else a template, such as [INST] {prompt} [/INST]
                raise
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


class Form(NamedTuple):
    """How a variable's text is read (a ValueError refuses it), and what it must be, in words."""

    read: Callable[[str], Any]
    words: str


TEXT = Form(str, "a text")
NUMBER = Form(_number, "a number or null")
FLAG = Form(_yaml_of(bool), "true or false")
MAPPING = Form(_yaml_of(dict), "a YAML mapping, such as '{key: value}'")

ARGUMENTS: dict[str, Form] = {
    "suite": TEXT,
    "every": NUMBER,
    "reference": TEXT,
    "view": Form(_view, "a name, a template, or a YAML list of these"),
    "precision": TEXT,
    "strict": FLAG,
    "actions": MAPPING,
    "limits": MAPPING,
    "max_overhead": NUMBER,
    "experiments": MAPPING,
    "log": TEXT,
    "verbose": FLAG,
}
"""All arguments of `CrystalCallback`."""


def read_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that an environment sets; a variable goes before the file's key.

    Args:
        environment: such as `os.environ`. A variable that is empty is not set.

    Raises:
        ArgumentsError: for an unknown argument, or a text that cannot be read.
        FileNotFoundError: if the file that it names is not there.
    """
    given = {
        name: text
        for name, text in environment.items()
        if name.startswith(PREFIX) and name not in _NO_ARGUMENTS and text
    }
    _check_known((name.removeprefix(PREFIX).lower() for name in given), given)
    arguments = _read_file(Path(file)) if (file := environment.get(CONFIG)) else {}
    for variable, text in given.items():
        name = variable.removeprefix(PREFIX).lower()
        form = ARGUMENTS[name]
        try:
            arguments[name] = form.read(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ArgumentsError(f"{variable} must be {form.words}, got {text!r}.") from error
    return arguments


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file} holds the callback's arguments. Check its path.")
    return read_yaml(file, _parse, ArgumentsError)


def _parse(data: Any) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ArgumentsError(f"must be a mapping of arguments, got {type(data).__name__}.")
    _check_known(data, data)
    return data


def _check_known(names: Iterable[str], told: Iterable[str]) -> None:
    """Refuse what is no argument; `told` is how the user has written each name."""
    for name, written in zip(names, told, strict=True):
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS)
            advice = (
                f"Did you mean {' or '.join(near)}?" if near else f"Use {', '.join(ARGUMENTS)}."
            )
            raise ArgumentsError(f"{written} names no argument of CrystalCallback. {advice}")
