"""Sharpness against the KL penalty: runs that differ in beta, from their run folders alone.

The essay expects a lower penalty to give a sharper transition. Each run gives the heat capacity of
its answers at the end, the width of its transition in training steps and the largest
susceptibility in it. Each of the three has a rank correlation with beta and a slope in log beta.

Axes: N runs, R resamples or permutations of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from crystalmon.analysis.transition import classify_transition
from crystalmon.experiments.common.experiment import Shown
from crystalmon.experiments.common.statistics import trend
from crystalmon.runs.reader import read_run
from crystalmon.runs.results import Estimate, Result
from crystalmon.runs.run import Run, names_of

PENALTIES = ("beta", "kl_coef")
"""What TRL's trainers call the weight of the KL penalty: PPO has the second name."""

MEASURES = {"width": 1, "heat_capacity": -1, "susceptibility": -1}
"""The sign of each one's trend with beta if a lower penalty makes transitions sharper."""

IN_TREND = ("fitted", "unresolved")
"""The transitions whose widths are known."""


@dataclass(frozen=True)
class SharpnessOfRun:
    """How sharp one run's transition was.

    Args:
        name, beta: the run's name, and its KL penalty.
        seed: the trainer's random seed; None where the run does not tell.
        heat_capacity: the suite's at the last probe, Var(z) at T = 1.
        susceptibility: the suite's largest within one width of the transition's midpoint: on the
            way there, the base's own can be larger. NaN where there was no transition.
        width, width_interval: training steps from 10% to 90% of the rise of `order`; NaN where
            there was no rise.
        transition: `fitted`; `unresolved`, no wider than the probes are apart; `unfinished`, where
            the fit ends after the run does; `none`, without a rise of `order` to speak of.
    """

    name: str
    beta: float
    seed: int | None
    heat_capacity: float
    susceptibility: float
    width: float
    width_interval: tuple[float, float]
    transition: str


class Sharpness(Shown):
    """The experiment on a set of runs; it needs neither a model nor torch."""

    name: ClassVar[str] = "sharpness"

    @staticmethod
    def measure(
        paths: Sequence[str | Path], betas: Sequence[float] | None = None, replicates: int = 2000
    ) -> Result:
        """Compare runs that were trained at several KL penalties.

        A width counts in the trend if it is `fitted` or `unresolved`; other runs are named.

        Args:
            paths: output or run folders.
            betas: the penalty of each, in order; by default what `run.json` says.
            replicates: R.

        Raises:
            ValueError: if a run does not tell its penalty, is of another suite than the first, has
                no probe or is there twice, or if there are fewer than 2 penalties.
        """
        runs = [read_run(path) for path in paths]
        _check_alike(runs)
        known = _penalties(runs, betas)
        found = [sharpness_of(*each) for each in zip(runs, known, names_of(runs), strict=True)]
        found.sort(key=lambda run: (run.beta, run.name))
        beta = np.array([run.beta for run in found])
        trends = {
            key: trend(beta, _counted(found, key), sign, replicates)
            for key, sign in MEASURES.items()
        }
        estimates: dict[str, Estimate] = {}
        for key, value in trends.items():
            correlation, slope = value.correlation_interval, value.slope_interval
            estimates[f"{key}_correlation"] = Estimate(value.correlation, *correlation)
            estimates[f"{key}_slope"] = Estimate(value.slope, *slope)
        settings = {"replicates": replicates, "suite": runs[0].info.get("suite")}
        models = {"model": runs[0].info.get("model")}
        detail = {
            "runs": [asdict(run) for run in found],
            "trends": {key: asdict(value) for key, value in trends.items()},
        }
        return Result(Sharpness.name, settings, models, estimates, detail)


def _penalty_of(run: Run) -> float:
    """The KL penalty that a run was trained with; an older `run.json` may not tell."""
    training = run.info.get("training") or {}
    for name in PENALTIES:
        if isinstance(training.get(name), int | float):
            return _checked(training[name])
    raise ValueError(
        f"run {run.name} must tell its KL penalty, and its run.json has none. Give the penalties "
        "of all runs, in their order: --beta 0.03 0.1 …"
    )


def sharpness_of(run: Run, beta: float, name: str | None = None) -> SharpnessOfRun:
    """What is compared of a run.

    Raises:
        ValueError: if it has no probe.
    """
    run.check_probed()
    steps, order = run.series("order")
    fit = classify_transition(steps, order)
    width, interval, state = math.nan, (math.nan, math.nan), "none"
    if fit.width is not None and fit.midpoint is not None and fit.width_interval is not None:
        width, interval, state = fit.width, fit.width_interval, "fitted"
        if fit.midpoint + fit.width / 2 > steps[-1]:
            state = "unfinished"
        elif fit.spacing is not None and fit.width <= fit.spacing:
            state = "unresolved"
    susceptibility = run.series("susceptibility")[1]
    near = np.abs(steps - (fit.midpoint or 0)) <= width  # nothing is near where there is no width
    seen = susceptibility[near & np.isfinite(susceptibility)]
    return SharpnessOfRun(
        name=name or run.name,
        beta=beta,
        seed=(run.info.get("training") or {}).get("seed"),
        heat_capacity=float(run.series("heat_capacity")[1][-1]),
        susceptibility=float(seen.max()) if len(seen) else math.nan,
        width=width,
        width_interval=interval,
        transition=state,
    )


def _check_alike(runs: Sequence[Run]) -> None:
    folders = [run.folder.resolve() for run in runs]
    if twice := [run.name for run in runs if folders.count(run.folder.resolve()) > 1]:
        raise ValueError(
            f"a run must be given once, got {twice[0]} more than once. Repetitions are runs of "
            "their own, of other seeds."
        )
    first = runs[0]
    for run in runs[1:]:
        if run.info.get("suite_hash") != first.info.get("suite_hash"):
            raise ValueError(
                f"runs must be of one suite, got {first.info.get('suite')!r} of {first.name} and "
                f"{run.info.get('suite')!r} of {run.name}."
            )


def _penalties(runs: Sequence[Run], betas: Sequence[float] | None) -> list[float]:
    """Each run's, as given or as it tells itself."""
    if betas is not None and len(betas) != len(runs):
        raise ValueError(
            f"--beta must be given once for each run, {len(runs)} times, got {len(betas)}."
        )
    known = [_penalty_of(run) for run in runs] if betas is None else [*map(_checked, betas)]
    if len(set(known)) < 2:
        raise ValueError(
            f"runs must differ in their KL penalty, got {sorted(set(known))}. "
            "Give runs of at least two."
        )
    return known


def _checked(beta: float) -> float:
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and at least 0, got {beta!r}.")
    return float(beta)


def _counted(runs: Sequence[SharpnessOfRun], key: str) -> np.ndarray:
    """[N] what counts in a trend; NaN for a width that is not known."""
    known = [key != "width" or run.transition in IN_TREND for run in runs]
    return np.where(known, [getattr(run, key) for run in runs], np.nan)
