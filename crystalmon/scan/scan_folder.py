"""The run folder of a scan in one view: what an earlier scan has left in it, and what is added.

All ranks call the same methods and know the same; rank 0 alone reads and writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystalmon.analysis.stage_measures import measure_stages
from crystalmon.analysis.verdicts import Verdict, judge_run
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.run_info import run_info
from crystalmon.runs.files import RUN_FILE, RunFolderError, explained, json_bytes, write_whole
from crystalmon.runs.json_values import json_value
from crystalmon.runs.names import REFERENCE_FOLDER, SCAN_FILE
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import Event, ProbeRecord
from crystalmon.runs.reference import INFO_FILE, load_reference
from crystalmon.runs.store import RunStore, write_info
from crystalmon.scan.stages import Stage
from crystalmon.scoring.models import find_commit, find_mark, split_revision
from crystalmon.scoring.ranks import CONFIGURATION_ERRORS, Ranks, describe
from crystalmon.scoring.rendering import View
from crystalmon.suites.tasks import TaskSuite

STAGES_KEY = "stages"
"""In `run.json`: the stages, each with its `name`, `model`, `revision` and `step`."""


def scan_config(
    view: View, dtype: Any, stages: Sequence[Stage], source: str | None, template: Any
) -> dict[str, Any]:
    """What makes two scans the same one, beside the suite; `source` has lent the template."""
    lent = {}
    if source is not None and view == "chat":
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
        lent = {"chat_template_from": source, "chat_template": digest[:16]}
    listed = [str(stage) for stage in stages]
    return {"view": view, "dtype": str(dtype).removeprefix("torch."), STAGES_KEY: listed, **lent}


class ScanFolder:
    """A run folder, what is known to be in it, and what is missing.

    Args:
        path: the run folder.
        suite: what is asked.
        stages: all of them, the base first.
        config: from `scan_config`.
        ranks: the processes.

    Attributes:
        records: what has been measured, by step.
        changed: the steps of the stages that have other weights now than they were measured with.
        failed: by name of a stage that could not be measured, why.

    Raises:
        ValueError: if the folder holds another scan, or a run that is no scan.
        RunFolderError: if the folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        suite: TaskSuite,
        stages: Sequence[Stage],
        config: Mapping[str, Any],
        ranks: Ranks,
    ) -> None:
        self.path, self.reference = path, path / REFERENCE_FOLDER
        self.suite, self.view = suite, config["view"]
        self._stages, self._config, self._ranks = stages, config, ranks
        self._store: RunStore | None = None
        self._info, self.records, self.changed = ranks.on_main(self._take_up, RunFolderError)
        self.failed: dict[str, str] = {}

    @property
    def has_base(self) -> bool:
        """Whether the base has been measured: without it nothing else can be."""
        return 0 in self.records

    def wants(self, step: int) -> bool:
        """Whether this stage can and must still be measured."""
        missing = step not in self.records or step in self.changed
        return missing and (step == 0 or self.has_base)

    def fail(self, step: int, error: Exception) -> None:
        """Note why a stage is missing."""
        known = isinstance(error, (*CONFIGURATION_ERRORS, ModuleNotFoundError))
        text = " ".join((str(error) if known else describe(error)).split())
        if step in self.records:
            text += " (what was measured with its earlier weights stands)"
        self.failed[self._stages[step].name] = text
        if self._info:
            self._info[STAGES_KEY][step]["error"] = text

    def begin(self, monitor: Monitor) -> None:
        """Keep a new base's answers; what was measured against another base counts no more."""
        self._info = run_info(monitor, self._config, "scan", len(self._stages) - 1)
        self._info[STAGES_KEY] = [
            {"name": stage.name, "model": model, "revision": revision, "step": step}
            for step, stage in enumerate(self._stages)
            for model, revision in [split_revision(stage.where)]
        ]
        self.records = {}
        self._ranks.on_main(lambda: self._keep_base(monitor), RunFolderError)

    def write(self, made: Sequence[tuple[ProbeRecord, list[Event]]], monitor: Monitor) -> None:
        """Write a probe with its events, then those of the stages after it, measured anew."""
        step = made[0][0].step
        self._ranks.on_main(lambda: self._write(made, monitor), RunFolderError)
        before = {each: record for each, record in self.records.items() if each < step}
        self.records = before | {record.step: record for record, _ in made}
        self.changed = self.changed - {step} if step else set()

    def conclude(self) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
        """Write `scan.json`; its content, and the verdicts in it, are empty without the base."""
        return self._ranks.on_main(self._conclude, RunFolderError) if self.has_base else ({}, ())

    def _take_up(self) -> tuple[dict[str, Any], dict[int, ProbeRecord], set[int]]:
        """What an earlier scan has left: the content of `run.json`, `records` and `changed`."""
        if not (self.path / RUN_FILE).is_file():
            RunStore.check_writable(self.path)
            return {}, {}, set()
        run = read_run(self.path)
        if (run.info.get("suite_hash"), run.info.get("config")) != (self.suite.hash, self._config):
            raise ValueError(
                f"the folder {self.path} must hold the same scan or none, got "
                f"{_describe(run.info)}. Give the same stages, suite, view, dtype and chat "
                "template, or another folder."
            )
        RunStore.check_writable(self.path)
        has_base = (self.reference / INFO_FILE).is_file()
        # a stage without a mark was killed before it was noted: with which weights is not known
        marks = {s["step"]: s["mark"] for s in run.info.get(STAGES_KEY, ()) if "mark" in s}
        records = {r.step: r for r in run.records if r.step in marks} if has_base else {}
        now = {step: find_mark(self._stages[step].where) for step in records}
        changed = {s for s in records if None not in (marks[s], now[s]) and marks[s] != now[s]}
        return dict(run.info), records, changed

    def _keep_base(self, monitor: Monitor) -> None:
        with explained(self.path, "be written to"):
            (self.path / SCAN_FILE).unlink(missing_ok=True)
        monitor.reference.save(self.reference)
        monitor.reference = load_reference(self.reference)

    def _write(self, made: Sequence[tuple[ProbeRecord, list[Event]]], monitor: Monitor) -> None:
        step = made[0][0].step
        with explained(self.path, f"take the probe at step {step}"):
            (self.path / SCAN_FILE).unlink(missing_ok=True)  # it speaks of other records
        if self._store is None or max(self.records, default=-1) >= step:
            # the lines from this step on are superseded, with their events
            last = max((each for each in self.records if each < step), default=None)
            self._store = RunStore.open(self.path, self._info, resume_step=last)
        for record, events in made:
            self._store.append(record, events)
        # not before: a new mark must not stand beside an old record
        entry, where = self._info[STAGES_KEY][step], self._stages[step].where
        entry.pop("error", None)
        entry["mark"] = find_mark(where)
        entry["revision"] = find_commit(where) or entry["revision"]
        entry["shares_tokens"] = monitor.shares_tokens
        write_info(self.path, self._info)

    def _conclude(self) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
        write_info(self.path, self._info)
        run = read_run(self.path)
        verdicts = judge_run(run)
        found = {"view": self._config["view"], **measure_stages(run)}
        found = json_value(found | {"verdicts": verdicts})
        with explained(self.path, f"take {SCAN_FILE}"):
            write_whole(self.path / SCAN_FILE, json_bytes(found, indent=2))
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
