"""The live half of `benchmark_budget.py`: SmolLM2-135M's SFT recipe, watched under a limit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo import ROOT, environment

from crystalmon import Run, read_run

FOLDER = Path("runs/budget/live")
LIMITS = (0.02,)
CONFIG = ROOT / "recipes/smollm2/sft.yaml"
OPTIONS = {"report_to": "none", "disable_tqdm": "true", "logging_steps": 100}
POLL = 5.0
"""Seconds between two looks at a run that trains."""


def live_rows(steps: int) -> list[dict[str, Any]]:
    """Train under each limit, and print when the suite's onset was told; finished runs are kept.

    The truth is a run of which every step is probed with all prompts. It ends when it has told the
    onset. It is the first, so that the base is remembered by the others.
    """
    truth = _onset(_trained(FOLDER / "every-step", steps, {"probe_every": 1, "max_overhead": 1}))
    rows = []
    for limit in LIMITS:
        run = _trained(FOLDER / f"limit-{limit:g}", steps, {"max_overhead": limit})
        rows.append(
            {
                "limit": limit,
                "spent": run.info["overhead"],
                "probes": len(run.records),
                "onset": _onset(run),
                "onset_at_every_step": truth,
            }
        )
        print(
            f"SmolLM2-135M, {steps} steps, limit {100 * limit:g}%: spent "
            f"{100 * run.info['overhead']:.1f}%, {len(run.records)} probes, the suite's onset told "
            f"at step {_onset(run)}; by probing every step at {truth}"
        )
    return rows


def _trained(folder: Path, steps: int, options: dict[str, Any]) -> Run:
    """A run, trained now if it is not there; one that probes every step stops at its onset."""
    until_onset = options.get("probe_every") == 1
    if (run := _read(folder)) is not None and _is_over(run, steps, until_onset):
        return run
    given = {**OPTIONS, **options, "max_steps": steps, "dataset_size": 8 * steps}
    given |= {"output_dir": folder}
    command = [sys.executable, str(ROOT / "recipes/sft.py"), "--config", str(CONFIG)]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache = {"CRYSTALMON_CACHE": str(folder.parent.resolve() / "cache")}
    log = folder.with_name(f"{folder.name}.log")
    print(f"training {folder}, log in {log}", file=sys.stderr, flush=True)
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env=environment(folder.parent) | cache, stdout=out, stderr=out
        )
        while child.poll() is None:
            time.sleep(POLL)
            run = _read(folder) if until_onset else None
            if run is not None and _onset(run) is not None:
                child.terminate()
                child.wait()
    run = _read(folder)
    if run is None or not _is_over(run, steps, until_onset):
        raise RuntimeError(f"{folder} was not trained to its end: see {log}.")
    return run


def _read(folder: Path) -> Run | None:
    try:
        return read_run(folder)
    except (OSError, ValueError):
        return None


def _is_over(run: Run, steps: int, until_onset: bool) -> bool:
    return _onset(run) is not None if until_onset else run.records[-1].step == steps


def _onset(run: Run) -> int | None:
    """The step at which the suite's onset was told."""
    kinds = (each for each in run.events if each.kind == "nucleation_onset" and each.task is None)
    return next((event.step for event in kinds), None)
