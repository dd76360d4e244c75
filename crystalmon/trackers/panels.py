"""Which curves belong on one panel: the one arrangement that every dashboard is built from."""

from __future__ import annotations

from dataclasses import dataclass

from crystalmon.runs.names import DEFAULT_NAME

MEDIA_PREFIX = f"{DEFAULT_NAME}_media"
ANSWERS, DISTRIBUTIONS = "_media/answers", "_media/distributions"
"""The names of the picture and the table, after the run's own prefix."""
ANSWERS_KEY, DISTRIBUTIONS_KEY = f"{DEFAULT_NAME}{ANSWERS}", f"{DEFAULT_NAME}{DISTRIBUTIONS}"


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes.

    Args:
        title: in plain words.
        keys: of suite-level metrics, without the prefix.
        task_key: of a task-level metric instead, one curve a task.
    """

    title: str
    keys: tuple[str, ...] = ()
    task_key: str | None = None

    def curves(self, prefix: str = DEFAULT_NAME) -> list[str]:
        """The curves' full names, or the one expression that finds them, in a run of that name."""
        if self.task_key is not None:
            return [f"^{prefix}_tasks/.*/{self.task_key}$"]
        return [f"{prefix}/{key}" for key in self.keys]


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Crystallization": (
        Panel("Do the wordings still answer differently?", ("order", "crystallinity", "seed_mass")),
        Panel("Phase: 0 liquid, 1 nucleating, 2 crystallized, 3 settling, 4 melting", ("phase",)),
        Panel("Variety between wordings (liquidity, nats)", ("liquidity", "entropy")),
        Panel(
            "Tasks in each phase (ordered: the base answered alike, so they take no part)",
            ("tasks_liquid", "tasks_nucleating", "tasks_crystallized", "tasks_ordered"),
        ),
    ),
    "Distance from the base": (
        Panel(
            "KL from the base and its parts (nats)",
            ("free_energy", "free_energy_choice", "free_energy_format"),
        ),
        Panel("Probability on listed answers", ("coverage",)),
    ),
    "Tasks": (
        Panel("Order of each task", task_key="order"),
        Panel("Seed mass of each task", task_key="seed_mass"),
    ),
    "Cost of probing": (
        Panel("Seconds per probe", ("probe_seconds",)),
        Panel("Share of the run's time", ("probe_share",)),
    ),
}
"""Sections of panels, in the order in which they are looked at."""

SUMMARIES: dict[str, str] = {
    "order": "last,max",
    "crystallinity": "last,max",
    "free_energy": "last,max",
    "seed_mass": "last,min",
    "coverage": "last,min",
}
"""What a run's summary keeps of the suite-level metrics that have a worst value."""
