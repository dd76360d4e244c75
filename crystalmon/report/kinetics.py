"""Rows on how fast a run's transition was, for the page."""

from __future__ import annotations

from typing import Any

from crystalmon.kinetics import LEAST_RISE, Transition, classify_transition, fit_avrami
from crystalmon.store import Run


def kinetics_rows(run: Run) -> list[dict[str, Any]]:
    """`{"task", "verdict", "text"}`, of the suite with task None, then of each task.

    A run whose suite hardly rises has none.
    """
    steps, order = run.series("order")
    if not len(order) or not order.max() - order.min() >= LEAST_RISE:
        return []
    rows = [_row(None, classify_transition(steps, order))]
    grew = run.records[0].phase == "liquid"  # not begun with crystals
    avrami = fit_avrami(*run.series("crystal_fraction")) if grew else None
    if avrami is not None:
        low, high = avrami.exponent_interval
        text = (
            f"share of collapsed wordings: 1 − exp(−(k·(s − s₀))ⁿ) with n = {avrami.exponent:.2f} "
            f"[{low:.2f}, {high:.2f}] from step {avrami.start:.0f}"
        )
        rows.append({"task": None, "verdict": "Avrami fit", "text": text})
    tasks = run.records[-1].tasks
    return rows + [_row(name, classify_transition(*run.series("order", name))) for name in tasks]


def _row(task: str | None, found: Transition) -> dict[str, Any]:
    text = "too little rise, or too few probes, to tell"
    if found.width is not None and found.width_interval is not None:
        low, high = found.width_interval
        text = f"10–90% of the rise in {found.width:.3g} steps [{low:.3g}, {high:.3g}]"
    return {"task": task, "verdict": found.verdict, "text": text}
