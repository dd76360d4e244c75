"""A stored run or scan, sent to a tracker that training itself did not report to."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tqdm.auto import tqdm

from crystalmon.report.page import write_report
from crystalmon.report.snapshot import Snapshot
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.wordings import task_texts
from crystalmon.trackers.base import Logged, Tracker, check_logged, tracker_metrics
from crystalmon.trackers.make import DESTINATIONS, TRACKERS


def send_run(
    run: Run,
    destination: str,
    *,
    project: str = DEFAULT_NAME,
    log: Logged = "suite",
    progress: bool = False,
) -> str:
    """Send every probe and event of a run; returns where to find them.

    The steps of a scan are the places of its stages. Pictures of the answers come with the first
    probe and the last, where the phase changes, and with ever fewer of the others.

    Args:
        run: what to send.
        destination: `wandb` or `trackio`, where it becomes a run of its own, or `tensorboard`: a
            folder `runs` in the output folder, or the run's own in `TENSORBOARD_LOGGING_DIR`.
        project: where W&B and trackio file it.
        log: what it gets; see `callback.CrystalCallback`.
        progress: show a bar.

    Raises:
        ValueError: for another destination or `log`, a run without a probe, or a W&B that refuses
            it or has another run active.
        OSError: if the folder of the logs cannot be written to.
        ModuleNotFoundError: if the tracker's library is not installed.
    """
    if destination not in DESTINATIONS:
        raise ValueError(
            f"destination must be one of {', '.join(DESTINATIONS)}, got {destination!r}. Other "
            "trackers log a run only while it trains."
        )
    run.check_probed()
    try:
        importlib.import_module(destination)  # library and package are named like the tracker
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{destination} is not installed. Run `pip install {destination}`."
        ) from error
    folder = run.folder.resolve()
    # a scan's folder may have any name, and is its own output folder
    in_training = "stages" not in run.info and folder.name.startswith(DEFAULT_NAME)
    name, output_dir = (folder.name, folder.parent) if in_training else (DEFAULT_NAME, folder)
    report = partial(write_report, [run.folder])
    tracker = TRACKERS[destination](name, str(output_dir), report, check_logged(log))
    # the texts of prompts and choices are no configuration
    texts = ("suite_forms", "suite_texts")
    info = {key: value for key, value in run.info.items() if key not in texts}
    with tracker.opened_for(replace(run, info=info), project) as place:
        _send(run, tracker, name, progress)
        tracker.close()
    return place


def _send(run: Run, tracker: Tracker, name: str, progress: bool) -> None:
    texts, _ = task_texts(run)
    events: dict[int, list[Event]] = defaultdict(list)
    for event in run.events:
        events[event.step].append(event)
    pictured = _pictured(run.records)
    for record in tqdm(run.records, "sending", unit="probe", leave=False, disable=not progress):
        tracker.log(record.step, tracker_metrics(record, name, tracker.logged))
        if record.step in pictured:
            tracker.show(Snapshot(record, texts))
        for event in events[record.step]:
            tracker.event(event)


def _pictured(records: Sequence[ProbeRecord]) -> set[int]:
    """Steps of the first probe, the last, each change of phase, and of ever fewer of the others."""
    steps, following, phase = {records[-1].step}, 0, None
    for index, record in enumerate(records):
        if index >= following or record.phase != phase:
            steps.add(record.step)
            following, phase = index + max(10, index // 5), record.phase
    return steps
