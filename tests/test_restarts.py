"""Trainings that begin anew, lie within each other, or share a folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from test_callback import make_trainer, train
from test_experiments_in_training import Distance
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from crystalmon import CrystalCallback, Monitor, read_run
from crystalmon.runs.lock import RunLock
from crystalmon.runs.results import read_result
from crystalmon.scoring.models import ASSETS_DIR

FAST = {"max_steps": 3, "learning_rate": 5e-3}


def free_energies(folder):
    return [record.metrics["free_energy"] for record in read_run(folder).records]


@pytest.mark.parametrize("reference", ["auto", "initial"])
def test_a_trainer_that_trains_twice_keeps_its_base(tmp_path, model, tokenizer, suite, reference):
    set_seed(0)
    callback = CrystalCallback(suite, every=3, reference=reference)
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [callback], **FAST)
    trainer.train()
    first, moved = read_run(tmp_path).info["reference"], free_energies(tmp_path)[-1]
    assert moved > 0.1
    trainer.train()
    assert read_run(tmp_path).info["reference"] == first
    assert free_energies(tmp_path)[0] == pytest.approx(moved, rel=1e-6)


def test_a_batch_that_does_not_fit_leaves_the_base_as_it_was(tmp_path, model, tokenizer, suite):
    """As with `auto_find_batch_size`, which begins again with the weights as they are by then."""

    class TooLarge(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size == 8 and state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")

    set_seed(0)
    trainer = make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=1), TooLarge()],
        auto_find_batch_size=True, **FAST,
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    assert trainer.state.train_batch_size < 8
    assert not torch.equal(before["lm_head.weight"], model.state_dict()["lm_head.weight"])
    run = read_run(tmp_path)
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert run.records[0].metrics["free_energy"] > 0.01, "two steps were made before"


def test_another_trainer_of_the_same_model_keeps_the_base(tmp_path, model, tokenizer, suite):
    train(tmp_path / "a", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    train(tmp_path / "b", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    one, two = read_run(tmp_path / "a"), read_run(tmp_path / "b")
    assert two.info["reference"] == one.info["reference"]
    ends = free_energies(tmp_path / "a")[-1], free_energies(tmp_path / "b")[0]
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)
    asked = CrystalCallback(suite, every=3, reference="initial")
    train(tmp_path / "c", model, tokenizer, suite, [asked], **FAST)
    assert free_energies(tmp_path / "c")[0] == 0.0
    assert read_run(tmp_path / "c").info["reference_model"].endswith(", trained further")


def test_the_answers_of_another_base_are_moved_aside(tmp_path, model, tokenizer, suite, capsys):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    first = read_run(tmp_path).info["reference"]
    asked = CrystalCallback(suite, every=3, reference="initial")
    train(tmp_path, model, tokenizer, suite, [asked], **FAST)
    assert read_run(tmp_path).info["reference"] != first
    aside = tmp_path / "crystalmon" / f"reference-{first}"
    assert (aside / "reference.safetensors").is_file()
    assert str(aside) in capsys.readouterr().out


def test_one_callback_in_two_nested_trainers_writes_to_both(tmp_path, model, tokenizer, suite):
    callback = CrystalCallback(suite, every=1)

    class Nested(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                inner = type(model)(model.config)
                inner.load_state_dict(model.state_dict())
                train(tmp_path / "inner", inner, tokenizer, suite, [callback], max_steps=1)

    train(tmp_path / "outer", model, tokenizer, suite, [callback, Nested()], **FAST)
    steps = {
        name: [r.step for r in read_run(tmp_path / name).records] for name in ("inner", "outer")
    }
    assert steps == {"inner": [0, 1], "outer": [0, 1, 2, 3]}
    assert read_run(tmp_path / "outer").info["max_steps"] == 3


def test_a_callback_added_while_training_runs_says_so(tmp_path, model, tokenizer, suite, caplog):
    class Late(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer.add_callback(CrystalCallback(suite))

    set_seed(0)
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [Late()], **FAST)
    trainer.train()
    assert trainer.state.global_step == 3
    assert caplog.text.count("was added while training runs") == 1


def test_a_folder_that_is_deleted_is_made_again(tmp_path, model, tokenizer, suite, caplog):
    class Delete(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                shutil.rmtree(tmp_path / "crystalmon")

    callbacks = [CrystalCallback(suite, every=1), Delete()]
    train(tmp_path, model, tokenizer, suite, callbacks, **FAST)
    run = read_run(tmp_path)
    assert [record.step for record in run.records] == [3]
    assert (tmp_path / "crystalmon" / "reference" / "reference.safetensors").is_file()
    assert "was deleted, and is made again" in caplog.text


def begin(folder, callback, model, tokenizer, **options):
    args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **options)
    state = TrainerState(max_steps=4)
    callback.on_train_begin(args, state, TrainerControl(), model, tokenizer)
    return args, state


def test_a_second_process_is_refused_while_the_first_lives(tmp_path, model, tokenizer, suite):
    hold = textwrap.dedent(
        f"""
        from pathlib import Path
        from crystalmon.runs.lock import RunLock
        lock = RunLock(Path({str(tmp_path / "crystalmon")!r}))
        print("held", flush=True)
        input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ValueError, match=rf"another training writes to .* \(process {other.pid}"
        ):
            begin(tmp_path, CrystalCallback(suite), model, tokenizer)
        other.kill()
    begin(tmp_path, CrystalCallback(suite), model, tokenizer)


def test_a_training_that_was_interrupted_is_taken_over(tmp_path, model, tokenizer, suite, caplog):
    """In a notebook: it has not ended, and never will."""
    first = CrystalCallback(suite)
    args, state = begin(tmp_path, first, model, tokenizer)
    begin(tmp_path, CrystalCallback(suite), model, tokenizer)
    assert "takes over" in caplog.text
    state.global_step = 1
    first.on_step_end(args, state, TrainerControl())
    assert [record.step for record in read_run(tmp_path).records] == [0]


def test_a_lock_is_gone_with_its_training(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], max_steps=1)
    assert not (tmp_path / "crystalmon" / ".lock").exists()
    RunLock(tmp_path / "crystalmon").release()


def test_evaluate_without_an_evaluation_is_refused_at_the_start(tmp_path, model, tokenizer, suite):
    callback = CrystalCallback(suite, actions={"nucleation_onset": ["alert", "evaluate"]})
    with pytest.raises(ValueError, match=r"evaluate on nucleation_onset .* eval_strategy"):
        begin(tmp_path, callback, model, tokenizer)
    begin(tmp_path, callback, model, tokenizer, eval_strategy="epoch")


def test_an_experiment_that_cannot_be_measured_is_refused_at_the_start(
    tmp_path, model, tokenizer, suite
):
    callback = CrystalCallback(suite, experiments={"context": 100})
    with pytest.raises(ValueError, match="tokens must be enough for 12 levels"):
        begin(tmp_path, callback, model, tokenizer)


def test_a_base_that_cannot_be_scored_is_refused_at_the_start(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(ValueError, match=r"base cannot be scored \(RuntimeError: no such kernel\)"):
        begin(tmp_path, CrystalCallback(suite), model, tokenizer)


def test_a_named_base_is_not_confused_with_the_first_one(tmp_path, model, tokenizer, suite):
    train(tmp_path / "a", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    named = CrystalCallback(suite, every=3, reference=ASSETS_DIR / "liquid-tiny")
    train(tmp_path / "b", model, tokenizer, suite, [named], **FAST)
    assert read_run(tmp_path / "b").info["reference_model"] == str(ASSETS_DIR / "liquid-tiny")


def test_two_models_of_one_argument_object_have_their_own_bases(tmp_path, model, tokenizer, suite):
    """As in a search over hyperparameters, whose trainer makes a model for each trial."""
    callback = CrystalCallback(suite, every=3, reference="initial")
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for scale in (1.0, 0.5):
        fresh = type(model)(model.config)
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            fresh.model.norm.weight.mul_(scale)
        callback.on_train_begin(args, TrainerState(max_steps=3), TrainerControl(), fresh, tokenizer)
        assert free_energies(tmp_path) == [0.0]


def test_experiments_that_began_on_the_base_go_on_in_a_second_training(
    tmp_path, model, tokenizer, suite
):
    callback = CrystalCallback(suite, every=3, experiments={Distance(): 3})
    set_seed(0)
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [callback], **FAST)
    trainer.train()
    trainer.train()
    assert callback.failures == 0
    shown = tmp_path / "crystalmon" / "experiments" / "distance-0.json"
    assert read_result(shown).estimates["moved"].value > 0, "against the first training's base"


def test_a_finished_training_is_closed_once(tmp_path, model, tokenizer, suite, monkeypatch):
    closed = []
    monkeypatch.setattr(
        "crystalmon.monitor.recorder.Recorder.close", lambda self: closed.append(self)
    )
    set_seed(0)
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], **FAST)
    trainer.train()
    trainer.train()
    assert len(closed) == 2


def test_a_kept_base_outlives_its_file(tmp_path, model, tokenizer, suite):
    """Another base is written where the first one's answers lay."""
    train(tmp_path / "a", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    first = read_run(tmp_path / "a")
    asked = CrystalCallback(suite, every=3, reference="initial")
    train(tmp_path / "a", model, tokenizer, suite, [asked], **FAST)
    moved = Monitor(model, tokenizer, suite, tmp_path / "a" / "crystalmon").reference
    assert moved.info.id != first.info["reference"]
    train(tmp_path / "b", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    kept = tmp_path / "b" / "crystalmon"
    assert read_run(kept).info["reference"] == first.info["reference"]
    again = Monitor(model, tokenizer, suite, kept)  # refuses a file that is not what it says
    assert again.probe(0).metrics["free_energy"] > 0.1


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    held = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.2)  # until the child runs
        del held  # as when the parent is killed: the file stays
        assert RunLock(tmp_path).held, "though the child lives"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_run_that_a_base_was_found_in_is_named(tmp_path, model, tokenizer, suite, capsys):
    train(tmp_path / "sft", model, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    model.save_pretrained(tmp_path / "sft")
    assert "read from" not in capsys.readouterr().out
    later = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    train(tmp_path / "dpo", later, tokenizer, suite, [CrystalCallback(suite, every=3)], **FAST)
    where = tmp_path / "sft" / "crystalmon" / "reference"
    assert f", read from {where};" in capsys.readouterr().out
