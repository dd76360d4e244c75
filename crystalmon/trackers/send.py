"""A stored run, a scan included, sent to a tracker: where training itself could not reach one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from crystalmon.report.page import write_report
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import DEFAULT_NAME, DESTINATIONS
from crystalmon.runs.reader import Run
from crystalmon.runs.records import Event
from crystalmon.runs.wordings import task_texts
from crystalmon.trackers.base import Tracker, tracker_metrics
from crystalmon.trackers.picture_rate import Pace
from crystalmon.trackers.tensorboard import TensorBoardTracker
from crystalmon.trackers.trackio import TrackioTracker
from crystalmon.trackers.wandb import WandbTracker

TEXTS_KEY = "suite_texts"
"""In `run.json`: the words of prompts and choices, which no tracker needs as configuration."""


def send_run(
    run: Run, destination: str, *, project: str = DEFAULT_NAME, progress: bool = False
) -> str:
    """Send every probe and event of a run, as they would have come while it was made.

    The steps of a scan are the places of its stages. Pictures of the answers come with the first
    probe and the last, where the phase changes, and with ever fewer of the others.

    Args:
        run: what to send.
        destination: `wandb` or `trackio`, where it becomes a run of its own with `run.json` as
            configuration, or `tensorboard`: a log folder `runs` in the output folder, or the run's
            own in `TENSORBOARD_LOGGING_DIR`.
        project: that W&B and trackio file it under.
        progress: show a bar.

    Returns:
        Where it is.

    Raises:
        ValueError: for another destination, a run without a probe, or a W&B that refuses it or has
            another run active.
        OSError: if the folder of the logs cannot be written to.
        ModuleNotFoundError: if the tracker's library is not installed.
    """
    if destination not in DESTINATIONS:
        raise ValueError(
            f"destination must be one of {', '.join(DESTINATIONS)}, got {destination!r}. Others "
            "get what a run logs while it is made."
        )
    if not run.records:
        raise ValueError(f"the run {run.folder} must have a probe, got none. Wait for its first.")
    with _OPENINGS[destination](run, project) as (tracker, place):
        _send(run, tracker, progress)
        tracker.close()
    return place


def _send(run: Run, tracker: Tracker, progress: bool) -> None:
    choices = {name: words.choices for name, words in task_texts([run])[0].items()}
    events: dict[int, list[Event]] = defaultdict(list)
    for event in run.events:
        events[event.step].append(event)
    name, pace = _prefix(run), Pace(patience=0.0)
    bar = tqdm(run.records, desc="sending", unit="probe", leave=False, disable=not progress)
    for record in bar:
        tracker.log(record.step, tracker_metrics(record, name))
        if pace.is_due(record.phase) or record is run.records[-1]:
            tracker.show(Snapshot(record, choices))
        for event in events[record.step]:
            tracker.event(event)


def _is_inside(run: Run) -> bool:
    """Whether the run folder lies in an output folder, as a training's does and a scan's not."""
    return "stages" not in run.info and run.folder.resolve().name.startswith(DEFAULT_NAME)


def _prefix(run: Run) -> str:
    """What the names of metrics begin with: as in training, whatever a scan's folder is called."""
    return run.folder.resolve().name if _is_inside(run) else DEFAULT_NAME


def _configuration(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.info.items() if key != TEXTS_KEY}


@contextlib.contextmanager
def _to_wandb(run: Run, project: str) -> Iterator[tuple[Tracker, str]]:
    wandb = _library("wandb")
    if wandb.run is not None and not wandb.run.disabled:
        raise ValueError(
            f"wandb must have no active run, got {wandb.run.name or wandb.run.id!r}. Finish it: "
            "the stored run becomes one of its own."
        )
    try:
        opened = wandb.init(project=project, name=run.name, config=_configuration(run))
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(
            f"wandb must take the run, got {' '.join(str(error).split())}. Mend that, log in with "
            "`wandb login`, or set WANDB_MODE=offline."
        ) from error
    with opened:
        if opened.disabled:
            raise ValueError(
                "wandb must be enabled to take the run, got it disabled. Unset WANDB_MODE, or set "
                "it to offline."
            )
        report = partial(write_report, [run.folder])
        yield WandbTracker(_prefix(run), report), opened.url or str(opened.dir)


@contextlib.contextmanager
def _to_trackio(run: Run, project: str) -> Iterator[tuple[Tracker, str]]:
    trackio = _library("trackio")
    # it would only warn, and keep nothing
    _check_writable(Path(importlib.import_module("trackio.utils").TRACKIO_DIR), "TRACKIO_DIR")
    trackio.init(project=project, name=run.name, config=_configuration(run), embed=False)
    try:
        yield TrackioTracker(_prefix(run)), f"trackio show --project {project}"
    finally:
        trackio.finish()


@contextlib.contextmanager
def _to_tensorboard(run: Run, project: str) -> Iterator[tuple[Tracker, str]]:
    _library("tensorboard")
    own, name = run.folder.resolve(), _prefix(run)
    chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if chosen:  # runs of many folders share it, some of one name
        mark = hashlib.sha256(str(own).encode()).hexdigest()[:6]
        logs = Path(chosen).expanduser() / f"{run.name}-{mark}"
    else:
        logs = (own.parent if _is_inside(run) else own) / "runs"
    _check_writable(logs / name, "TENSORBOARD_LOGGING_DIR")
    yield TensorBoardTracker("", name, logs / name), str(logs / name)


def _check_writable(folder: Path, variable: str) -> None:
    """Make a folder, and a file in it for a moment.

    Raises:
        OSError: if that fails; in one sentence.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder} must take what is sent, got {error.strerror or error}. Make room, or set "
            f"{variable} to another folder."
        ) from error


Opening = Callable[[Run, str], AbstractContextManager[tuple[Tracker, str]]]

_OPENINGS: dict[str, Opening] = dict(
    zip(DESTINATIONS, (_to_wandb, _to_tensorboard, _to_trackio), strict=True)
)
"""By destination: opens what a run is sent to, and says where it is."""


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} must be installed to send a run there. Run `pip install {name}`."
        ) from error
