"""What a signal sets off: the trainer's control, an alert, a user's function."""

from __future__ import annotations

import logging

import pytest
from test_callback import make_trainer, train
from transformers import TrainerControl, TrainerState, set_seed

from crystalmon import CrystalCallback, read_run
from crystalmon.monitor.actions import ActionQueue, actions_for, check_actions
from crystalmon.monitor.failures import Failures
from crystalmon.runs.records import Event


def event(kind, task=None):
    return Event(kind, 3, task, {}, "it happened")


def test_a_kind_is_the_suites_where_the_suite_raises_it():
    actions = check_actions({"nucleation_onset": "save", "support_leak": "stop"}, ["coin"])
    assert actions_for(actions, event("nucleation_onset")) == ("save",)
    assert actions_for(actions, event("nucleation_onset", "coin")) == ()
    assert actions_for(actions, event("support_leak", "coin")) == ("stop",)
    assert actions_for(actions, event("melting")) == ()


def test_a_task_may_have_its_own():
    actions = check_actions({"coin/nucleation_onset": ["save", "alert"]}, ["coin", "die"])
    assert actions_for(actions, event("nucleation_onset", "coin")) == ("save", "alert")
    assert actions_for(actions, event("nucleation_onset", "die")) == ()
    assert actions_for(actions, event("nucleation_onset")) == ()


@pytest.mark.parametrize(
    ("action", "flag"),
    [("save", "should_save"), ("stop", "should_training_stop"), ("evaluate", "should_evaluate")],
)
def test_names_set_the_control(action, flag):
    control = TrainerControl()
    queue = ActionQueue(check_actions({"melting": action}, ()), Failures(strict=True))
    queue.add([event("melting")])
    queue.run(TrainerState(), control, lambda *_: None)
    assert [name for name, value in vars(control).items() if value is True] == [flag]


def test_a_trainer_that_does_not_stop_is_told_of_once(caplog):
    queue = ActionQueue({"melting": ("stop",)}, Failures(strict=True))
    queue.add([event("melting")])
    state = TrainerState()
    for state.global_step in range(4):
        queue.run(state, TrainerControl(), lambda *_: None)
    assert [record.message for record in caplog.records] == [
        "crystalmon: this trainer does not stop when a callback asks it to."
    ]


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        ({"onset": "save"}, ValueError, "actions must be for nucleation_onset, .*, got 'onset'"),
        ({"dice/melting": "save"}, ValueError, "tasks of the suite, got 'dice' in 'dice/melting'"),
        ({"melting": "explode"}, ValueError, "one of save, stop, evaluate, alert, got 'explode'"),
        ({"melting": 3}, TypeError, "an action must be a name or a function, got 3"),
        ({"melting": ["save", None]}, TypeError, "a name or a function, got None"),
        (["melting"], TypeError, "actions must be a mapping, got list"),
    ],
)
def test_bad_actions(suite, actions, error, message):
    with pytest.raises(error, match=message):
        CrystalCallback(suite, actions=actions)


def test_a_run_saves_alerts_and_stops(tmp_path, model, tokenizer, suite, monkeypatch, capsys):
    alerts, seen = [], []
    monkeypatch.setattr(
        "crystalmon.trackers.base.CompositeTracker.alert",
        lambda self, title, text: alerts.append((title, text)),
    )

    def note(event, state, control):
        seen.append((event.kind, state.global_step, control.should_save))

    actions = {
        "nucleation_onset": ["save", note],
        "coin/nucleation_onset": "alert",
        "nucleation_complete": "stop",
    }
    set_seed(0)
    trainer = make_trainer(
        tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=1, actions=actions)],
        max_steps=80, learning_rate=5e-3,
    )  # fmt: skip
    trainer.train()
    run = read_run(tmp_path)
    steps = {e.kind: e.step for e in run.events if e.task is None}
    onset, complete = steps["nucleation_onset"], steps["nucleation_complete"]
    assert (tmp_path / f"checkpoint-{onset}").is_dir()
    assert trainer.state.global_step == complete < 80
    assert run.records[-1].step == complete
    assert seen == [("nucleation_onset", onset, True)]
    ((title, text),) = alerts
    assert title == "crystalmon: nucleation_onset"
    assert ": nucleation_onset (coin): " in text
    assert run.info["config"]["actions"]["nucleation_onset"][0] == "save"
    assert ": save\n" in capsys.readouterr().out


def test_a_function_that_raises_does_not_stop_training(tmp_path, model, tokenizer, suite, caplog):
    def broken(event, state, control):
        raise RuntimeError("boom")

    callback = CrystalCallback(suite, every=1, actions={"nucleation_onset": broken})
    with caplog.at_level(logging.WARNING):
        train(tmp_path, model, tokenizer, suite, [callback], max_steps=12, learning_rate=5e-3)
    assert callback.failures > 0
    assert "broken failed on nucleation_onset; training goes on" in caplog.text
    assert read_run(tmp_path).records[-1].step == 12
