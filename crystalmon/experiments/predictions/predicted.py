"""The predictions on a folder of results, as a result of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from crystalmon.experiments.common.experiment import Shown
from crystalmon.experiments.predictions.judgements import Prediction, judge_predictions
from crystalmon.runs.results import Result, read_results

OF_ONE_MODEL = ("landscape", "context", "drift")


class Predictions(Shown):
    """All predictions on what there is; it needs neither a model nor torch."""

    name: ClassVar[str] = "predictions"

    @staticmethod
    def measure(folder: Path) -> Result:
        """Test the predictions on the results in a folder, the latest of each experiment.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if one is damaged, or they are of several models.
        """
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
            estimates={key: each.effect for key, each in found.items()},
            detail={"predictions": [asdict(each) for each in found.values()]},
        )


def _judged(folder: Path, results: Sequence[Result]) -> dict[str, Prediction]:
    try:
        return judge_predictions(results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"a result in {folder} lacks what a prediction needs: {type(error).__name__} {error}. "
            "This crystalmon has not written it: measure it again."
        ) from error


def _model_of(results: Sequence[Result]) -> str | None:
    names = {each.models.get("model") for each in results}
    if len(names) > 1:
        told = ", ".join(f"{each.experiment} of {each.models.get('model')}" for each in results)
        raise ValueError(
            f"results must be of one model, got {told}. Keep each model's in a folder of its own."
        )
    return next(iter(names), None)
