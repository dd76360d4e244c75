"""The list of checkpoints that a scan measures: `[NAME=]WHERE`, the base first."""

from __future__ import annotations

import contextlib
import filecmp
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crystalmon.runs.find_reference import find_reference
from crystalmon.runs.names import model_title
from crystalmon.runs.reference import load_reference
from crystalmon.scoring.models import split_revision, weight_files

_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Stage:
    """One checkpoint.

    Args:
        name: unique within its list.
        where: a model, as `scoring.models.find_model` takes it.
    """

    name: str
    where: str

    def __post_init__(self) -> None:
        """Refuse a stage without a name or a model."""
        if not self.name or not self.where:
            raise ValueError(f"a stage must have a name and a model, got {str(self)!r}.")

    def __str__(self) -> str:
        return f"{self.name}={self.where}"


def parse_stages(texts: Iterable[str]) -> tuple[Stage, ...]:
    """Stages from texts `NAME=WHERE`, or `WHERE`: its last part is the name then.

    A path that is there is no `NAME=WHERE`, and neither is one with a `/` before the `=`.

    >>> [stage.name for stage in parse_stages(["base=org/model", "runs/lr=0.1", "org/chat@v1"])]
    ['base', 'lr=0.1', 'chat@v1']

    Raises:
        ValueError: if a text has no name or no model.
    """
    stages = []
    for text in texts:
        name, named, where = text.partition("=")
        whole = Path(text).exists() or "/" in name
        stages.append(Stage(name, where) if named and not whole else Stage(_own_name(text), text))
    return tuple(stages)


def _own_name(where: str) -> str:
    model, revision = split_revision(where)
    name = Path(model).resolve().name if where else ""
    return name if revision is None else f"{name}@{revision}"


def expand_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, with one for each checkpoint where a folder holds several.

    A folder with subfolders `checkpoint-N` becomes `NAME/checkpoint-N`, in the order of N, and
    last NAME itself if it holds a model too: one of other weights than the last checkpoint's. The
    base, where other stages follow, is the folder's own model if it has weights.

    Raises:
        ValueError: if there is no stage, or a name is there twice.
    """
    base = [stage for stage in stages[:1] if len(stages) > 1 and _has_weights(stage)]
    found = (*base, *(each for stage in stages[len(base) :] for each in _expand(stage)))
    if not found:
        raise ValueError("stages must name at least a base, got none.")
    names = [stage.name for stage in found]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ValueError(
            f"stages must have names of their own, got {again!r} twice. Write NAME={again} for one."
        )
    return found


def describe_base(stages: Sequence[Stage]) -> str:
    """Which stage is the base; of one that a monitored training has made, what that began with."""
    name = "" if stages[0].name == "base" else f", {stages[0].name},"
    line = f"the first stage{name} is the base; the others are compared with it"
    with contextlib.suppress(OSError, ValueError):  # a damaged reference is not needed here
        folder = find_reference(stages[0].where)
        model = None if folder is None else load_reference(folder).info.model
        known = {_title(stage.where) for stage in stages}
        if isinstance(model, str) and model and _title(model) not in known:
            line += f". It was trained from {model_title(model)}, which is not among them"
    return line


def _title(model: str) -> str:
    """What a model is called, however its folder is written."""
    return model_title(str(Path(model).resolve()) if Path(model).exists() else model)


def _expand(stage: Stage) -> list[Stage]:
    folder = Path(stage.where)
    steps = {
        int(found[1]): place
        for place in (folder.glob("checkpoint-*") if folder.is_dir() else ())
        if (found := re.fullmatch(r"checkpoint-(\d+)", place.name)) and place.is_dir()
    }
    if not steps:
        return [stage]
    listed = [Stage(f"{stage.name}/{steps[n].name}", str(steps[n])) for n in sorted(steps)]
    own = any((folder / name).is_file() for name in _MODEL_FILES)
    return [*listed, stage] if own and not _same_weights(folder, steps[max(steps)]) else listed


def _has_weights(stage: Stage) -> bool:
    folder = Path(stage.where)
    return folder.is_dir() and bool(weight_files(folder))


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, byte for byte; not if they hold none."""
    ours, theirs = ([file.name for file in weight_files(folder)] for folder in (one, other))
    if not ours or ours != theirs:
        return False
    return filecmp.cmpfiles(one, other, ours, shallow=False)[0] == ours
