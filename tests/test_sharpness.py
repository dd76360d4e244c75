"""Sharpness against the KL penalty: trends of planted numbers, and runs of planted transitions."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_record
from scipy import stats

from crystalmon.experiments.common.statistics import log_slopes, ranks, spearman, trend
from crystalmon.experiments.sharpness.kl_penalty import Sharpness, sharpness_of
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore, write_info

SCRIPTS = Path(__file__).parents[1] / "scripts"
STEPS = np.arange(0, 201, 5)
BETAS = (0.1, 0.2, 0.4, 0.8)


# --- trends ----------------------------------------------------------------------------------


def test_ranks_and_correlation_are_scipys_with_ties_too():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (2, 20, 9)).astype(float)
    np.testing.assert_allclose(ranks(x), stats.rankdata(x, axis=1) - 1)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)
    assert np.isnan(spearman(np.ones((1, 4)), np.arange(4.0)[None])).all()


def test_slopes_are_per_factor_e():
    x = np.array([0.03, 0.1, 0.3, 1.0])
    y = 2.0 + 3.0 * np.log(x)
    assert log_slopes(x[None], y[None])[0] == pytest.approx(3.0)
    assert np.isnan(log_slopes(np.array([[0.0, 1.0]]), np.array([[1.0, 2.0]]))).all()
    assert np.isnan(log_slopes(np.ones((1, 2)), np.array([[1.0, 2.0]]))).all()


def test_the_p_value_is_that_of_all_permutations_two_sided():
    x, y = np.array([1.0, 1, 2, 2, 3, 3]), np.array([1.0, 3, 2, 5, 4, 6])
    observed = stats.spearmanr(x, y).statistic
    every = [stats.spearmanr(x, each).statistic for each in permutations(y)]
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-12)
    assert 0.02 < exact < 0.5
    assert trend(x, y, 1, 4000).p_value == pytest.approx(exact, abs=0.03)
    assert trend(x, -y, 1, 4000).p_value == pytest.approx(exact, abs=0.03)


def test_chance_is_called_a_trend_in_no_more_than_one_of_twenty():
    rng = np.random.default_rng(1)
    x = np.repeat(BETAS, 3)
    found = [trend(x, rng.standard_normal(12), 1, 200).verdict for _ in range(300)]
    assert np.mean([each != "undetermined" for each in found]) <= 0.07


@pytest.mark.parametrize(("sign", "verdict"), [(1, "supported"), (-1, "contradicted")])
def test_a_trend_has_the_verdict_of_its_sign(sign, verdict):
    x = np.repeat(BETAS, 3)
    noise = np.random.default_rng(2).normal(0, 0.05, 12)
    found = trend(x, sign * np.log(x) + noise, 1, 1000)
    assert found.verdict == verdict
    assert trend(x, sign * np.log(x) + noise, -1, 1000).verdict != verdict
    assert found.slope == pytest.approx(sign, abs=0.1)
    assert found.slope_interval[0] < sign < found.slope_interval[1]
    assert found.correlation_interval[0] <= found.correlation <= found.correlation_interval[1]
    assert found.runs == 12


def test_few_runs_constant_ones_and_unknown_ones_decide_nothing():
    x = np.arange(1.0, 7.0)
    assert trend(x, x, 1, 1000).verdict == "supported"
    assert trend(x[:5], x[:5], 1, 1000).verdict == "undetermined"
    censored = trend(x, np.where(x == 6, math.nan, x), 1, 1000)
    assert (censored.runs, censored.verdict) == (5, "undetermined")
    assert censored.correlation == pytest.approx(1.0)
    for y in (np.ones(6), np.full(6, math.nan)):
        nothing = trend(x, y, 1, 1000)
        assert math.isnan(nothing.correlation)
        assert nothing.verdict == "undetermined"


# --- runs ------------------------------------------------------------------------------------


def records(width, middle=100.0, height=0.8, heat=1.0):
    """`order` rises from 10% to 90% in `width` steps; susceptibility is largest at the base."""
    order = height / (1 + np.exp(-2 * math.log(9.0) * (STEPS - middle) / width))
    seen = np.where(np.abs(STEPS - middle) <= width / 4, 2.0, 0.5)
    seen[0] = 9.0
    return [
        make_record(
            int(step),
            metrics={"order": own, "susceptibility": near, "heat_capacity": heat * step / 200},
            ci={},
        )
        for step, own, near in zip(STEPS.tolist(), order.tolist(), seen.tolist(), strict=True)
    ]


def run_of(**planted) -> Run:
    return Run(Path("run") / "crystalmon", {"training": {"seed": 3}}, tuple(records(**planted)), ())


def test_a_run_s_planted_transition_is_recovered():
    found = sharpness_of(run_of(width=50.0), 0.1)
    assert found.transition == "fitted"
    assert found.width == pytest.approx(50.0, rel=0.02)  # the fit searches a grid
    assert found.width_interval[0] <= found.width <= found.width_interval[1]
    assert found.heat_capacity == 1.0
    assert found.susceptibility == 2.0  # not the base's 9
    assert found.seed == 3


@pytest.mark.parametrize(
    ("planted", "state"),
    [
        ({"width": 2.0}, "unresolved"),
        ({"width": 60.0, "middle": 185.0}, "unfinished"),
        ({"width": 50.0, "height": 0.01}, "none"),
    ],
)
def test_what_cannot_be_fitted_is_called_so(planted, state):
    found = sharpness_of(run_of(**planted), 0.1)
    assert found.transition == state
    assert math.isnan(found.width) == (state == "none")
    assert math.isnan(found.susceptibility) == (state == "none")


def folder_of(root: Path, name: str, beta: float, suite: str = "planted", **planted) -> Path:
    info = {"suite": suite, "suite_hash": suite, "training": {"beta": beta, "seed": 0}}
    store = RunStore.open(root / name / "crystalmon", info, resume_step=None)
    for record in records(**planted) if planted else []:
        store.append(record, [])
    return root / name


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Widths grow with beta and the heat capacity falls; the last run is not through."""
    root = tmp_path_factory.mktemp("sweep")
    folders = [
        folder_of(root, f"b{beta}-{seed}", beta, width=40 + 50 * beta + seed, heat=2 - beta)
        for beta in BETAS
        for seed in range(2)
    ]
    return [*folders, folder_of(root, "late", 1.6, width=60.0, middle=185.0, heat=0.1)]


def test_a_planted_sweep_has_its_trends(sweep):
    result = Sharpness.measure(sweep, replicates=500)
    widths, heats = (result.detail["trends"][key] for key in ("width", "heat_capacity"))
    beta = np.repeat(BETAS, 2)
    planted = 40 + 50 * beta + np.tile([0, 1], 4)
    assert widths["correlation"] == pytest.approx(stats.spearmanr(beta, planted).statistic)
    assert widths["slope"] == pytest.approx(np.polyfit(np.log(beta), planted, 1)[0], rel=1e-2)
    assert (widths["runs"], widths["verdict"]) == (8, "supported")
    assert (heats["runs"], heats["verdict"]) == (9, "supported")
    assert heats["correlation"] == pytest.approx(-1.0)
    assert [run["beta"] for run in result.detail["runs"]] == [*beta, 1.6]
    text = Sharpness.table(result)
    assert "no width in the trend: late" in text
    assert "(unfinished)" in text
    Sharpness.figure(result)


def test_the_penalties_given_count_in_their_order(sweep):
    result = Sharpness.measure(sweep[:-1], [1 / (1 + i) for i in range(8)], replicates=500)
    assert result.detail["trends"]["width"]["verdict"] == "contradicted"


def test_runs_that_cannot_be_compared_are_refused(sweep, tmp_path):
    with pytest.raises(ValueError, match=r"once for each run, 9 times, got 1"):
        Sharpness.measure(sweep, [0.1])
    with pytest.raises(ValueError, match=r"beta must be finite and at least 0, got -1"):
        Sharpness.measure(sweep[:2], [0.1, -1.0])
    with pytest.raises(ValueError, match=r"must differ in their KL penalty, got \[0\.1\]"):
        Sharpness.measure(sweep[:2])
    with pytest.raises(ValueError, match=r"a run must be given once, got b0\.1-0 more than once"):
        Sharpness.measure([*sweep, sweep[0] / "crystalmon"])
    other = folder_of(tmp_path, "other", 0.5, suite="another", width=50.0)
    with pytest.raises(ValueError, match=r"must be of one suite, got 'planted' of b0\.1-0 and"):
        Sharpness.measure([sweep[0], other])
    empty = folder_of(tmp_path, "empty", 0.5)
    with pytest.raises(ValueError, match=r"the run in .* has no probe yet"):
        Sharpness.measure([sweep[0], empty])


# --- the sweep -------------------------------------------------------------------------------


def test_a_sweep_keeps_only_what_the_same_command_has_finished(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from sweep_beta import COMMAND_FILE, command_of, is_complete

    folder = folder_of(tmp_path, "run", 0.1, width=50.0)
    command = command_of(0.1, 0, folder, [])
    assert not is_complete(folder, command)
    (folder / COMMAND_FILE).write_text(json.dumps(command))
    assert not is_complete(folder, command)  # its run.json tells no last step
    info = {"suite": "planted", "max_steps": 200}
    write_info(folder / "crystalmon", info)
    assert is_complete(folder, command)
    assert not is_complete(folder, command_of(0.1, 0, folder, ["--learning_rate", "1e-4"]))
    write_info(folder / "crystalmon", info | {"max_steps": 400})
    assert not is_complete(folder, command)
