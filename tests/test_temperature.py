"""The temperature sweep: closed forms, the objective's best temperature, one pass, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_models import PlantedModel, by_last

import crystalmon.experiments.temperature.temperature_sweep as module
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.temperature.curves import highest, summarize_sweep
from crystalmon.experiments.temperature.temperature_sweep import (
    DEFAULT_TEMPERATURES,
    Temperature,
    swept,
)
from crystalmon.monitor.probe import Monitor
from crystalmon.runs.results import Result
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.score import score

GRID = DEFAULT_TEMPERATURES


def two_levels(gap: float, others: int, temperature: float) -> tuple[float, float, float]:
    """S, C and the upper level's share for one logit `gap` above `others` equal ones."""
    x = gap / temperature
    tail = others * math.exp(-x)
    upper = 1 / (1 + tail)
    entropy = math.log1p(tail) + x * tail * upper
    return entropy, upper * (tail * upper) * x**2, upper


def test_the_grid_is_log_spaced_and_holds_one():
    assert len(GRID) == 61
    assert 1.0 in GRID
    assert GRID[0] == pytest.approx(0.05, rel=0.01)
    assert np.ptp(np.diff(np.log(GRID))) < 1e-3


@pytest.mark.parametrize("gap", [0.1, 3.0, 12.0])
def test_a_two_level_model_has_its_closed_form(gap):
    logits = torch.zeros(1, 1000)
    logits[0, 7] = gap
    logits[0, 900:] = -torch.inf  # what cannot be drawn takes no part
    found = swept(logits, torch.arange(1000)[None] == 7, GRID)[0]
    expected = np.array([two_levels(gap, 899, temperature) for temperature in GRID]).T
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6, rtol=1e-6)


def test_the_heat_capacity_is_the_derivative_of_minus_the_mean_logit():
    torch.manual_seed(0)
    logits = 4 * torch.randn(3, 500, dtype=torch.float64)
    begins = torch.zeros(3, 500, dtype=torch.bool)
    heat_capacity = swept(logits, begins, GRID)[:, 1]

    def mean(temperature):
        return ((logits / temperature).softmax(-1) * logits).sum(-1)

    for index, temperature in enumerate(GRID):
        h = 1e-4 * temperature
        slope = -(mean(temperature + h) - mean(temperature - h)) / (2 * h)
        torch.testing.assert_close(heat_capacity[:, index], slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("constant", [-300.0, 1e4])
def test_a_constant_added_to_the_logits_changes_nothing(constant):
    torch.manual_seed(1)
    logits = torch.randn(2, 50, dtype=torch.float64)
    begins = torch.rand(2, 50) < 0.2
    moved = swept(logits + constant, begins, GRID)
    torch.testing.assert_close(swept(logits, begins, GRID), moved, rtol=1e-6, atol=1e-9)


def test_what_is_not_finite_stays_so():
    logits = torch.tensor([[0.0, torch.nan, 1.0]])
    assert swept(logits, torch.zeros(1, 3, dtype=torch.bool), GRID).isnan().all()


def test_the_highest_point_lies_between_the_grid_s():
    grid = np.array(GRID)
    log_t = np.log(grid)
    curves = np.stack([2 - (log_t - math.log(0.731)) ** 2, grid, -grid, grid * np.nan])
    places, values = highest(grid, curves)
    assert places[:3] == pytest.approx([0.731, grid[-1], grid[0]])
    assert values[0] == pytest.approx(2)
    assert math.isnan(places[3])


def planted(suite, tokenizer, spread=1.0, seed=0):
    """A model whose answers depend on the last token of the prompt, and its table of logits."""
    size = len(tokenizer)
    table = spread * torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    return PlantedModel(by_last(table), size), table


def test_a_planted_model_s_curves_are_found(suite, tokenizer, tmp_path):
    model, table = planted(suite, tokenizer)
    experiment = Temperature(suite, temperatures=(0.1, 0.5, 1.0, 2.0, 4.0))
    result = experiment.measure(Subject(model, tokenizer), tmp_path, Parts())
    for task in suite:
        last = [tokenizer(prompt)["input_ids"][-1] for prompt in task.prompts]
        z = table[last]
        z[:, 0] = -200.0
        for index, temperature in enumerate(experiment.temperatures):
            log_p = (z / temperature).log_softmax(-1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1)
            energy = (p * z).sum(-1)
            variance = (p * (z - energy[:, None]) ** 2).sum(-1) / temperature**2
            curves = result.detail["tasks"][task.name]
            assert curves["entropy"][index] == pytest.approx(float(entropy.mean()), abs=1e-4)
            assert curves["heat_capacity"][index] == pytest.approx(float(variance.mean()), abs=1e-4)
            spread = float(entropy.var(correction=0))
            assert curves["variance"][index] == pytest.approx(spread, abs=1e-4)


def test_at_one_it_is_the_probe(suite, tokenizer, model, tmp_path):
    result = Temperature(suite).measure(Subject(model, tokenizer, "tiny"), tmp_path, Parts())
    record = Monitor(model, tokenizer, suite).probe()
    found = result.estimates
    assert found["entropy"].value == pytest.approx(record.metrics["compliance_entropy"], abs=1e-5)
    assert found["heat_capacity"].value == pytest.approx(record.metrics["heat_capacity"], abs=1e-5)
    # the first token may begin more than the choices
    assert found["reliability"].value >= record.metrics["coverage"] - 1e-6
    for key in ("entropy", "heat_capacity", "reliability", "peak_temperature"):
        assert found[key].low < found[key].value < found[key].high


def test_every_row_goes_through_the_model_once(suite, tokenizer, model, tmp_path, monkeypatch):
    wanted, done = [], []

    def counted(model, plan, observe, **options):
        wanted.append(len(plan.rows))
        return score(model, plan, observe, progress=done.append, **options)

    monkeypatch.setattr(module, "score", counted)
    Temperature(suite).measure(Subject(model, tokenizer), tmp_path, Parts())
    whole = build_plan(suite, tokenizer, "raw")
    assert sum(done) == sum(wanted) == len(whole.rows)


def sweep(entropy, reliability, weight):
    """One task whose prompts have these S [P, K] and R [K]."""
    grid = np.array(GRID)
    values = np.stack([entropy, 0 * entropy, 0 * entropy + reliability], axis=1)
    estimates, detail = summarize_sweep({"task": values}, grid, weight, 50)
    return estimates["optimal_temperature"].value, detail["optimum"]["edge"]


def test_the_objective_weighs_reliability_against_the_spread_over_wordings():
    log_t = np.log(GRID)
    # the spread is least at T = 2, reliability falls from T = 0.5 on
    spread = (log_t - math.log(2)) ** 2
    entropy = np.stack([1 + spread**0.5, 1 - spread**0.5])
    reliability = -((log_t - math.log(0.5)) ** 2)
    assert sweep(entropy, reliability, 0.0)[0] == pytest.approx(0.5, rel=1e-3)
    # L = −(x − a)² − λ (x − b)² is highest at (a + λ b) / (1 + λ)
    for weight in (1.0, 3.0):
        x = (math.log(0.5) + weight * math.log(2)) / (1 + weight)
        best, edge = sweep(entropy, reliability, weight)
        assert best == pytest.approx(math.exp(x), rel=1e-3)
        assert not edge


def test_an_end_of_the_grid_is_called_one(suite, tokenizer, tmp_path):
    model, _ = planted(suite, tokenizer)
    experiment = Temperature(suite, temperatures=(3.0, 4.0, 5.0))
    result = experiment.measure(Subject(model, tokenizer), tmp_path, Parts())
    assert result.detail["peak"]["edge"]
    assert "an end of the grid" in experiment.table(result)
    assert math.isnan(result.estimates["entropy"].value)  # the grid holds no 1


def test_the_interval_covers_the_whole_population_s_mean():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        values = rng.normal(1.0, 0.3, (24, 3, 3))
        found, _ = summarize_sweep({"task": values}, np.array([0.5, 1.0, 2.0]), 0.0, 200)
        entropy = found["entropy"]
        hits += entropy.low <= 1.0 <= entropy.high
    assert hits >= 88


def test_an_interrupted_one_scores_only_what_is_missing(
    suite, tokenizer, model, tmp_path, monkeypatch
):
    subject, experiment = Subject(model, tokenizer), Temperature(suite)
    whole = experiment.measure(subject, tmp_path, Parts())
    scored = []

    def counted(model, plan, *arguments, **options):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(plan)
        return score(model, plan, *arguments, **options)

    monkeypatch.setattr(module, "score", counted)
    file = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        experiment.measure(subject, tmp_path, Parts(file, experiment.settings))
    scored[:] = scored[:1]
    again = experiment.measure(subject, tmp_path, Parts(file, experiment.settings))
    assert len(scored) == 2  # one before, the third now
    assert again.detail == whole.detail
    assert again.estimates == whole.estimates


def test_a_broken_model_gives_no_numbers_and_no_error(suite, tokenizer, model, tmp_path):
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    result = Temperature(suite).measure(Subject(model, tokenizer), tmp_path, Parts())
    result = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert math.isnan(result.estimates["peak_temperature"].value)
    assert "nan" in Temperature.table(result)
    Temperature.figure(result).savefig(tmp_path / "figure.png")


def test_table_and_figure_show_every_task(suite, tokenizer, model, tmp_path):
    result = Temperature(suite).measure(Subject(model, tokenizer), tmp_path, Parts())
    table = Temperature.table(result)
    assert [line.split()[0] for line in table.splitlines()[1:5]] == [
        "coin", "number", "color", "mean",
    ]  # fmt: skip
    axes = Temperature.figure(result).axes
    assert [ax.get_ylabel() for ax in axes][2] == "reliability R(T)"
    assert len(axes[0].lines) == len(suite) + 2  # the mean, and the line at T = 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": (1.0, 2.0)}, "at least 3 positive"),
        ({"temperatures": (0.0, 1.0, 2.0)}, "at least 3 positive"),
        ({"temperatures": (1.0, 3.0, 2.0)}, "at least 3 positive"),
        ({"temperatures": (1.0, 2.0, math.inf)}, "must be finite"),
        ({"weight": -1.0}, "weight must be finite and at least 0, got -1.0"),
        ({"weight": math.nan}, "weight must be finite"),
        ({"view": "both"}, "view must be raw, chat or a template with {prompt} in it, got 'both'"),
        ({"replicates": 0}, "replicates must be at least 1"),
    ],
)
def test_bad_settings_are_named(suite, options, message):
    with pytest.raises(ValueError, match=message):
        Temperature(suite, **options)


def test_prompts_beyond_the_context_are_refused(suite, tokenizer, model):
    model.config.max_position_embeddings = 3
    with pytest.raises(ValueError, match="at most 3 tokens long"):
        Temperature(suite).measure(Subject(model, tokenizer), Path(), Parts())


def test_the_weight_may_be_of_numpy():
    (found,) = {type(Temperature(weight=kind(2)).weight) for kind in (int, np.float32)}
    assert found is float
    with pytest.raises(TypeError, match="weight must be a number, got True"):
        Temperature(weight=True)
