"""Measure a list of checkpoints as if they were the probes of one run, one model at a time.

The first stage is the base; its answers stay on disk as the reference. Every further one is
loaded, scored and freed, and its record is the probe at the step that is its place in the list.
The result is a run folder like any other, and a scan that was killed goes on where it stopped:
the records on file are replayed, as in a run that is resumed. Of a stage that is measured late, or
again, those after it are kept: what depends on their past is computed anew from their answers.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from crystalmon.analysis.stage_measures import measure_stages
from crystalmon.analysis.verdicts import Verdict, judge_run
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.run_info import run_info
from crystalmon.runs.files import RUN_FILE, RunFolderError, explained, write_whole
from crystalmon.runs.lock import no_other
from crystalmon.runs.names import REFERENCE_FOLDER, SCAN_FILE
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import Event, ProbeRecord, json_value
from crystalmon.runs.reference import INFO_FILE, load_reference
from crystalmon.runs.store import RunStore, write_info
from crystalmon.scan.chat_templates import ChatTemplate, check_chat_template, find_chat_template
from crystalmon.scan.stages import Stage, expand_stages
from crystalmon.scoring.models import find_commit, find_mark, load_model, split_revision
from crystalmon.scoring.plan import VIEWS, View
from crystalmon.scoring.ranks import Ranks, current_ranks, describe
from crystalmon.suites.tasks import TaskSuite, load_suite

STAGES_KEY = "stages"
"""In `run.json`: the stages, each with its `name`, `model`, `revision` and `step`."""
BOTH = "both"
_SHOWN = ("order", "crystallinity", "seed_mass", "free_energy")

T = TypeVar("T")
Tell = Callable[[str], Any]


class ScanError(ValueError):
    """The base cannot be measured, and with it nothing can."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan has found in one view.

    Args:
        folder: the run folder.
        view: `raw` or `chat`.
        failed: by stage that is missing, why.
        found: the content of `scan.json`; empty if the base is missing.
        verdicts: those in it.
    """

    folder: Path
    view: str
    failed: Mapping[str, str]
    found: Mapping[str, Any] = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()


def scan(
    stages: Sequence[Stage],
    output: str | Path,
    suite: str | Path | TaskSuite = "randomness",
    view: str = "raw",
    *,
    dtype: Any = "auto",
    device: Any = None,
    chat_template_from: str | None = None,
    tell: Tell = print,
) -> list[ScanResult]:
    """Measure checkpoints, one at a time, against the first of them.

    In a run of several processes every rank calls this; rank 0 writes and tells.

    Args:
        stages: in the order of training, the base first; a folder of checkpoints stands for all
            of them, see `stages.expand_stages`.
        output: the run folder; with `both`, the folder of two of them, `raw` and `chat`.
        suite: a bundled suite's name, a path, or a `TaskSuite`.
        view: `raw`, `chat` or `both`.
        dtype: of the weights; as they are stored by default.
        device: where the models go; the accelerator if there is one.
        chat_template_from: the name of a stage, or a model, whose chat template those stages get
            that have none; for view `chat` or `both`.
        tell: is given a line for each stage.

    Returns:
        One result a view. A stage that could not be measured is named in it, the others are there.

    Raises:
        ScanError: if the base cannot be measured in any view.
        ValueError: for a faulty list, suite, view or template, a folder of another scan, or one
            that another command is scanning into.
        FileNotFoundError: if a chat template cannot be taken from where it should be.
        RunFolderError: if a run folder cannot be written to.
    """
    _check_view(view, chat_template_from)
    ranks = current_ranks()
    suite, listed = ranks.on_main(lambda: (load_suite(suite), expand_stages(stages)))
    output = Path(output)
    places = ranks.on_main(lambda: _places(output, view))
    told: set[str] = set()
    template = chat_template_from and ranks.on_main(
        lambda: find_chat_template(chat_template_from, listed)
    )
    loading = _Loading(dtype, device, ranks, template or None)
    with _alone({output, *places.values()}, ranks):
        ranks.on_main(lambda: _places(output, view))  # a scan that has ended meanwhile
        views = [_ViewScan(at, own, suite, listed, loading, told) for own, at in places.items()]
        _measure_all(listed, views, loading, _telling(ranks, tell))
        return [one.finish() for one in views]


@contextlib.contextmanager
def _alone(folders: Iterable[Path], ranks: Ranks) -> Iterator[None]:
    """Within, no other command scans into these folders; rank 0 sees to it for all ranks."""
    with contextlib.ExitStack() as held:

        def hold() -> None:
            for folder in folders:
                with explained(folder, "be made"):
                    folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(no_other(folder / ".scan.lock", "a scan"))

        _on_folder(ranks, hold)
        yield


def _measure_all(
    stages: Sequence[Stage], views: Sequence[_ViewScan], loading: _Loading, say: Tell
) -> None:
    """Measure what is not there yet, stage by stage."""
    for step, stage in enumerate(stages):
        todo = [one for one in views if one.wants(step)]
        if not todo:
            say(f"{stage.name}: measured before, kept")
            continue
        if any(one.has_changed(step) for one in todo):
            also = ", and with the base every stage" if step == 0 else ""
            say(f"{stage.name}: its weights have changed: measured again{also}")
        _measure_stage(step, stage, todo, loading, say)
        _free_memory()
        if not any(one.has_base for one in views):
            raise ScanError(f"the base {stage} cannot be measured: {views[0].failed[stage.name]}")


def _check_view(view: str, chat_template_from: str | None) -> None:
    if view not in (*VIEWS, BOTH):
        raise ValueError(f"view must be one of {', '.join((*VIEWS, BOTH))}, got {view!r}.")
    if chat_template_from is not None and view not in ("chat", BOTH):
        raise ValueError(
            f"view must be 'chat' or {BOTH!r} where a chat template is lent, got {view!r}. Leave "
            "the template out, or choose the view."
        )


def _telling(ranks: Ranks, tell: Tell) -> Tell:
    """Rank 0 tells; what that raises, as at a closed pipe, is raised on every rank."""

    def say(line: str) -> None:
        def work() -> None:
            tell(line)

        ranks.on_main(work)

    return say


def _places(output: Path, view: str) -> dict[View, Path]:
    """The run folder of each view.

    Raises:
        ValueError: if the folder holds a scan of one view and both are asked for, or the reverse.
    """
    inner: dict[View, Path] = {own: output / own for own in VIEWS}
    single: dict[View, Path] = {own: output for own in VIEWS if own == view}
    wanted, other = (single, inner) if single else (inner, {"raw": output})
    if any((place / RUN_FILE).is_file() for place in other.values()):
        raise ValueError(
            f"the folder {output} must hold a scan of view {view!r} or none, got one of "
            f"{'one view' if view == BOTH else 'both views'}. Choose another folder."
        )
    return wanted


@dataclass(frozen=True)
class _Loading:
    """How stages are loaded: dtype, device, the ranks that each load one, a template to lend."""

    dtype: Any
    device: Any
    ranks: Ranks
    template: ChatTemplate | None

    @property
    def dtype_name(self) -> str:
        """`auto`, or as `torch.<name>`."""
        return str(self.dtype).removeprefix("torch.")

    def load(self, where: str) -> tuple[Any, Any]:
        """(model, tokenizer) on every rank.

        Raises:
            Exception: if it fails on any; then on every rank.
        """
        return self.ranks.together(lambda: self._load(where))

    def _load(self, where: str) -> tuple[Any, Any]:
        model, tokenizer = load_model(where, dtype=self.dtype)
        model.to(self.device or torch.accelerator.current_accelerator() or "cpu")
        if self.template is not None:
            self.template.lend(tokenizer)
        return model, tokenizer


def _on_folder(ranks: Ranks, work: Callable[[], T]) -> T:
    """The result of rank 0's work on a run folder, on every rank.

    Raises:
        RunFolderError: on every rank, if the folder cannot be written to.
        Exception: what else the work raises; see `Ranks.on_main`.
    """

    def attempt() -> tuple[Any, str]:
        try:
            return work(), ""
        except RunFolderError as error:
            return None, str(error)

    result, failure = ranks.on_main(attempt)
    if failure:
        raise RunFolderError(failure)
    return result


def _measure_stage(
    step: int, stage: Stage, views: Sequence[_ViewScan], loading: _Loading, tell: Tell
) -> None:
    """Load a stage once and probe it in each view; what fails is noted there and told."""
    try:
        model, tokenizer = loading.load(stage.where)
    except Exception as error:
        for one in views:
            one.fail(step, error)
        tell(f"{stage.name}: failed: {views[0].failed[stage.name]}")
        return
    for one in views:
        label = f"{stage.name} ({one.view})" if len(views) > 1 else stage.name
        try:
            line = one.measure(step, model, tokenizer)
        except RunFolderError:  # no other stage would fare better
            raise
        except Exception as error:
            one.fail(step, error)
            line = f"failed: {one.failed[stage.name]}"
        tell(f"{label}: {line}")


def _free_memory() -> None:
    """After a stage: at most one model is in memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _ViewScan:
    """One view's run folder: what is in it already, and what is added to it.

    Args:
        folder: the run folder.
        view: how prompts are rendered.
        suite: what is asked.
        stages: all of them, the base first.
        loading: in which dtype, and the ranks; rank 0 reads and writes.
        told: what has been told once, in whichever view.
    """

    def __init__(
        self,
        folder: Path,
        view: View,
        suite: TaskSuite,
        stages: Sequence[Stage],
        loading: _Loading,
        told: set[str],
    ) -> None:
        self.view: View = view
        self.failed: dict[str, str] = {}
        self._folder, self._suite, self._stages = folder, suite, stages
        self._loading, self._ranks = loading, loading.ranks
        self._store: RunStore | None = None
        self._told = told
        self._info, self._records, self._changed = _on_folder(self._ranks, self._take_up)

    def _take_up(self) -> tuple[dict[str, Any], dict[int, ProbeRecord], set[int]]:
        """What an earlier scan into this folder has left, if it was the same one.

        Returns:
            The content of `run.json`; the records by step; the steps of those whose stages have
            other weights by now.

        Raises:
            ValueError: if it was another one, or no scan.
            RunFolderError: if the folder cannot be written to.
        """
        if not (self._folder / RUN_FILE).is_file():
            RunStore.check_writable(self._folder)
            return {}, {}, set()
        run = read_run(self._folder)
        config = run.info.get("config", {})
        if (run.info.get("suite_hash"), config) != (self._suite.hash, self._config()):
            raise ValueError(
                f"the folder {self._folder} must hold the same scan or none, got "
                f"{_describe(run.info)}. Give the same stages, suite, view, dtype and chat "
                "template, or another folder."
            )
        RunStore.check_writable(self._folder)
        whole = (self._folder / REFERENCE_FOLDER / INFO_FILE).is_file()
        # a stage without a mark was killed before it was noted: with which weights is not known
        marks = {s["step"]: s["mark"] for s in run.info.get(STAGES_KEY, ()) if "mark" in s}
        records = {r.step: r for r in run.records if r.step in marks} if whole else {}
        changed = {step for step in records if self._is_other(step, marks[step])}
        return dict(run.info), records, changed

    def _config(self) -> dict[str, Any]:
        """What makes two scans the same one, beside the suite."""
        listed = [str(stage) for stage in self._stages]
        lent = {} if self._loading.template is None else self._loading.template.to_json()
        own = {"view": self.view, "dtype": self._loading.dtype_name, STAGES_KEY: listed}
        return own | (lent if self.view == "chat" else {})

    def _is_other(self, step: int, mark: str | None) -> bool:
        """Whether a stage's weights have changed beyond doubt since they were marked."""
        now = find_mark(self._stages[step].where)
        return None not in (mark, now) and mark != now

    @property
    def has_base(self) -> bool:
        """Whether the base has been measured: without it nothing else can be."""
        return 0 in self._records

    def wants(self, step: int) -> bool:
        """Whether this stage can and must still be measured."""
        return (step == 0 or self.has_base) and (
            step not in self._records or self.has_changed(step)
        )

    def has_changed(self, step: int) -> bool:
        """Whether this stage was measured, with other weights than it has now."""
        return step in self._changed

    def fail(self, step: int, error: Exception) -> None:
        """Note why a stage is missing."""
        known = isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError)
        text = " ".join((str(error) if known else describe(error)).split())
        if step in self._records:
            text += " (what was measured with its earlier weights stands)"
        self.failed[self._stages[step].name] = text
        if self._info:
            self._info[STAGES_KEY][step]["error"] = text

    def measure(self, step: int, model: Any, tokenizer: Any) -> str:
        """Probe a loaded stage, as a resumed run would, and write it down; what to tell of it.

        The stages after it that were measured before are written anew behind it, in one go; a kill
        in that instant costs scoring them again.
        """
        if self.view == "chat":
            check_chat_template(tokenizer)
        base = "initial" if step == 0 else self._folder / REFERENCE_FOLDER
        monitor = Monitor(
            model, tokenizer, self._suite, base, view=self.view, answers_only=step > 0
        )
        if step == 0:  # and what was measured against another base is no more
            self._info, self._records = self._new_info(monitor), {}
            _on_folder(self._ranks, lambda: self._keep_base(monitor))
        before = {s: each for s, each in self._records.items() if s < step}
        for each in before.values():
            monitor.replay(each)
        record = monitor.probe(step, unchanged=step == 0)  # its answers are the reference's
        made = [(record, monitor.events)]
        for later in [s for s in sorted(self._records) if s > step]:
            made.append((monitor.remeasure(self._records[later]), monitor.events))
        _on_folder(self._ranks, lambda: self._write(made, monitor))
        self._records = before | {each.step: each for each, _ in made}
        self._changed = self._changed - {step} if step else set()
        return _line(record, monitor.seconds_a_probe) + self._about_tokens(monitor)

    def _new_info(self, monitor: Monitor) -> dict[str, Any]:
        info = run_info(monitor, self._config(), "scan", len(self._stages) - 1)
        info[STAGES_KEY] = [
            {"name": stage.name, "model": model, "revision": revision, "step": step}
            for step, stage in enumerate(self._stages)
            for model, revision in [split_revision(stage.where)]
        ]
        return info

    def _keep_base(self, monitor: Monitor) -> None:
        """Rank 0: the base's answers to disk, and from there."""
        folder = self._folder / REFERENCE_FOLDER
        with explained(self._folder, "take the base's answers"):
            (self._folder / SCAN_FILE).unlink(missing_ok=True)
            monitor.reference.save(folder)
        monitor.reference = load_reference(folder)

    def _note(self, step: int, monitor: Monitor) -> None:
        """Rank 0: what is known of a stage once it is loaded: which weights, and its tokens."""
        entry = self._info[STAGES_KEY][step]
        entry.pop("error", None)
        entry["mark"] = find_mark(self._stages[step].where)
        entry["revision"] = find_commit(self._stages[step].where) or entry["revision"]
        entry["shares_tokens"] = monitor.shares_tokens

    def _write(self, made: Sequence[tuple[ProbeRecord, list[Event]]], monitor: Monitor) -> None:
        """Rank 0: a probe, and those after it, to the run folder in place of what was there."""
        step = made[0][0].step
        with explained(self._folder, f"take the probe at step {step}"):
            (self._folder / SCAN_FILE).unlink(missing_ok=True)  # it speaks of other records
        if self._store is None or max(self._records, default=-1) >= step:
            # what is on file from here on counts no more, nor do the events that it raised
            last = max((s for s in self._records if s < step), default=None)
            self._store = RunStore.open(self._folder, self._info, resume_step=last)
        for record, events in made:
            self._store.append(record, events)
        self._note(step, monitor)  # not before: a new mark must not stand beside an old record
        write_info(self._folder, self._info)

    def _about_tokens(self, monitor: Monitor) -> str:
        note = (
            "\n  other tokens than the base's for the same suite: its answers are compared by "
            "choice, and what needs the vocabulary (free energy and its like) is NaN"
        )
        if monitor.shares_tokens or note in self._told:
            return ""
        self._told.add(note)
        return note

    def finish(self) -> ScanResult:
        """Write `scan.json` from the run folder."""
        found, verdicts = _on_folder(self._ranks, self._conclude) if self.has_base else ({}, ())
        return ScanResult(self._folder, self.view, dict(self.failed), found, verdicts)

    def _conclude(self) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
        write_info(self._folder, self._info)
        run = read_run(self._folder)
        verdicts = judge_run(run)
        found = {"view": self.view, **measure_stages(run)}
        found["verdicts"] = [verdict.to_json() for verdict in verdicts]
        text = json.dumps(json_value(found), indent=2, allow_nan=False, ensure_ascii=False)
        with explained(self._folder, f"take {SCAN_FILE}"):
            write_whole(self._folder / SCAN_FILE, text.encode() + b"\n")
        return found, verdicts


def _describe(info: Mapping[str, Any]) -> str:
    """What a run folder holds, from its `run.json`."""
    config = info.get("config", {})
    if STAGES_KEY not in config:
        return "the run of a training"
    lent = config.get("chat_template_from")
    return (
        f"one of {' '.join(config[STAGES_KEY])} with suite {info.get('suite')!r} "
        f"({info.get('suite_hash')}) in view {config.get('view')!r}, dtype {config.get('dtype')}"
        f"{f', chat template from {lent}' if lent else ''}"
    )


def _line(record: ProbeRecord, seconds: float | None) -> str:
    """The time that a stage's scoring took, and its main figures."""
    shown = [
        f"{key.replace('_', ' ')} {record.metrics.get(key, float('nan')):.3f}" for key in _SHOWN
    ]
    return f"{seconds or record.seconds:.1f} s, {', '.join(shown)} nats, {record.phase}"
