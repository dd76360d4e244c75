"""Experiments inside a training: begun on the base, measured at their own steps.

Results go to `<run folder>/experiments/<name>-<step>.json`, the latest one's table and figure
beside them. Every rank calls everything at the same steps; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from crystalmon import experiments as registry
from crystalmon.experiments.common.command import DISPLAY_SUFFIXES, write_display
from crystalmon.experiments.common.experiment import Experiment
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.subject import Subject
from crystalmon.monitor.budget import Budget
from crystalmon.monitor.failures import Failures
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.recorder import Recorder
from crystalmon.runs.files import explained, write_whole
from crystalmon.runs.names import EXPERIMENTS_FOLDER, path_part
from crystalmon.runs.results import Result, write_result
from crystalmon.scoring.isolation import same_random_states, undisturbed
from crystalmon.scoring.models import free_memory, load_whole, model_name, without_adapters
from crystalmon.scoring.ranks import RankError
from crystalmon.suites.checks import is_whole

BEGUN_FILE = "begun.json"
BASE_KEY = "base"
"""In that file, beside the experiments' settings: the id of the base on which they began."""

SUPERSEDED = "superseded"

Experiments = Mapping[str, int] | Mapping[Experiment, int] | Mapping[str | Experiment, int]
"""A name or an experiment → its interval in steps."""


def check_experiments(given: Experiments | None, **defaults: Any) -> dict[Experiment, int]:
    """The experiments and their intervals in steps.

    Args:
        given: by name, with the default settings, or as an experiment.
        defaults: settings for experiments that are given by name and have them.

    Raises:
        TypeError: if it is not such a mapping.
        ValueError: if a name is unknown, an interval not positive, or an experiment given twice.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"experiments must be a mapping, got {type(given).__name__}.")
    found: dict[Experiment, int] = {}
    for key, every in (given or {}).items():
        experiment = _made(key, defaults) if isinstance(key, str) else key
        if not isinstance(experiment, Experiment):
            raise TypeError(
                f"an experiment must be a name or an Experiment, got {type(key).__name__}."
            )
        if path_part(experiment.name) != experiment.name:
            raise ValueError(
                f"an experiment's name must be able to name a file, got {experiment.name!r}."
            )
        if not is_whole(every) or every < 1:
            raise ValueError(
                f"the interval of {experiment.name} must be a positive number of steps, got "
                f"{every!r}."
            )
        if experiment.name in (each.name for each in found):
            raise ValueError(
                f"an experiment must be there once, got {experiment.name} twice. Their results "
                "would overwrite each other."
            )
        found[experiment] = int(every)
    return found


def _made(name: str, defaults: Mapping[str, Any]) -> Experiment:
    if name not in registry.ON_MODELS:
        raise ValueError(
            f"an experiment must be one of {', '.join(registry.ON_MODELS)}, got {name!r}."
        )
    kind = getattr(registry, registry.ON_MODELS[name])
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in defaults.items() if key in fields})


class ExperimentsInTraining:
    """The experiments of one training.

    Args:
        experiments: with their intervals in steps.
        monitor: of this training, with its base.
        tokenizer: the trainer's.
        folder: the run folder.
        budget: counts their time, which its share does not limit.
        failures: where failures are counted.
        recorder: sends each result to the trackers; None but on rank 0.
    """

    def __init__(
        self,
        experiments: Mapping[Experiment, int],
        monitor: Monitor,
        tokenizer: Any,
        folder: Path,
        budget: Budget,
        failures: Failures,
        recorder: Recorder | None,
    ) -> None:
        self._every = experiments
        self._measured: dict[str, int] = {}  # by name, the step of the latest result
        self._subject = Subject(monitor.model, tokenizer, None, monitor.ranks)
        self._ranks = monitor.ranks
        self._folder = folder / EXPERIMENTS_FOLDER
        self._budget, self._failures, self._recorder = budget, failures, recorder

    def begin(self, monitor: Monitor, step: int) -> None:
        """Begin what needs the base, on the base; on resume, only what had not begun.

        Raises:
            FileNotFoundError: if the base is not available.
            ValueError: if it does not suit an experiment.
            RunFolderError: if the folder cannot be written to.
        """
        base_id = monitor.reference.info.id
        self._measured, begun = self._ranks.on_main(lambda: self._take_up(step, base_id))
        waiting = [
            each
            for each in self._every
            if type(each).begin is not Experiment.begin
            and begun.get(each.name) != _plain(each.settings)
        ]
        if not waiting:
            return
        names = ", ".join(each.name for each in waiting)
        with self._base(monitor, step, names) as base:
            for each in waiting:
                # what another run has left, or one with other settings, is of another base
                self._ranks.on_main(
                    partial(shutil.rmtree, self._folder / each.name, ignore_errors=True)
                )
                each.begin(base, self._folder)
                begun[each.name] = _plain(each.settings)
        del base
        free_memory()
        self._ranks.on_main(lambda: self._note(begun | {BASE_KEY: base_id}))

    def _note(self, begun: Mapping[str, Any]) -> None:
        """Rank 0: store what has begun, and with what settings."""
        with explained(self._folder, f"take {BEGUN_FILE}"):
            write_whole(self._folder / BEGUN_FILE, json.dumps(begun).encode())

    def _take_up(self, step: int, base_id: str) -> tuple[dict[str, int], dict[str, Any]]:
        """Rank 0: what this run has measured and begun, with superseded results moved aside.

        Only a resumed run keeps what began on another base.

        A run without experiments does this too, since its folder may be an older run's.
        """
        measured: dict[str, int] = {}
        if not self._every and not self._folder.is_dir():
            return measured, {}
        with explained(self._folder, "take results of experiments"):
            self._folder.mkdir(parents=True, exist_ok=True)
            if step == 0 and _begun(self._folder / BEGUN_FILE).get(BASE_KEY) != base_id:
                for each in self._every:
                    shutil.rmtree(self._folder / each.name, ignore_errors=True)
                (self._folder / BEGUN_FILE).unlink(missing_ok=True)
            for file in self._folder.glob("*.json"):
                found = re.fullmatch(r"(\w+)-(\d+)", file.stem)
                if found is None:
                    continue
                name, at = found[1], int(found[2])
                if step > 0 and at <= step:
                    measured[name] = max(measured.get(name, -1), at)
                    continue
                _put_aside(file, self._folder / SUPERSEDED)
                for suffix in DISPLAY_SUFFIXES:  # they may show what is now superseded
                    (self._folder / f"{name}.{suffix}").unlink(missing_ok=True)
        return measured, _begun(self._folder / BEGUN_FILE)

    @contextlib.contextmanager
    def _base(self, monitor: Monitor, step: int, names: str) -> Iterator[Subject]:
        """The base itself: this model before any step, or the reference's, loaded for a while."""
        name = monitor.reference.info.model
        if monitor.is_own_base and step == 0:
            own = model_name(monitor.model) or None
            bare = monitor.without_adapters
            with without_adapters(monitor.model) if bare else contextlib.nullcontext():
                yield dataclasses.replace(self._subject, name=own, _routes=[])
            return
        advice = "Name the base model: CrystalCallback(reference='<model id or path>')."
        if monitor.is_own_base or not name:
            raise FileNotFoundError(
                f"{names} must begin on the base, and at step {step} it is gone. {advice}"
            )
        try:
            model, _ = self._ranks.together(partial(load_whole, name))
        except (OSError, ValueError, RankError) as error:
            raise FileNotFoundError(
                f"{names} must begin on the base itself, and {name!r} cannot be loaded: {error} "
                f"{advice}"
            ) from error
        model.to(next(monitor.model.parameters()).device)
        try:
            # both models read the same tokens, those of the one that is trained
            yield Subject(model, self._subject.tokenizer, name, self._ranks)
        finally:
            del model  # and the caller's, then its memory is free

    def measure(self, step: int, last: bool = False, *passed: type[Exception]) -> None:
        """Measure what is due now; at the last step, all.

        Errors of the kinds `passed` are raised; others are counted.
        """
        for each, every in self._every.items():
            if step > self._measured.get(each.name, -1) and (last or step % every == 0):
                self._measured[each.name] = step
                self._measure(each, step, *passed)

    def _measure(self, each: Experiment, step: int, *passed: type[Exception]) -> None:
        began, result, failure = time.perf_counter(), None, None
        failed = f"{each.name} at step {step} failed; training goes on"
        with self._budget.spending(apart=True):
            try:
                with self._failures.caught(failed, *passed), undisturbed(self._subject.model):
                    result = each.measure(self._subject, self._folder, Parts())
            except Exception as error:
                failure = error
            if not self._ranks.all(failure is None):
                raise failure or RankError(f"another rank could not measure {each.name}")
            if self._ranks.all(result is not None) and result is not None:
                result = dataclasses.replace(result, step=step, seconds=time.perf_counter() - began)
                if self._recorder is not None and self._recorder.owns_folder:
                    self._keep(each, result, self._recorder)

    def _keep(self, each: Experiment, result: Result, recorder: Recorder) -> None:
        """Rank 0: store the result with its table and figure, and hand it on."""
        what = f"{each.name} at step {result.step} could not be stored; training goes on"
        with self._failures.caught(what), same_random_states():
            write_result(self._folder, result)
            write_display(self._folder, each.name, each.table(result), each.figure(result))
        recorder.log_result(result)


def _put_aside(file: Path, folder: Path) -> None:
    """Move a file into a folder, under a new name if an earlier start has left one there."""
    folder.mkdir(exist_ok=True)
    others = (f"{file.stem}.{number}{file.suffix}" for number in itertools.count(2))
    names = itertools.chain([file.name], others)
    file.replace(next(folder / name for name in names if not (folder / name).exists()))


def _begun(file: Path) -> dict[str, Any]:
    """The settings of the experiments that have begun; none if the file cannot be read."""
    found = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _plain(settings: Mapping[str, Any]) -> Any:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))
