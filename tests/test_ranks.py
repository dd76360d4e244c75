"""Two processes: what one cannot do, both must hear of, and neither may wait for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from crystalmon.scoring.ranks import ONE, RankError

HEAD = """
import sys, torch, torch.distributed as dist
from crystalmon import Monitor, load_suite
from crystalmon.scoring.models import load_model
from crystalmon.scoring.ranks import current_ranks

dist.init_process_group("gloo")
ranks = current_ranks()
model, tokenizer = load_model("liquid-tiny")
suite = load_suite("liquid-tiny")
forward = model.forward

def outcome(work):
    try:
        told = work()
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"rank {ranks.rank}: {told}\\n")
    sys.stdout.flush()
"""


def two_processes(tmp_path: Path, body: str) -> list[str]:
    """What each rank has said, in the order of the ranks."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body) + "\ndist.destroy_process_group()\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))
    assert len(said) == 2, done.stdout + done.stderr
    return said


def test_out_of_memory_on_one_rank_halves_the_batch_of_both(tmp_path):
    said = two_processes(
        tmp_path,
        """
        before = Monitor(model, tokenizer, suite).probe(0)
        monitor = Monitor(model, tokenizer, suite)
        sizes = []
        def small(input_ids, **options):
            if ranks.rank == 1 and input_ids.numel() > 300:
                raise torch.OutOfMemoryError("no memory")
            sizes.append(input_ids.numel())
            return forward(input_ids=input_ids, **options)
        model.forward = small
        def work():
            after = monitor.probe(0)
            same = abs(after.metrics["entropy"] - before.metrics["entropy"]) < 1e-6
            return f"{same} {sizes[-1] <= 300} {len(sizes)}"
        outcome(work)
        """,
    )
    first, second = (line.split(": ")[1].split() for line in said)
    assert first[:2] == ["True", "True"]
    # passes that failed are not counted on the rank where they did
    assert second[0] == "True"
    assert int(first[2]) > int(second[2])


def test_both_ranks_know_a_base_of_the_cache(tmp_path):
    said = two_processes(
        tmp_path,
        """
        first = Monitor(model, tokenizer, suite)
        before = first.probe(0, unchanged=True)
        seen, kind = [], type(model)
        run = kind.forward
        kind.forward = lambda self, *args, **options: seen.append(1) or run(self, *args, **options)
        second = Monitor(model, tokenizer, suite)
        after = second.probe(0, unchanged=True)
        outcome(lambda: f"{second.remembered} {len(seen)} {before.metrics == after.metrics}")
        """,
    )
    assert said == ["rank 0: True 0 True", "rank 1: True 0 True"]


@pytest.mark.parametrize("when", ["choosing", "probing"])
def test_an_error_on_one_rank_is_both_ranks(tmp_path, when):
    said = two_processes(
        tmp_path,
        f"""
        def broken(**options):
            if ranks.rank == 1:
                raise RuntimeError("a broken kernel")
            return forward(**options)
        def work():
            if "{when}" == "choosing":
                model.forward = broken
            monitor = Monitor(model, tokenizer, suite)
            model.forward = broken
            monitor.probe(0)
        outcome(work)
        """,
    )
    assert said == [
        "rank 0: RankError: rank 1 failed: RuntimeError: a broken kernel",
        "rank 1: RuntimeError: a broken kernel",
    ]


@pytest.mark.parametrize(
    ("when", "error"),
    [
        ("scoring", "RuntimeError: a broken kernel"),
        ("handing on", "RuntimeError: a broken kernel"),
        ("choosing", "RuntimeError: a broken kernel"),
        ("drawing", "RuntimeError: a broken kernel"),
        ("full", "OutOfMemoryError: no memory"),
    ],
)
def test_an_experiment_s_failure_on_one_rank_is_both_ranks(tmp_path, when, error):
    said = two_processes(
        tmp_path,
        f"""
        from crystalmon.experiments.common.subject import Subject
        from crystalmon.experiments.common.scored_texts import Text
        subject = Subject(model, tokenizer, "tiny", ranks)
        texts = [Text((1, 2, 3), (1, 2)), Text((4, 5), (1,))]
        def broken(*given, **options):
            if ranks.rank == 1:
                raise {
            "torch.OutOfMemoryError('no memory')"
            if when == "full"
            else "RuntimeError('a broken kernel')"
        }
            return forward(*given, **options)
        def work():
            if "{when}" not in ("choosing", "drawing"):
                subject.score(texts, lambda index, log_p: None)
            if "{when}" != "handing on":
                model.forward = broken
            if "{when}" == "drawing":
                subject.generate([(1, 2), (1, 2, 3)], 3)
            subject.score(texts, broken if "{when}" == "handing on" else print)
        if "{when}" == "handing on":
            forward = lambda index, log_p: None
        outcome(work)
        """,
    )
    first = {
        "full": "RankError: another rank has no memory left for a single text",
    }.get(when, f"RankError: rank 1 failed: {error}")
    assert said == [f"rank 0: {first}", f"rank 1: {error}"]


def test_a_mistake_is_one_on_every_rank_and_a_base_by_name_is_loaded_once(tmp_path):
    said = two_processes(
        tmp_path,
        """
        import crystalmon.monitor.base_model as reference
        loads = []
        load = reference.load_whole
        reference.load_whole = lambda name: (loads.append(name), load(name))[1]
        def work():
            named = Monitor(model, tokenizer, suite, "liquid-tiny").probe(0)
            text = f"{len(loads)} {named.metrics['free_energy'] < 1e-9} "
            try:
                Monitor(model, tokenizer, suite, "nothing/there")
            except OSError as error:  # a FileNotFoundError on rank 0
                return text + str("nothing/there" in str(error))
        outcome(work)
        """,
    )
    assert said == ["rank 0: 1 True True", "rank 1: 0 True True"]


def test_one_process_needs_nobody():
    assert ONE.gather(3) == [3]
    assert ONE.broadcast(3) == ONE.on_main(lambda: 3) == 3
    assert ONE.merge({1: 2}, 1) == {1: 2}
    assert ONE.is_main
    assert issubclass(RankError, RuntimeError)


def test_a_rank_without_a_prompt_of_its_own_has_the_whole_record(tmp_path):
    said = two_processes(
        tmp_path,
        """
        from crystalmon import Task, TaskSuite
        task = suite.tasks[0]
        one = TaskSuite("one", (Task(task.name, task.prompts[:1], task.choices),))
        outcome(lambda: round(Monitor(model, tokenizer, one).probe(0).metrics["entropy"], 6))
        """,
    )
    first, second = (line.split(": ")[1] for line in said)
    assert float(first) == float(second) > 0


def test_rank_0s_clock_decides_for_both(tmp_path):
    said = two_processes(
        tmp_path,
        f"""
        from types import SimpleNamespace
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from crystalmon import CrystalCallback
        from crystalmon.monitor.budget import Budget
        Budget.cost = lambda self, tokens: 0.0 if ranks.rank == 0 else 1e9
        callback = CrystalCallback(suite, every=1, max_overhead=0.5)
        args = TrainingArguments({str(tmp_path / "out")!r}, report_to=[], disable_tqdm=True)
        state, control = TrainerState(max_steps=3), TrainerControl()
        state.is_world_process_zero = ranks.rank == 0
        asked = dict(model=model, processing_class=tokenizer)
        def work():
            callback.on_train_begin(args, state, control, **asked)
            for step in (1, 2, 3):
                state.global_step = step
                callback.on_step_end(args, state, control, **asked)
            return callback.last_step
        outcome(work)
        """,
    )
    assert [line.split(": ")[1] for line in said] == ["3", "3"]
