"""The trainer's choice of its best checkpoint, where it goes by a metric of this run.

`metric_for_best_model` is then `<run>/<metric>`, such as `crystalmon/order`, with or without the
`eval_` that the trainer puts before it.
"""

from __future__ import annotations

import math
from typing import Any

from crystalmon.runs.records import ProbeRecord
from crystalmon.trackers.base import MAIN, tracker_metrics


def chooses_by(args: Any, run: str) -> bool:
    """Whether a trainer with these arguments chooses by a metric of the run of this name."""
    chosen = str(args.metric_for_best_model or "").removeprefix("eval_")
    return chosen.startswith(f"{run}/")


def check_choice(args: Any, run: str) -> None:
    """Check that the metric is one that each probe has.

    Raises:
        ValueError: if it is none.
    """
    metric = str(args.metric_for_best_model).rpartition("/")[2]
    if chooses_by(args, run) and metric not in MAIN:
        raise ValueError(
            f"metric_for_best_model must be a main metric of the suite, got {metric!r}. Choose one "
            f"of {', '.join(sorted(MAIN))}."
        )


def chooses_now(args: Any, run: str, state: Any, control: Any) -> bool:
    """Whether it chooses at this step: then all prompts are asked, so that values compare."""
    epoch_ends = args.eval_strategy == "epoch" and abs(state.epoch - round(state.epoch)) < 1e-6
    return chooses_by(args, run) and (control.should_evaluate or epoch_ends)


def evaluation_metrics(record: ProbeRecord | None, run: str) -> dict[str, float]:
    """What an evaluation gets of a probe; NaN for what it lacks, as without a seed or a probe.

    The trainer raises if the metric is missing.
    """
    found = {f"{run}/{key}": math.nan for key in MAIN}
    if record is not None:
        found |= tracker_metrics(record, run)
    return {f"eval_{key}": value for key, value in found.items()}
