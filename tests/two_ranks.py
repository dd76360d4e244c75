"""One of two processes that go through scenarios; `test_ranks.py` starts both and judges.

python two_ranks.py FOLDER RANK

Importing torch takes far longer than any scenario, so all of them share two processes. Each has a
process group, a model, a cache and a folder of its own, and what it patches is undone: one that
fails or hangs leaves the others as they are. What came out is appended to FOLDER/RANK.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments

import crystalmon.monitor.base_model as base_model
from crystalmon import CrystalCallback, Monitor, Task, TaskSuite, load_suite, read_run
from crystalmon.experiments.common.scored_texts import Text
from crystalmon.experiments.common.subject import Subject
from crystalmon.monitor.budget import Budget
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.reader import run_folders
from crystalmon.runs.reference import load_reference
from crystalmon.scoring.models import load_model
from crystalmon.scoring.ranks import Ranks, current_ranks

LONGEST = 600
"""Seconds after which both processes are stopped."""
ONE_SCENARIO = timedelta(seconds=60)
"""Waiting for the other process longer than this is an error, not a hang."""

EXPERIMENT = {
    "scoring": RuntimeError("a broken kernel"),
    "handing on": RuntimeError("a broken kernel"),
    "choosing": RuntimeError("a broken kernel"),
    "drawing": RuntimeError("a broken kernel"),
    "full": torch.OutOfMemoryError("no memory"),
}
"""By when an experiment fails on rank 1: what it raises there."""


@dataclass
class Scene:
    """What a scenario has to itself."""

    model: Any
    tokenizer: Any
    suite: TaskSuite
    ranks: Ranks
    patch: pytest.MonkeyPatch
    folder: Path

    def monitor(self, *more: Any) -> Monitor:
        return Monitor(self.model, self.tokenizer, self.suite, *more)

    def broken(self, error: Exception, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """A function that fails on rank 1."""

        def called(*given: Any, **options: Any) -> Any:
            if self.ranks.rank == 1:
                raise error
            return otherwise(*given, **options)

        return called


def out_of_memory(scene: Scene) -> list[Any]:
    before = scene.monitor().probe(0)
    monitor, sizes, forward = scene.monitor(), [], scene.model.forward

    def small(input_ids: torch.Tensor, **options: Any) -> Any:
        if scene.ranks.rank == 1 and input_ids.numel() > 300:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(input_ids.numel())
        return forward(input_ids=input_ids, **options)

    scene.model.forward = small
    after = monitor.probe(0)
    same = abs(after.metrics["entropy"] - before.metrics["entropy"]) < 1e-6
    return [same, sizes[-1] <= 300, len(sizes)]


def base_of_the_cache(scene: Scene) -> list[Any]:
    before = scene.monitor().probe(0, unchanged=True)
    seen, kind = [], type(scene.model)
    run = kind.__call__

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        seen.append(1)
        return run(self, *given, **options)

    scene.patch.setattr(kind, "__call__", counted)
    second = scene.monitor()
    after = second.probe(0, unchanged=True)
    return [second.remembered, len(seen), before.metrics == after.metrics]


def failing_probe(when: str, scene: Scene) -> None:
    broken = scene.broken(RuntimeError("a broken kernel"), scene.model.forward)
    if when == "choosing":
        scene.model.forward = broken
    monitor = scene.monitor()
    scene.model.forward = broken
    monitor.probe(0)


def failing_experiment(when: str, scene: Scene) -> None:
    subject = Subject(scene.model, scene.tokenizer, "tiny", scene.ranks)
    texts = [Text((1, 2, 3), (1, 2)), Text((4, 5), (1,))]
    error = EXPERIMENT[when]
    if when not in ("choosing", "drawing"):
        subject.score(texts, lambda index, log_p: None)
    if when == "handing on":
        subject.score(texts, scene.broken(error, lambda index, log_p: None))
        return
    scene.model.forward = scene.broken(error, scene.model.forward)
    if when == "drawing":
        subject.generate([(1, 2), (1, 2, 3)], 3)
    subject.score(texts, lambda index, log_p: None)


def base_by_name(scene: Scene) -> list[Any]:
    loads, load = [], base_model.load_whole
    scene.patch.setattr(base_model, "load_whole", lambda name: (loads.append(name), load(name))[1])
    named = scene.monitor("liquid-tiny").probe(0)
    told = [len(loads), named.metrics["free_energy"] < 1e-9]
    try:
        scene.monitor("nothing/there")
    except OSError as error:  # a FileNotFoundError on rank 0
        return [*told, "nothing/there" in str(error)]
    return told


def one_prompt(scene: Scene) -> float:
    task = scene.suite.tasks[0]
    one = TaskSuite("one", (Task(task.name, task.prompts[:1], task.choices),))
    record = Monitor(scene.model, scene.tokenizer, one).probe(0)
    return round(record.metrics["entropy"], 6)


def clocks(scene: Scene) -> int | None:
    cost = 0.0 if scene.ranks.rank == 0 else 1e9
    scene.patch.setattr(Budget, "cost", lambda self, tokens: cost)
    callback = CrystalCallback(scene.suite, every=1, max_overhead=0.5)
    play(scene, callback)
    return callback.last_step


def two_views(scene: Scene) -> list[Any]:
    """The base does not answer in the second one."""
    callback = CrystalCallback(scene.suite, every=3, view=["raw", "{prompt} a"], max_overhead=None)
    play(scene, callback)

    def seen() -> list[Any]:
        folders = run_folders(scene.folder / "out")
        references = [load_reference(folder / REFERENCE_FOLDER) for folder in folders]
        phases = [read_run(folder).records[-1].phase for folder in folders]
        return [
            [one.info.view, len(one.plain), phase]
            for one, phase in zip(references, phases, strict=True)
        ]

    return [callback.last_step, *scene.ranks.on_main(seen)]


def play(scene: Scene, callback: CrystalCallback) -> None:
    """A training of three steps, as a trainer would tell the callback."""
    args = TrainingArguments(str(scene.folder / "out"), report_to=[], disable_tqdm=True)
    state, control = TrainerState(max_steps=3), TrainerControl()
    state.is_world_process_zero = scene.ranks.is_main
    told = {"model": scene.model, "processing_class": scene.tokenizer}
    callback.on_train_begin(args, state, control, **told)
    for step in (1, 2, 3):
        state.global_step = step
        callback.on_step_end(args, state, control, **told)


SCENARIOS: dict[str, Callable[[Scene], Any]] = {
    "out of memory": out_of_memory,
    "base of the cache": base_of_the_cache,
    **{f"probe, {when}": partial(failing_probe, when) for when in ("choosing", "probing")},
    **{f"experiment, {when}": partial(failing_experiment, when) for when in EXPERIMENT},
    "base by name": base_by_name,
    "one prompt": one_prompt,
    "clocks": clocks,
    "two views": two_views,
}


def played(scenario: Callable[[Scene], Any], folder: Path, rank: int) -> Any:
    """What a scenario returns, or the error that it raises, in words."""
    folder.mkdir(exist_ok=True)
    meeting = dist.FileStore(str(folder / "meeting"), 2)
    dist.init_process_group("gloo", store=meeting, timeout=ONE_SCENARIO, world_size=2, rank=rank)
    suite = load_suite("liquid-tiny")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CRYSTALMON_CACHE", str(folder / "bases"))
            model, tokenizer = load_model("liquid-tiny")
            scene = Scene(model, tokenizer, suite, current_ranks(), patch, folder)
            return scenario(scene)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        # closes the connections: who still waits for this process hears of it
        dist.destroy_process_group()


def main(scenarios: dict[str, Callable[[Scene], Any]]) -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    with (folder / f"{rank}.jsonl").open("a", encoding="utf-8") as file:
        for name, scenario in scenarios.items():
            came_out = played(scenario, folder / name, rank)
            file.write(json.dumps([name, came_out]) + "\n")
            file.flush()


def play_both(player: Path, folder: Path) -> Callable[[str], list[Any]]:
    """Two processes of a player; what a scenario came to on each rank, by its name."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    files = [folder / f"{rank}.txt" for rank in (0, 1)]
    processes = []
    for rank, file in enumerate(files):
        with file.open("w") as output:
            command = [sys.executable, str(player), str(folder), str(rank)]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            )
    try:
        for process in processes:
            process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        pass  # the scenarios that are missing fail
    finally:
        for process in processes:
            process.kill()
            process.wait()

    def of(name: str) -> list[Any]:
        found = []
        for rank, file in enumerate(files):
            lines = (folder / f"{rank}.jsonl").read_text().splitlines()
            by_name = dict(map(json.loads, lines))
            assert name in by_name, f"rank {rank} did not come to it:\n{file.read_text()}"
            found.append(by_name[name])
        return found

    return of


if __name__ == "__main__":
    main(SCENARIOS)
