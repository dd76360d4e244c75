"""A run as pandas data frames: a row a probe, or a row a probe and task.

pandas is imported when a frame is asked for: nothing else of the package needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crystalmon.metrics.bootstrap import Interval
from crystalmon.runs.places import Stages
from crystalmon.runs.records import ProbeRecord

if TYPE_CHECKING:
    import pandas

_PROBE = ("step", "stage", "epoch", "time", "probe_seconds", "probe_share", "phase")
_TASK = ("step", "stage", "task", "phase", "seed", "view", "asked")
"""The columns before the metrics; `stage` is a scan's alone."""

_TYPES = {
    **dict.fromkeys(("step", "asked"), "int64"),
    **dict.fromkeys(("epoch", "time", "probe_seconds", "probe_share"), "float64"),
    "seed": "Int64",
}
"""Of those, the types that the values alone do not tell: of no rows, or of None among numbers."""


def suite_frame(records: Sequence[ProbeRecord], stages: Stages) -> pandas.DataFrame:
    """A row a probe; see `Run.frame`.

    Raises:
        ModuleNotFoundError: if pandas is not installed.
    """
    rows = [
        {
            **_place(record.step, stages),
            "epoch": record.epoch,
            "time": record.time,
            "probe_seconds": record.seconds,  # called as the metrics are
            "probe_share": record.share,
            "phase": record.phase,
            **_numbers(record.metrics, record.ci, _PROBE),
        }
        for record in records
    ]
    frame = _frame(rows, _PROBE, stages)
    times = _pandas().to_datetime(frame["time"], unit="s", utc=True, errors="coerce")
    # an empty column would be in other units
    return frame.assign(time=times.dt.as_unit("us"))


def task_frame(records: Sequence[ProbeRecord], stages: Stages) -> pandas.DataFrame:
    """A row a probe and task; see `Run.task_frame`.

    Raises:
        ModuleNotFoundError: if pandas is not installed.
    """
    rows = [
        {
            **_place(record.step, stages),
            "task": name,
            "phase": task.phase,
            "seed": task.seed,
            "view": task.view,
            "asked": len(task.q),
            **_numbers(task.metrics, task.ci, _TASK),
        }
        for record in records
        for name, task in record.tasks.items()
    ]
    return _frame(rows, _TASK, stages)


def _place(step: int, stages: Stages) -> dict[str, Any]:
    return {"step": step, "stage": stages.get(step)} if stages else {"step": step}


def _numbers(
    metrics: Mapping[str, float], ci: Mapping[str, Interval], taken: Sequence[str]
) -> dict[str, float]:
    """Each metric, followed by its interval's ends."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{key}_metric" if key in taken else key
        found[name] = float(value)
        if key in ci:
            found[f"{name}_low"], found[f"{name}_high"] = map(float, ci[key])
    return found


def _frame(
    rows: Sequence[Mapping[str, Any]], before: Sequence[str], stages: Stages
) -> pandas.DataFrame:
    """The rows as a frame, which has the columns before the metrics even without a row."""
    first = [key for key in before if stages or key != "stage"]
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    types = {key: kind for key, kind in _TYPES.items() if key in first}
    return _pandas().DataFrame(rows, columns=list(columns)).astype(types)


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a data frame needs the package pandas. Run `pip install pandas`."
        ) from error
    return pandas
