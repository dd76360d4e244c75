"""Which runs follow each other and which stand side by side.

A **lane** is a chain of runs on one step axis: each run's own step s lies at the lane's position
start + s. A run that continues no other begins a lane of its own; lanes are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from crystalmon.runs.records import ProbeRecord
from crystalmon.runs.run import Run

Layout = Literal["auto", "chain", "compare"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True)
class Lane:
    """A chain of runs on one step axis.

    Args:
        runs: the stages, in the order of training.
        starts: [R + 1] where each run begins on the axis, and where the last one ends.
    """

    runs: tuple[Run, ...]
    starts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The stages' names, joined by arrows."""
        return " → ".join(run.name for run in self.runs)

    @property
    def spans(self) -> tuple[tuple[Run, int, int], ...]:
        """(run, where it begins on the axis, where it ends)."""
        return tuple(zip(self.runs, self.starts[:-1], self.starts[1:], strict=True))

    @property
    def records(self) -> tuple[ProbeRecord, ...]:
        """All probes, stage after stage."""
        return tuple(record for run in self.runs for record in run.records)

    @property
    def positions(self) -> np.ndarray:
        """[S] where each probe lies on the axis."""
        steps = [start + record.step for run, start, _ in self.spans for record in run.records]
        return np.array(steps, dtype=np.int64)

    @property
    def stages(self) -> np.ndarray:
        """[S] the index of the run that each probe belongs to."""
        counts = [len(run.records) for run in self.runs]
        return np.repeat(np.arange(len(self.runs)), counts)

    @property
    def stage_names(self) -> list[str]:
        """What is written at each position of the axis, if all runs are scans; else empty.

        Where one scan ends and the next begins, both names stand.
        """
        if not all(run.stages for run in self.runs):
            return []
        names: list[list[str]] = [[] for _ in range(self.starts[-1] + 1)]
        for run, start, _ in self.spans:
            for step, name in run.stages.items():
                if start + step < len(names):
                    names[start + step].append(name)
        return [" | ".join(each) for each in names]


def make_lanes(runs: Sequence[Run], layout: Layout = "auto") -> tuple[Lane, ...]:
    """Group runs into lanes.

    Args:
        runs: in the order of training.
        layout: `chain` puts all runs into one lane and `compare` each into its own. With `auto`,
            a run continues a lane if its model was trained in that lane's last run.

    Raises:
        ValueError: if the layout is unknown, or there is no run.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    if not runs:
        raise ValueError("runs must hold at least one run, got none.")
    if layout == "chain":
        return (_lay_out(runs),)
    chains: list[list[Run]] = []
    for run in runs:
        before = _chain_before(run, chains) if layout == "auto" else None
        if before is None:
            chains.append([run])
        else:
            before.append(run)
    return tuple(_lay_out(chain) for chain in chains)


def probed_chain(runs: Sequence[Run]) -> Lane:
    """All runs as the stages of one chain.

    Raises:
        ValueError: if there is no run, or one without a probe; see `Run.check_probed`.
    """
    (lane,) = make_lanes(runs, "chain")
    for run in runs:
        run.check_probed()
    return lane


def lane_names(lanes: Sequence[Lane]) -> list[str]:
    """The lanes' names, told apart by the folder above where two are the same."""
    names = [lane.name for lane in lanes]
    if len(set(names)) == len(names):
        return names
    above = [lane.runs[0].folder.resolve().parent.parent.name for lane in lanes]
    return [f"{folder}/{name}" for folder, name in zip(above, names, strict=True)]


def _lay_out(chain: Sequence[Run]) -> Lane:
    starts = np.concatenate([[0], np.cumsum([_length(run) for run in chain])])
    return Lane(tuple(chain), tuple(int(start) for start in starts))


def _length(run: Run) -> int:
    """The steps that a run is known to have done, by its probes or by the trainer's log."""
    return max(1, *(lines[-1].step if lines else 0 for lines in (run.records, run.trainer_log)))


def _chain_before(run: Run, chains: Sequence[list[Run]]) -> list[Run] | None:
    """The chain whose last run's output folder, or a checkpoint in it, is this run's model.

    A run in another view belongs to another chain.
    """
    model = run.info.get("model")
    if not isinstance(model, str) or not model:
        return None
    path = Path(model)
    candidates = (path, path.parent) if path.name.startswith("checkpoint-") else (path,)
    for chain in chains:
        if None not in (views := {chain[-1].view, run.view}) and len(views) > 1:
            continue
        output = chain[-1].folder.resolve().parent
        for candidate in candidates:
            # the path may be relative to the folder in which training was started, so its last
            # two names decide; one name alone may be a hub id
            tail = candidate.parts[-2:]
            relative = not candidate.is_absolute() and len(tail) == 2
            if candidate.resolve() == output or (relative and output.parts[-2:] == tail):
                return chain
    return None
