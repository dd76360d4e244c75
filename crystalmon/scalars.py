"""One probe as flat scalars, under the names that trackers show."""

from __future__ import annotations

from crystalmon.names import DEFAULT_NAME
from crystalmon.records import PHASES, ProbeRecord


def tracker_metrics(record: ProbeRecord, name: str = DEFAULT_NAME) -> dict[str, float]:
    """What trackers log of one probe: `<name>/<metric>`, `<name>_tasks/<task>/<metric>`.

    Args:
        record: the probe.
        name: what the names begin with.
    """
    scalars = {f"{name}/{key}": value for key, value in record.metrics.items()}
    scalars[f"{name}/phase"] = float(PHASES.index(record.phase))
    scalars[f"{name}/probe_seconds"] = record.seconds
    scalars[f"{name}/probe_share"] = record.share
    for task_name, task in record.tasks.items():
        prefix = f"{name}_tasks/{task_name}"
        scalars |= {f"{prefix}/{key}": value for key, value in task.metrics.items()}
        scalars[f"{prefix}/phase"] = float(PHASES.index(task.phase))
    return scalars
