"""The predictions on a folder of results, as a result of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmon.experiments.predictions.judgements import (
    Prediction,
    format_predictions,
    judge_predictions,
)
from crystalmon.runs.records import number_value
from crystalmon.runs.results import Estimate, Result, read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = (
    "free_energy_and_alpha_c",
    "free_energy_and_drift",
    "threshold",
    "hysteresis",
    "fluctuations",
    "penalty_and_heat_capacity",
    "penalty_and_width",
    "drift",
    "relief",
)
"""What the effects are called, in the order of `judge_predictions`."""
OF_ONE_MODEL = ("landscape", "context", "drift")


class Predictions:
    """All predictions on what there is; it needs neither a model nor torch."""

    name = "predictions"

    @staticmethod
    def measure(folder: Path) -> Result:
        """Test the predictions on the results in a folder, the latest of each experiment.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if one is damaged, or they are of several models.
        """
        began = time.perf_counter()
        results = [each for each in read_results(folder) if each.experiment != Predictions.name]
        if not results:
            raise FileNotFoundError(
                f"{folder} must hold results of experiments, found none. Run some first: "
                "crystalmon landscape, context, drift or sharpness."
            )
        latest = {each.experiment: each for each in results}
        model = _model_of([latest[name] for name in OF_ONE_MODEL if name in latest])
        found = _judged(folder, list(latest.values()))
        return Result(
            experiment=Predictions.name,
            settings={"results": sorted(latest)},
            models={"model": model},
            estimates={key: each.effect for key, each in zip(KEYS, found, strict=True)},
            detail={"predictions": [each.to_json() for each in found]},
            seconds=time.perf_counter() - began,
        )

    @staticmethod
    def table(result: Result) -> str:
        """A line each: claim, verdict, effect."""
        return format_predictions(_predictions(result))

    @staticmethod
    def figure(result: Result) -> Figure:
        """Each effect with its interval."""
        from crystalmon.experiments.predictions.predictions_figure import predictions_figure

        return predictions_figure(_predictions(result))


def _judged(folder: Path, results: Sequence[Result]) -> tuple[Prediction, ...]:
    try:
        return judge_predictions(results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"results in {folder} must be as this crystalmon writes them, and one lacks what a "
            f"prediction needs: {type(error).__name__} {error}. Measure it again."
        ) from error


def _model_of(results: Sequence[Result]) -> str | None:
    names = {each.models.get("model") for each in results}
    if len(names) > 1:
        told = ", ".join(f"{each.experiment} of {each.models.get('model')}" for each in results)
        raise ValueError(
            f"results must be of one model, got {told}. Keep each model's in a folder of its own."
        )
    return next(iter(names), None)


def _predictions(result: Result) -> list[Prediction]:
    return [
        Prediction(**{**number_value(each), "effect": Estimate(**number_value(each["effect"]))})
        for each in result.detail["predictions"]
    ]
