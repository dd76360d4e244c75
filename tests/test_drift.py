"""Drift on models whose D(t) is known in closed form."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import killed_before_part
from planted_models import (
    MARKER,
    PlantedModel,
    PlantedTokenizer,
    at_divergence,
    by_depth,
    by_last,
    depths,
    kl,
)

from crystalmon.experiments.common import subject as subject_module
from crystalmon.experiments.common.instructions import Instruction
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.statistics import mean_estimate
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.drift.instruction_drift import Drift, slopes
from crystalmon.runs.results import Result, read_result, write_result

SIZE = 7
TOKENS = 48
SLOPE = 0.02
"""Of the planted D(t), in nats per token."""
TEXTS = tuple(Instruction(f"i-{i}", "ab"[i % 2], "say it" + "!" * i) for i in range(5))


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@functools.cache
def drifting(slope: float = SLOPE, tokens: int = TOKENS):
    """D(t) = slope · t after the last line break."""
    base, direction = logits(0, SIZE), logits(1, SIZE)
    rows = [at_divergence(base, direction, slope * t) for t in range(tokens + 2)]
    return by_depth(torch.stack(rows))


def subject_of(law=None, name: str = "planted", chat: bool = False, **options) -> Subject:
    tokenizer = PlantedTokenizer(SIZE, chat=chat)
    return Subject(PlantedModel(law or drifting(), SIZE, **options), tokenizer, name)


def settings(**changes) -> Drift:
    usual = {"tokens": TOKENS, "every": 2, "burn_in": 4, "instructions": TEXTS, "count": None}
    return Drift(**usual | changes)


def measured(tmp_path: Path, subject: Subject | None = None, parts=None, **changes) -> Result:
    return settings(**changes).measure(subject or subject_of(), tmp_path, parts or Parts())


def same(left: Result, right: Result) -> bool:
    return dataclasses.replace(left, seconds=None) == dataclasses.replace(right, seconds=None)


# --- planted truth ---------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_closed_form_is_recovered(tmp_path: Path, chat: bool):
    """The repetition sets the planted drift back to where a response begins."""
    found = measured(tmp_path, subject_of(chat=chat))
    half, t = TOKENS // 2, np.arange(2, TOKENS + 1, 2)
    assert found.estimates["slope"].value == pytest.approx(SLOPE, abs=1e-4)
    assert found.estimates["level"].value == pytest.approx(SLOPE * t[t > 4].mean(), abs=1e-4)
    for row in found.detail["profile"]:
        assert row["value"] == pytest.approx(SLOPE * row["t"], abs=1e-4)
    for row in found.detail["repeated"]:
        assert row["value"] == pytest.approx(SLOPE * (row["t"] - half), abs=1e-4)
    assert found.estimates["repeat_effect"].value == pytest.approx(-SLOPE * half, abs=1e-4)
    used = ((t > 4) & (t <= half)) | (t > half + 4)
    expected = np.polyfit(t[used], SLOPE * np.where(t > half, t - half, t)[used], 1)[0]
    assert found.estimates["slope_repeated"].value == pytest.approx(expected, abs=1e-4)
    assert found.estimates["slope_change"].value == pytest.approx(expected - SLOPE, abs=1e-4)
    for row in found.detail["by_instruction"].values():
        assert row["slope"] == pytest.approx(SLOPE, abs=1e-4)
    # all texts drift alike here, so that the interval is nothing but rounding
    assert found.estimates["slope"].high - found.estimates["slope"].low < 1e-4


def test_the_divergence_is_of_the_later_from_the_first(tmp_path: Path):
    rows = torch.stack([logits(0, SIZE), 2.5 * logits(1, SIZE)])
    found = measured(tmp_path, subject_of(by_depth(rows)), repeat=False)
    first, later = by_depth(rows)(torch.tensor([[MARKER, 1]]))[0]
    assert found.detail["profile"][0]["value"] == pytest.approx(float(kl(later, first)), abs=1e-4)
    assert abs(float(kl(later, first)) - float(kl(first, later))) > 0.1
    assert set(found.estimates) == {"slope", "level"}
    assert "repeated" not in found.detail


def test_fitted_slopes_lie_within_their_intervals(monkeypatch: pytest.MonkeyPatch):
    """A Markov chain whose pull grows with depth: D(t) depends on the last token drawn."""
    monkeypatch.setattr(subject_module, "AT_ONCE", 10_000)
    tokens, size, seeds = 24, 12, 250
    table, direction = logits(2, SIZE, SIZE), logits(3, SIZE)

    def law(ids: torch.Tensor) -> torch.Tensor:
        pull = 0.05 * depths(ids).double()[..., None] * direction
        return by_last(table)(ids) + pull

    rows = torch.arange(SIZE)
    first = law(torch.tensor([[MARKER]]))[0, 0]
    after = [
        by_last(table)(rows[None])[0] + 0.05 * t * direction for t in range(tokens + 1)
    ]  # by last token, at each depth
    divergence = torch.stack([kl(each, first) for each in after])
    at, expected = torch.eye(SIZE).double()[MARKER], []
    for t in range(tokens):
        at = at @ after[t].softmax(-1)
        expected.append(float(at @ divergence[t + 1]))
    points = np.arange(1, tokens + 1)
    late = points > 4
    truth = np.polyfit(points[late], np.array(expected)[late], 1)[0]

    texts = subject_of(law).generate([(1, MARKER)] * size * seeds, tokens, random_seed=3)
    values = divergence.numpy()[points[None, :], np.array(texts)]
    own = slopes(points[late], values[:, late]).reshape(seeds, size)
    found = [mean_estimate(row, seed) for seed, row in enumerate(own)]
    assert own.mean() == pytest.approx(truth, abs=4 * own.std() / np.sqrt(own.size))
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.93

    subject, ids = subject_of(law), list(range(20))
    alike = tuple(Instruction(f"n{i}", "a", "q") for i in ids)
    whole = Drift(tokens, 1, 4, False, None, alike).measure(subject, Path(), Parts())
    assert whole.estimates["slope"].low <= truth <= whole.estimates["slope"].high


def test_the_cost_is_linear_in_the_tokens(tmp_path: Path):
    """Every token goes through once to be drawn and once to be scored, the prompt the same."""
    cost = {}
    for tokens in (24, 48, 96):
        subject = subject_of(drifting(SLOPE, 96))
        alike = tuple(Instruction(f"n{i}", "a", "say it") for i in range(4))
        measured(tmp_path, subject, tokens=tokens, instructions=alike, repeat=False)
        cost[tokens] = subject.model.forwarded
        prompt = len(subject.prompt("say it"))
        trial = 4 * (prompt + tokens)  # of the precision: two texts, run both ways
        assert cost[tokens] <= 4 * 2 * (prompt + tokens) + trial
    assert cost[96] - cost[48] == 2 * (cost[48] - cost[24])


# --- edges -----------------------------------------------------------------------------------


def test_a_model_that_does_not_drift(tmp_path: Path):
    found = measured(tmp_path, subject_of(by_depth(logits(0, 1, SIZE))))
    assert [each.value for each in found.estimates.values()] == pytest.approx([0.0] * 5, abs=1e-12)
    Drift.figure(found).savefig(tmp_path / "flat.png")


def test_a_constant_added_to_all_logits_changes_nothing(tmp_path: Path):
    plain = measured(tmp_path)
    shifted = measured(tmp_path, subject_of(shift=-41.0))
    for key, value in plain.estimates.items():
        assert dataclasses.astuple(shifted.estimates[key]) == pytest.approx(
            dataclasses.astuple(value), abs=1e-6
        )


def test_one_instruction_has_no_interval(tmp_path: Path):
    found = measured(tmp_path, count=1)
    assert list(found.detail["by_instruction"]) == ["i-0"]
    assert np.isnan(found.estimates["slope"].low)
    Drift.table(found)
    Drift.figure(found).savefig(tmp_path / "one.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, r"every must be at least 1, got 0"),
        ({"burn_in": -1}, r"burn_in must be at least 0, got -1"),
        ({"count": 0}, r"count must be at least 1, got 0"),
        ({"tokens": 16}, r"tokens must leave three points in each half after 4 .*got 16\. Ask"),
    ],
)
def test_settings_that_leave_nothing_to_fit_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_whole_numbers_of_numpy_are_settings_too():
    found = Drift(tokens=np.int64(128)).settings
    assert found == Drift(tokens=128).settings
    json.dumps(found)


def test_a_context_that_is_too_short_is_refused_before_anything_is_drawn(tmp_path: Path):
    subject = subject_of(context=40)
    with pytest.raises(ValueError, match=r"a text must be at most 40 tokens"):
        measured(tmp_path, subject)
    assert subject.model.forwarded == 0


# --- interrupted, and without a trace --------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_an_interrupted_measurement_goes_on_to_the_same_result(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
):
    whole = measured(tmp_path)
    file = tmp_path / "parts.jsonl"
    with killed_before_part(at, monkeypatch):
        measured(tmp_path, parts=Parts(file))
    assert same(measured(tmp_path, parts=Parts(file)), whole)


def test_it_leaves_no_trace(tmp_path: Path, model, tokenizer):
    chosen = (Instruction("a", "x", "Pick a digit"), Instruction("b", "y", "Name a color"))
    torch.manual_seed(5)
    random, modes = torch.get_rng_state(), [each.training for each in model.modules()]
    own = Drift(tokens=12, every=1, burn_in=2, instructions=chosen)
    found = own.measure(Subject(model, tokenizer, "tiny"), tmp_path, Parts())
    assert found.estimates["level"].value > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert [each.training for each in model.modules()] == modes
    assert list(tmp_path.iterdir()) == []


# --- what is shown ---------------------------------------------------------------------------


def test_the_result_survives_its_file_and_shows_the_same(tmp_path: Path):
    found = measured(tmp_path)
    json.dumps(found.to_json(), allow_nan=False)
    back = read_result(write_result(tmp_path, found))
    assert Drift.table(back) == Drift.table(found)
    assert "repeated less plain" in Drift.table(found)
    for suffix in ("png", "svg"):
        Drift.figure(back).savefig(tmp_path / f"shown.{suffix}")
        assert (tmp_path / f"shown.{suffix}").stat().st_size > 10_000
