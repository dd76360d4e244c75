"""The callback inside real trainers: what it records, and that training does not notice."""

from __future__ import annotations

import copy
import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import crystalmon.monitor.recorder
import crystalmon.monitor.training
from crystalmon import CrystalCallback, load_suite, read_run
from crystalmon.analysis.replay import detect_run
from crystalmon.monitor.base_answers import ReferenceMismatch
from crystalmon.monitor.budget import Budget
from crystalmon.monitor.probe import Monitor
from crystalmon.monitor.schedule import Schedule
from crystalmon.runs.files import RunFolderError
from crystalmon.runs.reference import load_reference, reference_id
from crystalmon.runs.shares import LEAST
from crystalmon.scoring.models import ASSETS_DIR
from crystalmon.suites.tasks import TaskSuite
from crystalmon.synthetic import load_targets, sft_rows
from crystalmon.trackers.base import tracker_metrics

TINY = ASSETS_DIR / "liquid-tiny"


def rows(suite, count=64):
    answers = [task.choices[0].text for task in suite]
    prompts = [(task, prompt) for task in suite for prompt in task.prompts]
    return Dataset.from_list(
        [
            {"prompt": prompt, "completion": f" {answers[suite.tasks.index(task)]}"}
            for task, prompt in (prompts * 5)[:count]
        ]
    )


def make_trainer(output_dir, model, tokenizer, suite, callbacks, data=None, **options):
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 2e-3,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "seed": 3,
        "use_cpu": True, "bf16": False, "disable_tqdm": True,
    }  # fmt: skip
    # TRL turns it on by default, under another name since 1.13
    known = SFTConfig.__dataclass_fields__
    off = next(k for k in ("activation_checkpointing", "gradient_checkpointing") if k in known)
    settings[off] = False
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(output_dir), **{**settings, **options}),
        train_dataset=rows(suite) if data is None else data,
        eval_dataset=rows(suite, 8),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def with_dropout(model):
    model.config.attention_dropout = 0.2
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return model


def train(output_dir, model, tokenizer, suite, callbacks, resume=None, **options):
    set_seed(0)
    trainer = make_trainer(output_dir, model, tokenizer, suite, callbacks, **options)
    trainer.train(resume_from_checkpoint=resume)
    timing = ("runtime", "per_second", "flos")
    logs = [
        {k: v for k, v in row.items() if not k.endswith(timing)}
        for row in trainer.state.log_history
    ]
    return logs, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_needs_no_argument():
    assert CrystalCallback().settings.suite.name == "randomness"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_is_bit_identical(tmp_path, model, tokenizer, suite, accumulation):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for callbacks in ([], [CrystalCallback(suite, every=1)]):
        model.load_state_dict(start)
        out = tmp_path / str(len(callbacks))
        results.append(
            train(
                out, with_dropout(model), tokenizer, suite, callbacks,
                gradient_accumulation_steps=accumulation,
            )
        )  # fmt: skip
    (plain_logs, plain), (logs, weights) = results
    assert logs == plain_logs
    assert len([row for row in logs if "loss" in row]) == 6
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    assert len(read_run(tmp_path / "1").records) == 7


def test_records_events_and_reference(tmp_path, model, tokenizer, suite, capsys):
    train(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite)],
        max_steps=12, learning_rate=5e-3,
    )  # fmt: skip
    run = read_run(tmp_path)
    assert [record.step for record in run.records] == list(range(13))
    assert run.info["suite_hash"] == suite.hash
    assert run.info["trainer"] == "SFT"
    assert run.records[0].metrics["free_energy"] == 0.0
    assert run.records[-1].metrics["free_energy"] > 0.1
    assert all(0 < record.share <= 1 and record.seconds > 0 for record in run.records)
    assert (tmp_path / "crystalmon" / "reference" / "reference.json").is_file()
    assert "crystalmon | three: 3 tasks, 72 prompts" in capsys.readouterr().out
    assert {event.kind for event in run.events} >= {"nucleation_onset"}


def test_next_stage_keeps_the_pretrained_base(tmp_path, model, tokenizer, suite):
    first = tmp_path / "sft"
    set_seed(0)
    trainer = make_trainer(first, model, tokenizer, suite, [CrystalCallback(suite, every=3)])
    trainer.train()
    trainer.save_model(str(first))
    second = tmp_path / "next"
    set_seed(0)
    trainer = make_trainer(second, str(first), tokenizer, suite, [CrystalCallback(suite, every=3)])
    trainer.train()
    one, two = read_run(first), read_run(second)
    assert two.info["reference"] == one.info["reference"]
    last, start = one.records[-1].metrics, two.records[0].metrics
    assert start["free_energy"] == pytest.approx(last["free_energy"], rel=1e-3)


def test_next_stage_keeps_the_seeds_that_have_won(tmp_path, model, tokenizer, suite):
    targets = {
        name: q
        for name, q in load_targets("liquid-tiny").items()
        if name in ("coin", "number", "color")
    }
    data = Dataset.from_list(sft_rows(load_suite("liquid-tiny"), targets, 640, 0))
    options = {"max_steps": 50, "learning_rate": 2e-3, "data": data}
    callback = CrystalCallback(suite, every=2)
    set_seed(0)
    trainer = make_trainer(tmp_path / "sft", model, tokenizer, suite, [callback], **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "sft"))
    won = {name: task.seed for name, task in callback.monitor.detector.tasks.items()}
    assert any(seed is not None for seed in won.values())
    again = CrystalCallback(suite, every=1)
    make_trainer(
        tmp_path / "next", str(tmp_path / "sft"), tokenizer, suite, [again], max_steps=2
    ).train()
    run = read_run(tmp_path / "next")
    assert {name: task.seed for name, task in run.records[0].tasks.items()} == won
    kept = run.info["inherited"]
    assert {name: kept[name]["lock"] and kept[name]["lock"]["seed"] for name in kept} == won
    before = {name: task.state.raised for name, task in callback.monitor.detector.tasks.items()}
    assert {name: set(kept[name]["raised"]) for name in kept} == {
        name: set(raised) - {"early_warning"} for name, raised in before.items()
    }
    assert not [e for e in run.events if e.task and e.kind in before[e.task]]
    locks = {name: task.state.lock for name, task in callback.monitor.detector.tasks.items()}
    shown = detect_run(run).tasks
    assert all(shown[name].p_value == lock.p_value for name, lock in locks.items() if lock)
    assert detect_run(run).repeats_live


def test_resumed_run_goes_on_where_it_was(tmp_path, model, tokenizer, suite):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    start = {name: value.clone() for name, value in model.state_dict().items()}
    set_seed(0)
    make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=1)], **options
    ).train()
    whole = read_run(tmp_path)
    model.load_state_dict(start)
    set_seed(0)
    make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=1)], **options
    ).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = read_run(tmp_path)
    assert [record.step for record in resumed.records] == list(range(9))
    assert resumed.superseded == 4
    assert resumed.info["reference"] == whole.info["reference"]
    for a, b in zip(whole.records, resumed.records, strict=True):
        assert a.phase == b.phase
        for key, value in a.metrics.items():
            assert b.metrics[key] == pytest.approx(value, abs=1e-9), key
    assert [e.to_json() for e in resumed.events] == [e.to_json() for e in whole.events]


def test_the_trainers_log_is_kept_and_resumed(tmp_path, model, tokenizer, suite):
    options = {
        "max_steps": 8, "save_strategy": "steps", "save_steps": 4,
        "eval_strategy": "steps", "eval_steps": 4,
    }  # fmt: skip
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        set_seed(0)
        trainer = make_trainer(
            tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=4)], **options
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.evaluate()  # the run folder is closed: nothing is kept, and nothing fails
        run = read_run(tmp_path)
        assert run.log_series("loss")[0].tolist() == list(range(1, 9))
        assert run.log_series("eval_loss")[0].tolist() == [4, 8]
        history = [row for row in trainer.state.log_history if "loss" in row]
        assert run.log_series("loss")[1].tolist() == [row["loss"] for row in history]
        assert {"grad_norm", "learning_rate"} <= set().union(*(r.values for r in run.trainer_log))


def test_a_log_that_cannot_be_written_stops_no_training(
    tmp_path, model, tokenizer, suite, monkeypatch, caplog
):
    def full(self, row):
        raise RunFolderError("No space left on device")

    monkeypatch.setattr(crystalmon.monitor.recorder.RunStore, "append_log", full)
    callback = CrystalCallback(suite, every=3)
    logs, _ = train(tmp_path, model, tokenizer, suite, [callback])
    assert len([row for row in logs if "loss" in row]) == 6
    assert callback.failures > 0
    assert "the trainer's log at step 1 could not be stored" in caplog.text
    assert [record.step for record in read_run(tmp_path).records] == [0, 3, 6]


def test_early_stop_is_probed(tmp_path, model, tokenizer, suite):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=100), Stop()])
    assert [record.step for record in read_run(tmp_path).records] == [0, 4]


def test_stop_on_evaluation_is_probed_before_the_best_model_is_loaded(
    tmp_path, model, tokenizer, suite
):
    class Stop(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    set_seed(0)
    callback = CrystalCallback(suite, every=100)
    options = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True,
    }  # fmt: skip
    trainer = make_trainer(tmp_path, model, tokenizer, suite, [callback, Stop()], **options)
    trainer.train()
    record = read_run(tmp_path).records[-1]
    assert record.step == 3
    assert trainer.state.best_global_step == 1
    best = callback.monitor.probe(4)
    assert best.metrics["free_energy"] < record.metrics["free_energy"] - 1e-3


def test_checkpoints_and_models_saved_within_a_run_keep_its_base(tmp_path, model, tokenizer, suite):
    options = {"save_strategy": "steps", "save_steps": 3}
    train(tmp_path / "sft", model, tokenizer, suite, [CrystalCallback(suite)], **options)
    base = read_run(tmp_path / "sft").info["reference"]
    merged = tmp_path / "sft" / "merged"
    model.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    for number, folder in enumerate([tmp_path / "sft" / "checkpoint-3", merged]):
        callback = CrystalCallback(suite, every=3)
        set_seed(0)
        make_trainer(tmp_path / str(number), str(folder), tokenizer, suite, [callback]).train()
        run = read_run(tmp_path / str(number))
        assert run.info["reference"] == base
        assert run.records[0].metrics["free_energy"] > 1e-3


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT, of a model made here
def test_adapters_are_compared_with_the_model_under_them(tmp_path, model, tokenizer, suite):
    """SFT with LoRA, then DPO's way: the trained adapter on its base, and more training."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    first = get_peft_model(model, lora)
    train(tmp_path / "sft", first, tokenizer, suite, [CrystalCallback(suite, every=3)])
    first.save_pretrained(tmp_path / "adapter")
    fresh = type(model)(model.config)
    fresh.load_state_dict(start)
    second = PeftModel.from_pretrained(fresh, tmp_path / "adapter", is_trainable=True)
    frozen = [parameter.requires_grad for parameter in second.parameters()]
    monitors = [Monitor(second, tokenizer, suite, kind) for kind in ("auto", "initial")]
    assert [parameter.requires_grad for parameter in second.parameters()] == frozen
    one = read_run(tmp_path / "sft")
    assert monitors[0].reference.info.id == one.info["reference"]
    auto, initial = (monitor.probe(0).metrics["free_energy"] for monitor in monitors)
    assert auto == pytest.approx(one.records[-1].metrics["free_energy"], rel=1e-3)
    assert initial == 0.0


def test_two_callbacks_have_a_folder_and_names_of_their_own(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        crystalmon.trackers.base.CompositeTracker,
        "log",
        lambda self, step, metrics: seen.extend(metrics),
    )
    callbacks = [CrystalCallback(suite, every=3), CrystalCallback("liquid-tiny", every=3)]
    train(tmp_path, model, tokenizer, suite, callbacks)
    one, two = read_run(tmp_path), read_run(tmp_path / "crystalmon-liquid-tiny")
    assert (one.info["suite"], two.info["suite"]) == ("three", "liquid-tiny")
    assert one.info["reference_model"] == two.info["reference_model"]
    assert [len(run.records) for run in (one, two)] == [3, 3]
    assert {"crystalmon/order", "crystalmon-liquid-tiny/order"} <= set(seen)
    # another training in the same process starts over with the first name
    again = [CrystalCallback(suite, every=3)]
    train(tmp_path / "again", model, tokenizer, suite, again)
    assert (tmp_path / "again" / "crystalmon" / "run.json").is_file()


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.filterwarnings("ignore")  # and warns
def test_compiled_training_is_watched_and_the_same(tmp_path, model, tokenizer, suite, monkeypatch):
    # the trainer sets them for the whole process
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    results = []
    for callbacks in ([], [CrystalCallback(suite, every=2, strict=True)]):
        model.load_state_dict(start)
        out = tmp_path / str(len(callbacks))
        results.append(train(out, model, tokenizer, suite, callbacks, **options))
    (plain_logs, plain), (logs, weights) = results
    assert logs == plain_logs
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    assert len(read_run(tmp_path / "1").records) == 4


def test_grown_vocabulary_is_compared_on_the_shared_part(tmp_path, model, tokenizer, suite):
    train(tmp_path / "sft", model, tokenizer, suite, [CrystalCallback(suite, every=3)])
    model.resize_token_embeddings(800, mean_resizing=False)
    callback = CrystalCallback(suite, every=3, reference=tmp_path / "sft", strict=True)
    train(tmp_path / "grown", model, tokenizer, suite, [callback])
    first = read_run(tmp_path / "grown").records[0].metrics
    assert 0 < first["free_energy"] < 5
    assert first["vocabulary_outside"] > 0


def test_resume_with_another_base_is_refused(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=3)])
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=9, global_step=3)
    other = make_other_base(tmp_path / "base", model, tokenizer, suite)
    callback = CrystalCallback(suite, reference=other)
    with pytest.raises(ValueError, match=r"own base.* What differs: fingerprint .*, id"):
        callback.on_train_begin(args, state, TrainerControl(), model, tokenizer)
    assert len(read_run(tmp_path).records) == 3


def make_other_base(folder, model, tokenizer, suite):
    reference = Monitor(model, tokenizer, suite, "initial").reference
    reference.save(folder)
    return folder


def test_a_callback_attached_twice_counts_once(tmp_path, model, tokenizer, suite, caplog):
    callback = CrystalCallback(suite, every=3)
    train(tmp_path, model, tokenizer, suite, [callback, callback])
    assert [record.step for record in read_run(tmp_path).records] == [0, 3, 6]
    assert not (tmp_path / "crystalmon-three").exists()
    assert "attached twice" in caplog.text


def test_a_failed_second_training_leaves_the_first_run_alone(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    callback = CrystalCallback(suite, every=3)
    train(tmp_path / "a", model, tokenizer, suite, [callback])

    def broken(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(crystalmon.monitor.training, "Monitor", broken)
    train(tmp_path / "b", model, tokenizer, suite, [callback], max_steps=9)
    assert [record.step for record in read_run(tmp_path / "a").records] == [0, 3, 6]


def test_resume_without_a_base_is_refused(tmp_path, model, tokenizer, suite):
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=9, global_step=5)
    with pytest.raises(FileNotFoundError, match="at step 5 the initial model is gone"):
        CrystalCallback(suite).on_train_begin(args, state, TrainerControl(), model, tokenizer)
    named = CrystalCallback(suite, reference=TINY)
    named.on_train_begin(args, state, TrainerControl(), model, tokenizer)
    assert named.monitor is not None
    assert named.monitor.reference.info.model == str(TINY)


def test_a_base_scored_on_another_machine_is_the_same(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=3, reference=TINY)])
    folder = tmp_path / "crystalmon" / "reference"
    stored = load_reference(folder)
    rounded = {name: table - 1e-6 for name, table in stored.log_choice.items()}
    info = replace(stored.info, id=reference_id(stored.info.plan, rounded))
    replace(stored.in_memory(), log_choice=rounded, info=info).save(folder)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=9, global_step=3)
    callback = CrystalCallback(suite, reference=TINY)
    callback.on_train_begin(args, state, TrainerControl(), model, tokenizer)
    assert callback.monitor is not None
    assert callback.monitor.reference.info.id != info.id


def test_a_resumed_run_asks_as_many_as_it_has_time_for(tmp_path, model, tokenizer, monkeypatch):
    def run(max_steps, resume=None):
        callback = CrystalCallback("liquid-tiny", every=1)
        train(
            tmp_path, model, tokenizer, load_suite("liquid-tiny"), [callback], resume=resume,
            max_steps=max_steps, save_steps=2, save_strategy="steps",
        )  # fmt: skip

    run(2)
    (tmp_path / "crystalmon" / "records.jsonl").write_text(
        (tmp_path / "crystalmon" / "records.jsonl").read_text().splitlines(keepends=True)[0]
    )
    monkeypatch.setattr(Schedule, "wants", lambda *given: 2)
    run(3, str(tmp_path / "checkpoint-2"))
    found = {record.step: record.wordings for record in read_run(tmp_path).records}
    assert found == {0: None, 2: 2, 3: 2}


def test_resume_with_another_view_is_refused(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=3)])
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=9, global_step=3)
    callback = CrystalCallback(suite, view="chat", reference=TINY)
    with pytest.raises(ValueError, match="must be resumed with its own suite and view, 'three'"):
        callback.on_train_begin(args, state, TrainerControl(), model, tokenizer)


def test_base_that_cannot_be_scored_does_not_stop_training(
    tmp_path, model, tokenizer, suite, monkeypatch, caplog
):
    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(crystalmon.monitor.training, "Monitor", broken)
    with caplog.at_level(logging.WARNING):
        logs, _ = train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)])
    assert len([row for row in logs if "loss" in row]) == 6
    assert "the base could not be scored, so this run is not monitored" in caplog.text


def test_full_disk_leaves_the_trackers_going(
    tmp_path, model, tokenizer, suite, monkeypatch, caplog
):
    seen = []
    monkeypatch.setattr(
        crystalmon.trackers.base.CompositeTracker,
        "log",
        lambda self, step, metrics: seen.append(step),
    )

    def full(self, record, events, doubtful_after):
        raise RunFolderError("No space left on device")

    monkeypatch.setattr(crystalmon.monitor.recorder.RunStore, "append", full)
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=3)])
    assert seen == [0, 3, 6]
    assert "could not be stored and waits for the next one; training goes on" in caplog.text


def test_failing_probe_is_counted_and_training_goes_on(
    tmp_path, model, tokenizer, suite, monkeypatch, caplog
):
    callback = CrystalCallback(suite, every=1)
    original = crystalmon.monitor.training.Monitor.probe

    def probe(self, step=0, *args, **options):
        if step in (2, 3):
            raise RuntimeError("boom")
        return original(self, step, *args, **options)

    monkeypatch.setattr(crystalmon.monitor.training.Monitor, "probe", probe)
    with caplog.at_level(logging.WARNING):
        logs, _ = train(tmp_path, model, tokenizer, suite, [callback])
    assert len([row for row in logs if "loss" in row]) == 6
    assert callback.failures == 2
    assert [record.step for record in read_run(tmp_path).records] == [0, 1, 4, 5, 6]
    assert "probe at step 2 failed; training goes on" in caplog.text
    with pytest.raises(RuntimeError, match="boom"):
        train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=1, strict=True)])


def test_tracker_gets_every_metric_at_every_probe(tmp_path, model, tokenizer, suite, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=2)],
        report_to=["tensorboard"],
    )  # fmt: skip
    (folder,) = (tmp_path / "runs").rglob("crystalmon")
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    for record in read_run(tmp_path).records:
        for key, value in tracker_metrics(record).items():
            points = {e.step: e.value for e in accumulator.Scalars(key)}
            found = points[record.step]
            assert found == pytest.approx(value, rel=1e-5) or (math.isnan(value)), key


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be a number of steps or a share .*, got 0"),
        ({"every": float("inf")}, ValueError, "every must be a number of steps .*, got inf"),
        ({"every": 2.5}, ValueError, "between 0 and 1, got 2.5"),
        ({"every": "2"}, TypeError, "every must be a number or None, got str"),
        (
            {"reference": None},
            TypeError,
            "reference must be a name, a path or a Reference, got None",
        ),
        ({"view": "rare"}, ValueError, "view must be auto, raw, chat or a template with {prompt}"),
        ({"view": "{prompt} {prompt}"}, ValueError, "must have {prompt} once, got it 2 times"),
        ({"view": ["raw", "raw"]}, ValueError, "two views are named 'raw'"),
        ({"view": ["a {prompt}", "b {prompt}"]}, ValueError, "two views are named 'template'"),
        ({"view": []}, ValueError, "view must name at least one view"),
        ({"view": 3}, TypeError, "view must be a text, a list or a mapping, got int"),
        ({"suite": "nothing"}, FileNotFoundError, "suite 'nothing' is neither a bundled suite"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CrystalCallback(**arguments)


def test_unwritable_folder_is_found_at_the_start(tmp_path, model, tokenizer, suite):
    (tmp_path / "crystalmon").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"the folder .*crystalmon cannot be written to"):
        train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)])


def test_foreign_reference_is_refused_at_the_start(tmp_path, model, tokenizer, suite):
    train(tmp_path / "a", model, tokenizer, suite, [CrystalCallback(suite)], max_steps=1)
    callback = CrystalCallback("liquid-tiny", reference=tmp_path / "a")
    with pytest.raises(ReferenceMismatch, match="must be of suite 'liquid-tiny'"):
        train(tmp_path / "b", model, tokenizer, suite, [callback], max_steps=1)


def test_headless_model_is_refused(tmp_path, tokenizer, suite):
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    headless = AutoModel.from_pretrained(TINY)
    callback = CrystalCallback(suite)
    with pytest.raises(TypeError, match="must have a language-modelling head, got LlamaModel"):
        callback.on_train_begin(
            args, TrainerState(max_steps=1), TrainerControl(), headless, tokenizer
        )


class SlowSteps(TrainerCallback):
    """Steps and probes that take a known time on a clock of their own."""

    def __init__(self, monkeypatch, step_seconds, probe_seconds):
        self.now = 0.0
        self.step_seconds = step_seconds
        self.budgets = []
        probe = Monitor.probe

        def slow(monitor, *args, **options):
            self.now += probe_seconds
            record = probe(monitor, *args, **options)
            monitor.seconds_a_probe = probe_seconds
            return record

        def budget(share):
            self.budgets.append(Budget(share, lambda: self.now))
            return self.budgets[-1]

        def begin(monitor, *args, **options):
            make(monitor, *args, **options)
            monitor.seconds_a_probe = probe_seconds  # not what this machine took for the base

        make = Monitor.__init__
        monkeypatch.setattr(Monitor, "__init__", begin)
        monkeypatch.setattr(Monitor, "probe", slow)
        monkeypatch.setattr("crystalmon.monitor.training.Budget", budget)
        monkeypatch.setattr("crystalmon.monitor.schedule.MOVED", float("inf"))

    def on_step_begin(self, *args, **kwargs):
        self.now += self.step_seconds


def test_a_short_run_is_told_no_more_probes_than_it_has_steps(
    tmp_path, model, tokenizer, suite, capsys
):
    train(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, max_overhead=0.02)], max_steps=2
    )
    assert "of the time, at least 3;" in capsys.readouterr().out
    assert len(read_run(tmp_path / "crystalmon").records) == 3


@pytest.mark.parametrize(
    ("seconds", "share", "steps"),
    [
        ((1.0, 1e-6), 0.5, [0, 2, 4, 6, 8]),
        ((1.0, 0.5), 0.2, [0, 2, 4, 6, 8]),
        ((1.0, 5.0), 0.25, [0, 2, 4, 6, 8]),
    ],
)
def test_a_budget_keeps_probing_to_its_share_of_the_time(
    tmp_path, model, tokenizer, suite, capsys, monkeypatch, seconds, share, steps
):
    clock = SlowSteps(monkeypatch, *seconds)
    callback = CrystalCallback(suite, every=2, max_overhead=share)
    train(tmp_path, model, tokenizer, suite, [clock, callback], max_steps=8, learning_rate=1e-7)
    run = read_run(tmp_path / "crystalmon")
    assert [record.step for record in run.records] == steps
    assert run.info["config"]["max_overhead"] == share
    assert clock.budgets[-1].spent == pytest.approx(len(steps) * seconds[1])
    told, spent = capsys.readouterr().out, clock.budgets[-1].spent / clock.now
    assert f"probes within {100 * share:g}% of the time, at least 5" in told
    assert f"monitoring took {spent:.2%} of the time" in told
    assert run.info["overhead"] == pytest.approx(spent)


@pytest.mark.parametrize(
    ("step_seconds", "options", "said"),
    [
        (4.0, {}, "takes 53% of the run's time (8 s a probe, 4 s a step)"),
        (4.0, {"every": 100}, "takes 20% of the run's time (8 s a probe, 4 s a step)"),
        (1000.0, {}, None),
        (4.0, {"max_overhead": 0.9}, None),
    ],
)
def test_it_is_said_once_what_a_dear_schedule_will_take(
    tmp_path, model, tokenizer, suite, capsys, monkeypatch, step_seconds, options, said
):
    clock = SlowSteps(monkeypatch, step_seconds, probe_seconds=8.0)
    options = {"every": 2, **options}
    train(
        tmp_path, model, tokenizer, suite, [clock, CrystalCallback(suite, **options)], max_steps=16
    )
    told = capsys.readouterr().out
    assert told.count("by this schedule monitoring") == (said is not None)
    assert said is None or said in told


def test_what_trackers_take_is_part_of_what_a_probe_costs(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    clock = SlowSteps(monkeypatch, step_seconds=1.0, probe_seconds=0.25)

    def slow(tracker, *args):
        clock.now += 1.75

    monkeypatch.setattr("crystalmon.trackers.base.CompositeTracker.log", slow)
    callback = CrystalCallback(suite, every=100, max_overhead=0.25)
    train(tmp_path, model, tokenizer, suite, [clock, callback], max_steps=10)
    assert [record.step for record in read_run(tmp_path / "crystalmon").records] == [0, 10]
    assert clock.budgets[-1].spent == 4.0


def test_a_failing_probe_is_paid_for_and_the_next_one_waits(
    tmp_path, model, tokenizer, suite, capsys, monkeypatch
):
    clock = SlowSteps(monkeypatch, step_seconds=1.0, probe_seconds=1.0)
    slow = Monitor.probe

    def fail(monitor, step, *args, **options):
        if step == 0:
            return slow(monitor, step, *args, **options)
        clock.now += 8.0
        raise RuntimeError("no")

    monkeypatch.setattr(Monitor, "probe", fail)
    callback = CrystalCallback(suite, every=1, max_overhead=0.25)
    train(tmp_path, model, tokenizer, suite, [clock, callback], max_steps=34)
    told = capsys.readouterr().out
    assert callback.failures == LEAST, "the next one is known to take 8 s, and waits"
    assert "the last probe: liquid" in told


def test_stop_after_an_epoch_is_probed_before_the_best_model_is_loaded(
    tmp_path, model, tokenizer, suite, capsys
):
    callback = CrystalCallback(suite, every=1000, max_overhead=1.0)
    stop = EarlyStoppingCallback(1, early_stopping_threshold=10.0)
    train(
        tmp_path, model, tokenizer, suite, [callback, stop], max_steps=-1, num_train_epochs=4,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="loss",
    )  # fmt: skip
    steps = [record.step for record in read_run(tmp_path).records]
    state = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
    assert steps == [0, 2 * (state["max_steps"] // 4)]
    assert "another one would have taken" not in capsys.readouterr().out


def test_a_resumed_run_does_not_probe_a_step_that_was_not_asked_for(
    tmp_path, model, tokenizer, suite
):
    def run(max_steps, resume):
        train(
            tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=4)],
            max_steps=max_steps, save_steps=3, save_strategy="steps", resume=resume,
        )  # fmt: skip
        return [record.step for record in read_run(tmp_path / "crystalmon").records]

    assert run(5, None) == [0, 4, 5]
    assert run(8, str(tmp_path / "checkpoint-3")) == [0, 4, 8]


def test_run_json_is_readable(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], max_steps=1)
    info = json.loads((tmp_path / "crystalmon" / "run.json").read_text())
    assert info["schema_version"] == 1
    assert info["versions"]["torch"] == torch.__version__


def test_a_template_that_raises_ends_the_run_before_its_first_step(
    tmp_path, model, tokenizer, suite
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('a system role is needed') }}"
    with pytest.raises(ValueError, match=r"chat template .* a system role is needed\. Use view="):
        train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, view="chat")])
    assert not (tmp_path / "crystalmon" / "run.json").exists()


def test_numbers_of_numpy_are_numbers(tmp_path, model, tokenizer, suite):
    share, every = np.float32(0.5), np.int64(2)
    callback = CrystalCallback(suite, every=every, max_overhead=share)
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=2)
    config = read_run(tmp_path).info["config"]
    assert (config["every"], config["max_overhead"]) == (2, 0.5)


def test_a_suites_name_names_no_other_folder(tmp_path, model, tokenizer, suite):
    odd = TaskSuite("a/../../x", suite.tasks[:1])
    callbacks = [CrystalCallback(suite, every=9), CrystalCallback(odd, every=9)]
    train(tmp_path / "out", model, tokenizer, suite, callbacks, max_steps=1)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    found = sorted(each.name for each in (tmp_path / "out").glob("crystalmon*"))
    assert found == ["crystalmon", "crystalmon-a_.._.._x"]
    assert read_run(tmp_path / "out" / found[1]).info["suite"] == "a/../../x"
