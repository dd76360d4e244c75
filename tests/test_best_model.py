"""The trainer's own choice of a checkpoint, by a metric of the suite; and what trackers get."""

from __future__ import annotations

import math

import pytest
import torch
from test_callback import make_trainer, train
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from crystalmon import CrystalCallback, read_run
from crystalmon.metrics.catalogue import METRICS
from crystalmon.runs.run import Run
from crystalmon.trackers.base import tracker_metrics

EVALUATED = {
    "max_steps": 8, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
    "save_steps": 2, "learning_rate": 1e-2,
}  # fmt: skip
CHOSEN = {"metric_for_best_model": "crystalmon/order", "greater_is_better": True}


class Heard(TrainerCallback):
    """Keeps what callbacks after the monitor read of each evaluation."""

    def __init__(self):
        self.metrics = {}

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.metrics[state.global_step] = dict(metrics or {})


def values(run: Run) -> dict[int, float]:
    """The order at each evaluation; each asked all prompts."""
    probed = {record.step: record for record in run.records}
    assert all(task.asked is None for step in (2, 4, 6, 8) for task in probed[step].tasks.values())
    return {step: probed[step].metrics["order"] for step in (2, 4, 6, 8)}


def test_the_best_checkpoint_is_chosen_by_a_metric_of_the_suite(tmp_path, model, tokenizer, suite):
    set_seed(0)
    heard = Heard()
    trainer = make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite), heard],
        **EVALUATED, **CHOSEN, load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    order = values(read_run(tmp_path))
    best = max(order, key=lambda step: order[step])
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == order[best]
    told = {step: metrics["eval_crystalmon/order"] for step, metrics in heard.metrics.items()}
    assert told == order
    assert not [row for row in trainer.state.log_history if "eval_crystalmon/order" in row]


def test_all_else_of_such_a_training_is_the_same(tmp_path, model, tokenizer, suite):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    logs, weights = train(tmp_path / "plain", model, tokenizer, suite, [], **EVALUATED)
    model.load_state_dict(start)
    callback = CrystalCallback(suite)
    others = train(tmp_path / "ours", model, tokenizer, suite, [callback], **EVALUATED, **CHOSEN)
    assert others[0] == logs
    assert all(torch.equal(others[1][name], value) for name, value in weights.items())


def test_a_trainer_that_chooses_by_its_loss_gets_no_metric(tmp_path, model, tokenizer, suite):
    heard = Heard()
    options = EVALUATED | {"metric_for_best_model": "loss"}
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite), heard], **options)
    assert heard.metrics
    assert not any("crystalmon" in key for row in heard.metrics.values() for key in row)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_training_stops_early_by_a_metric_of_the_suite(tmp_path, model, tokenizer, suite, strategy):
    options = EVALUATED | {"eval_strategy": strategy, "save_strategy": strategy}
    if strategy == "epoch":
        options |= {"max_steps": -1, "num_train_epochs": 4}
    stop = EarlyStoppingCallback(1, early_stopping_threshold=10.0)
    callbacks = [CrystalCallback(suite), stop]
    set_seed(0)
    trainer = make_trainer(
        tmp_path, model, tokenizer, suite, callbacks,
        **options, metric_for_best_model="eval_crystalmon/free_energy", greater_is_better=False,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    ends = {"steps": 4, "epoch": trainer.state.max_steps // 2}
    assert trainer.state.global_step == ends[strategy]


def test_an_evaluation_outside_a_training_is_left_alone(tmp_path, model, tokenizer, suite):
    trainer = make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], **EVALUATED, **CHOSEN
    )
    assert "eval_crystalmon/order" not in trainer.evaluate()
    trainer.train()
    probes = len(read_run(tmp_path).records)
    trainer.evaluate()
    assert len(read_run(tmp_path).records) == probes


def test_trackers_get_the_suites_main_metrics_or_all(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], max_steps=2)
    record = read_run(tmp_path).records[-1]
    main = tracker_metrics(record)
    shown = {f"crystalmon/{metric.key}" for metric in METRICS if metric.panel}
    assert set(main) == shown - {"crystalmon/seed_mass"}  # no seed is held
    assert len(main) == 11
    whole = tracker_metrics(record, logged="tasks")
    assert main.items() <= whole.items()
    assert len(whole) > 60
    assert "crystalmon_tasks/coin/order" in whole
    with pytest.raises(ValueError, match="log must be one of suite, tasks, got 'all'"):
        CrystalCallback(suite, log="all")  # pyright: ignore[reportArgumentType]


def test_a_metric_that_has_no_value_yet_does_not_end_the_training(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    """No task can be measured, and no seed is held."""
    monkeypatch.setattr("crystalmon.monitor.probe.MEASURABLE", 1.1)
    heard = Heard()
    for metric in ("order", "seed_mass"):
        chosen = {"metric_for_best_model": f"crystalmon/{metric}", "greater_is_better": True}
        out = tmp_path / metric
        train(out, model, tokenizer, suite, [CrystalCallback(suite), heard], **EVALUATED, **chosen)
        assert math.isnan(heard.metrics[8][f"eval_crystalmon/{metric}"])
        assert read_run(out).records[-1].step == 8


def test_a_metric_that_there_is_none_of_is_told_at_the_start(tmp_path, model, tokenizer, suite):
    options = EVALUATED | {"metric_for_best_model": "crystalmon/ordr"}
    with pytest.raises(ValueError, match="must be a main metric of the suite, got 'ordr'"):
        train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite)], **options)
