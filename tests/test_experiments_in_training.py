"""Experiments inside a training: no trace, their steps, the base, trackers, resuming."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from readback import read_tensorboard
from test_callback import train, with_dropout

from crystalmon import CrystalCallback, read_run
from crystalmon.experiments.common.experiment import Experiment
from crystalmon.experiments.common.instructions import Instruction
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.drift.instruction_drift import Drift
from crystalmon.experiments.landscape.free_energies import Landscape
from crystalmon.experiments.temperature.temperature_sweep import Temperature
from crystalmon.monitor.budget import Budget
from crystalmon.runs.results import Estimate, Result, read_result, read_results
from crystalmon.scoring.models import ASSETS_DIR

GRID = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Distance(Experiment):
    """How far the output projection is from the base's: needs the base, draws at random."""

    name: ClassVar[str] = "distance"
    fails_at: int = -1

    def begin(self, base, folder):
        (folder / "distance").mkdir(parents=True)
        torch.save(weight(base).clone(), folder / "distance" / "base.pt")

    def measure(self, subject, folder, parts):
        torch.rand(3)
        subject.model.train()
        before = torch.load(folder / "distance" / "base.pt", weights_only=True)
        moved = float((weight(subject) - before).abs().max())
        if self.fails_at == 0 or moved > 0 < self.fails_at:
            raise RuntimeError("planted")
        return Result(self.name, self.settings, {"model": None}, {"moved": Estimate(moved)}, {})

    @staticmethod
    def table(result):
        return f"moved {result.estimates['moved']}"

    @staticmethod
    def figure(result):
        from matplotlib.figure import Figure

        return Figure()


def weight(subject):
    return next(subject.model.parameters()).detach()


def results(folder):
    return [(r.experiment, r.step) for r in read_results(folder / "crystalmon" / "experiments")]


def test_training_is_bit_identical(tmp_path, model, tokenizer, suite):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    asked = (Instruction("a", "x", "Pick a digit"), Instruction("b", "y", "Name a color, please"))
    drawing = {
        Landscape(tokens=3, instructions=asked): 6,
        Drift(tokens=6, every=1, burn_in=0, instructions=asked): 6,
    }
    for kind in ({}, {Temperature(suite, temperatures=GRID): 2, Distance(): 3, **drawing}):
        model.load_state_dict(start)
        callbacks = [CrystalCallback(suite, every=2, experiments=kind)] if kind else []
        out = tmp_path / str(len(kind))
        found.append(train(out, with_dropout(model), tokenizer, suite, callbacks))
    (plain_logs, plain), (logs, weights) = found
    assert logs == plain_logs
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    assert callbacks[0].failures == 0
    assert results(tmp_path / "4") == [
        *[("distance", step) for step in (0, 3, 6)],
        *[(name, step) for name in ("drift", "landscape") for step in (0, 6)],
        *[("temperature", step) for step in (0, 2, 4, 6)],
    ]
    folder = tmp_path / "4" / "crystalmon" / "experiments"
    moved = [read_result(folder / f"distance-{step}.json").estimates["moved"].value
             for step in (0, 3, 6)]  # fmt: skip
    assert moved[0] == 0 < moved[1] < moved[2]
    before, after = (read_result(folder / f"landscape-{step}.json").estimates["free_energy"].value
                     for step in (0, 6))  # fmt: skip
    assert abs(before) < 1e-9 < after
    assert (folder / "temperature.svg").is_file()
    assert read_run(tmp_path / "4").info["config"]["experiments"] == {
        "temperature": 2, "distance": 3, "landscape": 6, "drift": 6,
    }  # fmt: skip


def test_by_name_it_measures_what_is_probed(tmp_path, model, tokenizer, suite):
    callback = CrystalCallback(suite, every=3, experiments={"temperature": 100})
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=3)
    assert callback.failures == 0
    run = read_run(tmp_path)
    for step in (0, 3):  # its own step, and the last
        file = tmp_path / "crystalmon" / "experiments" / f"temperature-{step}.json"
        result = read_result(file)
        record = next(record for record in run.records if record.step == step)
        assert result.settings["suite_hash"] == suite.hash
        probed = record.metrics["heat_capacity"]
        assert result.estimates["heat_capacity"].value == pytest.approx(probed, abs=1e-4)
        assert result.seconds > 0


def test_what_begins_on_the_base_counts_apart(tmp_path, model, tokenizer, suite, monkeypatch):
    """On a clock that only experiments move, monitoring takes no time at all."""
    now = [0.0]

    class Slow(Distance):
        def begin(self, base, folder):
            now[0] += 100.0
            super().begin(base, folder)

    def budget(share):
        return Budget(share, lambda: now[0])

    monkeypatch.setattr("crystalmon.monitor.training.Budget", budget)
    callback = CrystalCallback(suite, experiments={Slow(): 100})
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=2)
    assert now == [100.0]
    assert {record.share for record in read_run(tmp_path).records} == {0.0}


def test_tensorboard_shows_the_estimates_on_the_trainer_s_steps(tmp_path, model, tokenizer, suite):
    callback = CrystalCallback(suite, experiments={Temperature(suite, temperatures=GRID): 3})
    train(tmp_path, model, tokenizer, suite, [callback], report_to="tensorboard")
    (folder,) = (tmp_path / "runs").rglob("crystalmon")
    board = read_tensorboard(folder)
    for key in ("entropy", "heat_capacity", "peak_temperature", "optimal_temperature", "seconds"):
        points = board.Scalars(f"crystalmon_experiments/temperature/{key}")
        assert [point.step for point in points] == [0, 3, 6]
    last = read_result(tmp_path / "crystalmon" / "experiments" / "temperature-6.json")
    shown = board.Scalars("crystalmon_experiments/temperature/entropy")[-1].value
    assert shown == pytest.approx(last.estimates["entropy"].value, rel=1e-5)


def test_a_failure_is_counted_and_training_goes_on(tmp_path, model, tokenizer, suite, caplog):
    callback = CrystalCallback(suite, experiments={Distance(fails_at=1): 2})
    logs, _ = train(tmp_path, model, tokenizer, suite, [callback])
    assert callback.failures == 3
    assert len([row for row in logs if "loss" in row]) == 6
    assert results(tmp_path) == [("distance", 0)]
    assert "distance at step 2 failed; training goes on" in caplog.text
    strict = CrystalCallback(suite, experiments={Distance(fails_at=0): 2}, strict=True)
    with pytest.raises(RuntimeError, match="planted"):
        train(tmp_path / "strict", model, tokenizer, suite, [strict])


def test_a_resumed_run_goes_on_from_its_own_base(tmp_path, model, tokenizer, suite):
    def callback():
        return CrystalCallback(suite, experiments={Distance(): 2})

    options = {"save_strategy": "steps", "save_steps": 3}
    model.config._name_or_path = ""  # it cannot be loaded again
    train(tmp_path, model, tokenizer, suite, [callback()], **options)
    folder = tmp_path / "crystalmon" / "experiments"
    whole = read_result(folder / "distance-6.json").estimates["moved"].value
    again = callback()
    resume = str(tmp_path / "checkpoint-3")
    train(tmp_path, model, tokenizer, suite, [again], resume=resume, **options)
    assert again.failures == 0
    assert results(tmp_path) == [("distance", step) for step in (0, 2, 4, 6)]
    assert read_result(folder / "distance-6.json").estimates["moved"].value == whole
    assert sorted(file.name for file in (folder / "superseded").iterdir()) == [
        "distance-4.json", "distance-6.json",
    ]  # fmt: skip
    # what an earlier start was superseded by does not take its place
    train(tmp_path, model, tokenizer, suite, [callback()], resume=resume, **options)
    assert (folder / "superseded" / "distance-6.2.json").is_file()
    assert len(list((folder / "superseded").iterdir())) == 4
    # an experiment that was not there at the start cannot begin now; a damaged note says nothing
    for note in ("{}", '{"temp', "[1]", "\n"):
        (folder / "begun.json").write_text(note)
        with pytest.raises(FileNotFoundError, match=r"distance must begin on the base"):
            train(tmp_path, model, tokenizer, suite, [callback()], resume=resume, **options)


def test_the_base_of_another_model_is_loaded_and_freed(tmp_path, model, tokenizer, suite):
    with torch.no_grad():
        next(model.parameters()).add_(0.25)
    tiny = str(ASSETS_DIR / "liquid-tiny")
    callback = CrystalCallback(suite, reference=tiny, experiments={Distance(): 6})
    train(tmp_path, model, tokenizer, suite, [callback])
    folder = tmp_path / "crystalmon" / "experiments"
    assert read_result(folder / "distance-0.json").estimates["moved"].value == pytest.approx(0.25)


def test_a_base_by_name_reads_the_tokens_of_the_trained_model(
    tmp_path, model, tokenizer, suite, monkeypatch
):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }} Answer:")
    asked = (Instruction("a", "x", "Pick a digit"),)
    tiny = str(ASSETS_DIR / "liquid-tiny")
    landscape = Landscape(tokens=2, instructions=asked)
    callback = CrystalCallback(suite, reference=tiny, experiments={landscape: 9})
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=1)
    assert callback.failures == 0
    file = tmp_path / "crystalmon" / "experiments" / "landscape" / "texts.json"
    shown, prompt, _ = json.loads(file.read_text())["texts"]["a"]
    assert shown == "Pick a digit Answer:"
    assert tuple(prompt) == Subject(model, tokenizer).prompt("Pick a digit")


def test_a_new_run_in_the_same_folder_starts_over(tmp_path, model, tokenizer, suite):
    for steps in (6, 2):
        callback = CrystalCallback(suite, experiments={Distance(): 2})
        train(tmp_path, model, tokenizer, suite, [callback], max_steps=steps)
        assert callback.failures == 0
    assert results(tmp_path) == [("distance", 0), ("distance", 2)]


def test_what_an_older_run_in_the_folder_has_left_is_not_taken_over(
    tmp_path, model, tokenizer, suite
):
    """The older run's base is 0.25 away from the one that the resumed run names."""
    weight_now = next(model.parameters())
    start = {name: value.clone() for name, value in model.state_dict().items()}
    folder, options = tmp_path / "crystalmon" / "experiments", {"max_steps": 2}
    with torch.no_grad():
        weight_now.add_(0.25)
    callback = CrystalCallback(suite, experiments={Distance(): 2})
    train(tmp_path, model, tokenizer, suite, [callback], **options)
    model.load_state_dict(start)
    options |= {"save_strategy": "steps", "save_steps": 1}
    tiny = str(ASSETS_DIR / "liquid-tiny")
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, reference=tiny)], **options)
    assert results(tmp_path) == []
    assert not (folder / "distance.svg").exists()
    assert (folder / "superseded" / "distance-2.json").is_file()
    again = CrystalCallback(suite, reference=tiny, experiments={Distance(): 2})
    resume = str(tmp_path / "checkpoint-1")
    train(tmp_path, model, tokenizer, suite, [again], resume=resume, **options)
    assert again.failures == 0
    assert 0 < read_result(folder / "distance-2.json").estimates["moved"].value < 0.2


def test_a_limit_on_monitoring_does_not_hold_back_what_was_asked_for(
    tmp_path, model, tokenizer, suite
):
    callback = CrystalCallback(suite, max_overhead=0.01, experiments={Distance(): 2})
    train(tmp_path, model, tokenizer, suite, [callback], max_steps=4)
    assert results(tmp_path) == [("distance", 0), ("distance", 2), ("distance", 4)]
    assert callback.failures == 0


@pytest.mark.parametrize(
    ("experiments", "error", "message"),
    [
        ({"nothing": 5}, ValueError, "must be one of context, drift, landscape, temperature, got"),
        ({"temperature": 0}, ValueError, "the interval of temperature must be a positive number"),
        ({"temperature": 2.5}, ValueError, "must be a positive number of steps, got 2.5"),
        ({Distance(): True}, ValueError, "must be a positive number of steps, got True"),
        ({Distance(): 1, Distance(fails_at=3): 2}, ValueError, "got distance twice"),
        (["temperature"], TypeError, "experiments must be a mapping, got list"),
        ({3: 3}, TypeError, "must be a name or an Experiment, got int"),
    ],
)
def test_bad_experiments_are_named(suite, experiments, error, message):
    with pytest.raises(error, match=message):
        CrystalCallback(suite, experiments=experiments)


def test_what_cannot_be_read_on_resume_is_not_guessed(tmp_path, model, tokenizer, suite):
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, experiments={Distance(): 6})])
    begun = json.loads((tmp_path / "crystalmon" / "experiments" / "begun.json").read_text())
    assert begun.pop("base") == read_run(tmp_path).info["reference"]
    assert begun == {"distance": {"fails_at": -1}}


@pytest.mark.parametrize("kind", [Drift, Landscape])
@pytest.mark.parametrize("tokens", [float("nan"), "128", 128.5, True])
def test_settings_that_would_fail_when_measured_are_refused_at_once(kind, tokens):
    with pytest.raises(TypeError, match="tokens must be an integer"):
        kind(tokens=tokens)
