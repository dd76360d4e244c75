"""The one list of trackers, by their names in the trainer's `report_to`."""

from __future__ import annotations

from collections.abc import Sequence

from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.trackers import scalars_only
from crystalmon.trackers.base import CompositeTracker, Logged, Tracker, WriteReport, logger
from crystalmon.trackers.tensorboard import TensorBoardTracker
from crystalmon.trackers.trackio import TrackioTracker
from crystalmon.trackers.wandb import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "mlflow": scalars_only.MLflowTracker,
    "dagshub": scalars_only.MLflowTracker,  # transformers, too, reaches DagsHub through MLflow
    "comet_ml": scalars_only.CometTracker,
    "clearml": scalars_only.ClearMLTracker,
    "swanlab": scalars_only.SwanLabTracker,
}

DESTINATIONS = tuple(
    name for name, kind in TRACKERS.items() if kind.opened_for is not Tracker.opened_for
)
"""The trackers that a stored run can be sent to."""

ALERTING = tuple(name for name, kind in TRACKERS.items() if kind.alert is not Tracker.alert)
"""The trackers that can alert."""


def make_tracker(
    report_to: Sequence[str],
    output_dir: str,
    name: str = DEFAULT_NAME,
    write_report: WriteReport | None = None,
    logged: Logged = "suite",
) -> CompositeTracker:
    """The trackers in a trainer's `report_to`, as one; names without a tracker are logged.

    The other arguments are those of each `Tracker`.
    """
    for kind in report_to:
        if kind not in TRACKERS and kind != "none":
            logger.warning(
                f"crystalmon does not log to {kind}. The run folder has every probe: "
                f"crystalmon report {output_dir}"
            )
    kinds = [kind for kind in TRACKERS if kind in report_to]
    return CompositeTracker(
        {kind: TRACKERS[kind](name, output_dir, write_report, logged) for kind in kinds}
    )
