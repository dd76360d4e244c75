"""make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.trackers.scalars_only import SCALAR_TRACKERS, ScalarTracker

if TYPE_CHECKING:
    pass
from crystalmon.trackers.base import CompositeTracker, Tracker, WriteReport, logger
from crystalmon.trackers.tensorboard import TensorBoardTracker
from crystalmon.trackers.trackio import TrackioTracker
from crystalmon.trackers.wandb import WandbTracker


def make_tracker(
    report_to: Sequence[str],
    output_dir: str,
    name: str = DEFAULT_NAME,
    write_report: WriteReport | None = None,
) -> CompositeTracker:
    """The trackers that a trainer reports to.

    Args:
        report_to: the trainer's `report_to`; names that no tracker here covers are logged and
            passed over.
        output_dir: the trainer's output folder.
        name: what the names of metrics begin with.
        write_report: makes the page for the trackers that keep one.
    """
    factories: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker(name, write_report),
        "tensorboard": lambda: TensorBoardTracker(output_dir, name),
        "trackio": lambda: TrackioTracker(name),
        **{kind: partial(ScalarTracker, kind) for kind in SCALAR_TRACKERS},
    }
    for kind in report_to:
        if kind not in factories and kind != "none":
            logger.warning(
                "crystalmon does not log to %s. The run folder has every probe: "
                "crystalmon report %s",
                kind,
                output_dir,
            )
    return CompositeTracker({kind: make() for kind, make in factories.items() if kind in report_to})
