"""Let a watched run meet one fault after another, and print what the user sees and what is lost.

python scripts/no_trace/faults.py                     # all of them
python scripts/no_trace/faults.py --only full_disk    # one of them

Each fault hits an SFT run of liquid-tiny that probes at every step. Training is compared with a
run without the callback: the same log rows mean that it has lost nothing. Prints a table and a
JSON line; ends with status 1 if training differed, or more was lost than the table's own words say.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback, set_seed

from crystalmon import CrystalCallback, read_run
from crystalmon.monitor.probe import Monitor
from crystalmon.trackers.tensorboard import TensorBoardTracker

sys.path.insert(0, str(Path(__file__).parent))
from train import MAKERS, PROBED, load

STEPS = 16
FAULTY = range(4, 14)
"""The steps at which a passing fault is there: ten probes."""
KERNEL = RuntimeError("an unknown kernel error")


@dataclass(frozen=True)
class Outcome:
    """What one fault has done.

    Args:
        fault: in words.
        seen: the line that the user sees.
        probes: on file in the end.
        lost: which probes are not, and why that is all there is to it.
        ok: whether training and the folder are as they should be.
    """

    fault: str
    seen: str
    probes: int
    lost: str
    ok: bool


class AtStep(TrainerCallback):
    """Calls functions after given steps, before the monitor sees the model."""

    def __init__(self, actions: dict[int, Callable[[Any], Any]]) -> None:
        self.actions = actions

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **k: Any) -> None:
        if state.global_step in self.actions:
            self.actions[state.global_step](model)


def main() -> None:
    functions = (tracker, full_disk, torn_line, out_of_memory, nan_weights, failing_probe, strict)
    faults = {function.__name__: function for function in functions}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(faults), choices=faults)
    chosen, outcomes = parser.parse_args().only, []
    with tempfile.TemporaryDirectory() as folder:
        bare, _ = train(Path(folder) / "bare", [])
        for name in chosen:
            print(name.replace("_", " "), file=sys.stderr, flush=True)
            outcome = faults[name](Path(folder) / name, bare)
            outcomes.append(replace(outcome, ok=outcome.ok and outcome.seen != "NOTHING"))
    table = Table(
        "fault", "what the user sees", f"probes of {STEPS + 1}", "lost", "as it should be"
    )
    for o in outcomes:
        table.add_row(o.fault, o.seen, str(o.probes), o.lost, "yes" if o.ok else "NO")
    Console(width=150).print(table)
    print(json.dumps({o.fault: {"probes": o.probes, "lost": o.lost, "ok": o.ok} for o in outcomes}))
    sys.exit(0 if all(outcome.ok for outcome in outcomes) else 1)


def train(
    out: Path, callbacks: list[Any], *, report_to: str = "none", resume: bool = False, **more: Any
) -> tuple[str, list[str]]:
    """One SFT run: its log rows as text, and what crystalmon has said."""
    set_seed(0)
    model, tokenizer = load()
    settings = {
        "output_dir": str(out), "max_steps": STEPS, "logging_steps": 1, "seed": 1,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "report_to": report_to,
        "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True, **more,
    }  # fmt: skip
    args = argparse.Namespace(lora=False, callback=False, limited=False, two=False, out=out)
    trainer = MAKERS["sft"](args, model, tokenizer, settings)
    for callback in callbacks:
        trainer.add_callback(callback)
    with listening() as said:
        trainer.train(resume_from_checkpoint=resume or None)
    rows = [{k: row[k] for k in ("loss", "grad_norm")} for row in trainer.state.log_history[:-1]]
    return json.dumps(rows), said()


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], list[str]]]:
    """Catch what is logged, warned and printed; afterwards, crystalmon's first lines of it."""
    stream, handler = io.StringIO(), logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("crystalmon")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    with (
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            yield (
                lambda: (
                    handler.stream.getvalue().splitlines()
                    + [str(w.message) for w in warned]
                    + stream.getvalue().splitlines()
                )
            )
        finally:
            logger.removeHandler(handler)
            logger.propagate = before


def line(said: list[str], sign: str) -> str:
    found = next((line for line in said if sign in line), "NOTHING")
    return found.removeprefix("crystalmon: ").removeprefix("crystalmon | ")


def steps(out: Path) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [record.step for record in read_run(out).records]


def watched(**options: Any) -> CrystalCallback:
    return CrystalCallback(PROBED, every=1, max_overhead=None, **options)


def tracker(out: Path, bare: str) -> Outcome:
    gone = ConnectionError("the server is gone")
    with mock.patch.object(TensorBoardTracker, "log", side_effect=gone):
        rows, said = train(out, [watched()], report_to="tensorboard")
    found = steps(out)
    ok = rows == bare and len(found) == STEPS + 1
    return Outcome("a tracker that raises", line(said, "could not log"), len(found), "nothing", ok)


def full_disk(out: Path, bare: str) -> Outcome:
    records = out / "crystalmon" / "records.jsonl"
    aside = records.with_suffix(".aside")

    def fill(model: Any) -> None:
        records.rename(aside)
        records.symlink_to("/dev/full")

    def free(model: Any) -> None:
        records.unlink()
        aside.rename(records)

    switch = AtStep({FAULTY[0]: fill, FAULTY[-1] + 1: free})
    rows, said = train(out, [switch, watched()])
    found = steps(out)
    ok = rows == bare and found == list(range(STEPS + 1))
    return Outcome("a full disk, ten probes long", line(said, "stored"), len(found), "nothing", ok)


def torn_line(out: Path, bare: str) -> Outcome:
    saving = {"save_strategy": "steps", "save_steps": 8}
    train(out, [watched()], **saving)
    records = out / "crystalmon" / "records.jsonl"
    content = records.read_bytes()
    half = content.splitlines(keepends=True)
    records.write_bytes(b"".join(half[:10]) + half[10][:500])  # killed within the probe at step 10
    for checkpoint in out.glob("checkpoint-16"):
        os.rename(checkpoint, out / "aside")
    rows, said = train(out, [watched()], resume=True, **saving)
    found = steps(out)
    ok = json.loads(rows)[-8:] == json.loads(bare)[-8:] and found == list(range(STEPS + 1))
    return Outcome("a torn line, then resumed", line(said, "left out"), len(found), "nothing", ok)


def out_of_memory(out: Path, bare: str) -> Outcome:
    small: list[Any] = []

    def shrink(model: Any) -> None:
        forward = model.forward

        @functools.wraps(forward)
        def limited(*args: Any, **options: Any) -> Any:
            given = inspect.signature(forward).bind(*args, **options).arguments
            if not model.training and given["input_ids"].numel() > 150:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(*args, **options)

        small.append(mock.patch.object(model, "forward", limited))
        small[0].start()

    rows, said = train(out, [AtStep({FAULTY[0]: shrink}), watched()])
    small[0].stop()
    found = steps(out)
    ok = rows == bare and found == list(range(STEPS + 1))
    return Outcome("out of memory", line(said, "out of memory"), len(found), "nothing", ok)


def nan_weights(out: Path, bare: str) -> Outcome:
    def spoil(model: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))

    spoiled, _ = train(out.with_name("nan-bare"), [AtStep({FAULTY[0]: spoil})])
    rows, said = train(out, [AtStep({FAULTY[0]: spoil}), watched()])
    run = read_run(out)
    q = run.records[-1].tasks["coin"].q
    ok = rows == spoiled and len(run.records) == STEPS + 1 and bool((q != q).all())
    return Outcome(
        "NaN weights", line(said, "no finite"), len(run.records), "nothing: NaN is kept", ok
    )


def failing_probe(out: Path, bare: str) -> Outcome:
    broken = mock.patch.object(Monitor, "probe", side_effect=KERNEL)
    switch = AtStep({
        FAULTY[0]: lambda model: broken.start(),
        FAULTY[-1] + 1: lambda model: broken.stop(),
    })  # fmt: skip
    rows, said = train(out, [switch, watched()])
    found = steps(out)
    ok = rows == bare and found == [s for s in range(STEPS + 1) if s not in FAULTY]
    lost = "those ten probes: the weights have moved on"
    return Outcome("a probe that raises ten times", line(said, "failed"), len(found), lost, ok)


def strict(out: Path, bare: str) -> Outcome:
    try:
        with mock.patch.object(Monitor, "probe", side_effect=KERNEL):
            train(out, [watched(strict=True)])
    except RuntimeError as error:
        seen = f"{type(error).__name__}: {error}"
        return Outcome("the same, strict=True", seen, 0, "the run stops, as asked", True)
    return Outcome("the same, strict=True", "NOTHING", 0, "", False)


if __name__ == "__main__":
    main()
