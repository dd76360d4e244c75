"""The landscape on models whose F_align is known in closed form."""

from __future__ import annotations

import dataclasses
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
    by_first,
    by_last,
    kl,
)

from crystalmon.experiments.common import subject as subject_module
from crystalmon.experiments.common.instructions import Instruction
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.responses import KeptLogProbs, wide_pair
from crystalmon.experiments.common.statistics import mean_estimate
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.landscape import free_energies as landscape_module
from crystalmon.experiments.landscape.free_energies import EARLY, Landscape
from crystalmon.experiments.landscape.landscape_pair import keep_model, measure_landscape
from crystalmon.runs.results import Result, read_result, write_result

SIZE = 9
DEPTH = 8
PER_CATEGORY = 4
PLANTED = {"warm": 0.9, "cold": 0.3}
"""F at the first token of each category's responses; halved with every further token."""
WORDS = {"warm": "w", "cold": "c"}


def instructions() -> tuple[Instruction, ...]:
    return tuple(
        Instruction(f"{name}-{i}", name, f"{WORDS[name]}{'x' * i}")
        for name in PLANTED
        for i in range(PER_CATEGORY)
    )


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def base_law():
    return by_depth(logits(0, DEPTH, SIZE))


def aligned_law():
    """Beside the base's law, F_t = planted · 2^−t at depth t."""
    tokenizer, rows = PlantedTokenizer(SIZE), logits(0, DEPTH, SIZE)
    laws = {}
    for name, first in PLANTED.items():
        table = [at_divergence(rows[t], logits(1, SIZE), first / 2**t) for t in range(DEPTH)]
        laws[tokenizer(WORDS[name])["input_ids"][0]] = by_depth(torch.stack(table))
    return by_first(laws, base_law())


def subject_of(law, name: str = "planted", **options) -> Subject:
    return Subject(PlantedModel(law, SIZE, **options), PlantedTokenizer(SIZE), name)


def settings(**changes) -> Landscape:
    return Landscape(**{"tokens": DEPTH, "instructions": instructions()} | changes)


def measured(tmp_path: Path, law=None, base=None, parts=None, **options) -> Result:
    law, base = law or aligned_law(), base or base_law()
    shift, together = options.pop("shift", 0.0), options.pop("together", False)
    return measure_landscape(
        lambda: subject_of(law, "aligned", shift=shift),
        lambda: subject_of(base, "base", shift=-shift),
        settings(**options),
        tmp_path,
        parts or Parts(),
        together=together,
    )


def same(left: Result, right: Result) -> bool:
    left, right = (dataclasses.replace(each, seconds=None).to_json() for each in (left, right))
    return left == right  # in JSON, NaN equals itself


# --- planted truth ---------------------------------------------------------------------------


def test_the_closed_form_is_recovered(tmp_path: Path):
    found = measured(tmp_path)
    halves = 0.5 ** np.arange(DEPTH)
    mean = np.mean(list(PLANTED.values()))
    assert found.estimates["free_energy"].value == pytest.approx(mean * halves.mean(), abs=1e-4)
    share = halves[:EARLY].sum() / halves.sum()
    assert found.estimates["early_share"].value == pytest.approx(share, abs=1e-4)
    assert found.detail["even_share"] == pytest.approx(EARLY / DEPTH)
    for row, half in zip(found.detail["depth"], halves, strict=True):
        assert row["value"] == pytest.approx(mean * half, abs=1e-4)
        assert row["texts"] == len(instructions())
    for name, first in PLANTED.items():
        row = found.detail["by_category"][name]
        assert row["instructions"] == PER_CATEGORY
        assert row["free_energy"]["value"] == pytest.approx(first * halves.mean(), abs=1e-4)
    for id_, row in found.detail["by_instruction"].items():
        first = PLANTED[row["category"]]
        assert row["free_energy"] == pytest.approx(first * halves.mean(), abs=1e-4), id_
    assert found.models == {"model": "aligned", "base": "base"}


def test_the_divergence_is_of_the_model_from_the_base(tmp_path: Path):
    """Swapped, the two give another number: that of the other direction."""
    table = logits(3, 1, SIZE) * 2
    forward = measured(tmp_path / "a", by_depth(table), by_depth(-table))
    backward = measured(tmp_path / "b", by_depth(-table * 0.5), by_depth(table))
    law = {sign: by_depth(sign * table)(torch.tensor([[MARKER]]))[0, 0] for sign in (1, -1, -0.5)}
    assert forward.estimates["free_energy"].value == pytest.approx(
        float(kl(law[1], law[-1])), abs=1e-4
    )
    expected = float(kl(law[-0.5], law[1]))
    assert backward.estimates["free_energy"].value == pytest.approx(expected, abs=1e-4)
    assert abs(expected - float(kl(law[1], law[-0.5]))) > 0.1


def test_intervals_cover_what_a_markov_chain_expects(monkeypatch: pytest.MonkeyPatch):
    """F_t depends on the last token drawn; its expectation is that over the chain."""
    monkeypatch.setattr(subject_module, "AT_ONCE", 5000)
    now, before, tokens, size, seeds = logits(4, SIZE, SIZE), logits(5, SIZE, SIZE), 6, 16, 250
    model, base = subject_of(by_last(now)), subject_of(by_last(before))
    rows = torch.arange(SIZE)[None]
    chain = model.model.law(rows)[0].softmax(-1)
    divergence = kl(model.model.law(rows)[0], base.model.law(rows)[0])
    expected, at = 0.0, torch.eye(SIZE).double()[MARKER]
    for _ in range(tokens):
        expected, at = expected + float(at @ divergence) / tokens, at @ chain
    texts = model.generate([(1, MARKER)] * size * seeds, tokens, random_seed=11)
    means = np.array([float(divergence[[MARKER, *text[:-1]]].mean()) for text in texts])
    found = [mean_estimate(own, seed) for seed, own in enumerate(means.reshape(seeds, size))]
    assert np.mean([each.low <= expected <= each.high for each in found]) >= 0.93


# --- edges -----------------------------------------------------------------------------------


def test_a_model_beside_itself_has_no_free_energy(tmp_path: Path):
    found = measured(tmp_path, base_law(), base_law())
    assert found.estimates["free_energy"].value == 0.0
    assert np.isnan(found.estimates["early_share"].value)
    assert found.to_json()["estimates"]["early_share"]["value"] == "NaN"
    assert "all categories" in Landscape.table(found)
    Landscape.figure(found).savefig(tmp_path / "none.png")


def test_a_constant_added_to_all_logits_changes_nothing(tmp_path: Path):
    plain, shifted = measured(tmp_path / "a"), measured(tmp_path / "b", shift=37.0)
    for key, value in plain.estimates.items():
        assert dataclasses.astuple(shifted.estimates[key]) == pytest.approx(
            dataclasses.astuple(value), abs=1e-6, nan_ok=True
        )


def test_texts_that_end_early_count_with_the_tokens_that_they_have(tmp_path: Path):
    end = 5
    table = logits(0, SIZE, SIZE)
    table[:, end] += 1.5
    model, base = by_last(table), by_last(logits(6, SIZE, SIZE))
    subjects = [
        Subject(PlantedModel(law, SIZE), PlantedTokenizer(SIZE, eos=end)) for law in (model, base)
    ]
    found = measure_landscape(
        lambda: subjects[0], lambda: subjects[1], settings(tokens=12), tmp_path, Parts()
    )
    lengths = [row["tokens"] for row in found.detail["by_instruction"].values()]
    assert 1 <= min(lengths) < 12
    counts = [row["texts"] for row in found.detail["depth"]]
    assert counts == [sum(n > t for n in lengths) for t in range(max(lengths))]


def test_vocabularies_of_different_size_are_compared_on_their_shared_part():
    log_p = logits(0, 3, 7).log_softmax(-1)
    wide_p, wide_b = wide_pair(log_p.float(), log_p[:, :5].log_softmax(-1).float())
    assert wide_p.dtype == wide_b.dtype == torch.float64
    assert wide_p.shape == wide_b.shape == (3, 5)
    torch.testing.assert_close(wide_p, wide_b, atol=1e-6, rtol=0)
    torch.testing.assert_close(wide_p.exp().sum(-1), torch.ones(3).double(), atol=1e-12, rtol=0)


def test_a_base_that_reads_other_tokens_is_refused(tmp_path: Path):
    model = subject_of(base_law())
    other = Subject(PlantedModel(by_depth(logits(0, DEPTH, 12)), 12), PlantedTokenizer(12), "other")
    message = r"the base's tokenizer must give the model's tokens, got others for .*\(other\)\. F"
    for together in (False, True):
        with pytest.raises(ValueError, match=message):
            measure_landscape(
                lambda: model, lambda: other, settings(), tmp_path, Parts(), together=together
            )
    small = Subject(PlantedModel(by_depth(logits(0, DEPTH, 4)), 4), PlantedTokenizer(SIZE), "small")
    with pytest.raises(ValueError, match=r"every token must be among the base's 4, got"):
        measure_landscape(lambda: model, lambda: small, settings(), tmp_path, Parts())


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"tokens must be at least 1, got 0\. Ask for more"):
        Landscape(tokens=0)
    assert json.dumps(settings().settings) == json.dumps(settings().settings)
    assert settings().settings != settings(instructions=instructions()[1:]).settings


# --- one after the other, together, interrupted ----------------------------------------------


def test_together_and_one_after_the_other_agree_and_leave_nothing(tmp_path: Path):
    apart, together = measured(tmp_path), measured(tmp_path, together=True)
    assert same(apart, together)
    assert list(tmp_path.iterdir()) == []


def test_the_first_model_is_let_go_before_the_second_is_loaded(tmp_path: Path):
    import weakref

    loaded: list[weakref.ref] = []

    def load(law):
        assert all(each() is None for each in loaded)
        subject = subject_of(law)
        loaded.append(weakref.ref(subject.model))
        return subject

    measure_landscape(
        lambda: load(aligned_law()), lambda: load(base_law()), settings(), tmp_path, Parts()
    )
    assert len(loaded) == 2


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupted_measurement_goes_on_to_the_same_result(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
):
    """Killed just before each of the parts is kept."""
    monkeypatch.setattr("crystalmon.experiments.common.responses.GROUP", 3)
    whole = measured(tmp_path / "whole")
    file = tmp_path / "parts.jsonl"
    with killed_before_part(at, monkeypatch):
        measured(tmp_path, parts=Parts(file))
    assert same(measured(tmp_path, parts=Parts(file)), whole)


def test_what_is_finished_is_not_run_again(tmp_path: Path):
    file = tmp_path / "parts.jsonl"
    first = measured(tmp_path, parts=Parts(file), together=True)
    models = [subject_of(aligned_law(), "aligned"), subject_of(base_law(), "base")]
    parts = Parts(file)
    again = measure_landscape(
        lambda: models[0], lambda: models[1], settings(), tmp_path, parts, together=True
    )
    assert same(first, again)
    assert [each.model.forwarded for each in models] == [0, 0]


def test_log_probabilities_lost_from_the_folder_are_made_again(tmp_path: Path):
    kept, parts = KeptLogProbs(tmp_path / "landscape.work"), Parts()
    keep_model(subject_of(aligned_law(), "aligned"), settings(), kept, parts)
    (kept.folder / "warm-1.safetensors").unlink()
    assert same(measured(tmp_path, parts=parts), measured(tmp_path / "whole"))


# --- inside training -------------------------------------------------------------------------


def test_inside_training_the_bases_texts_are_read_again(tmp_path: Path):
    base, now = subject_of(base_law(), "base"), subject_of(aligned_law(), "now")
    settings().begin(base, tmp_path)
    start = settings().measure(base, tmp_path, Parts())
    assert start.estimates["free_energy"].value == 0.0
    settings().begin(now, tmp_path)  # as when a run goes on: the base stays
    found = settings().measure(now, tmp_path, Parts())
    halves = 0.5 ** np.arange(DEPTH)
    for row, half in zip(found.detail["depth"], halves, strict=True):
        assert row["value"] == pytest.approx(np.mean(list(PLANTED.values())) * half, abs=1e-4)
    assert found.models == {"model": "now", "base": "base"}
    assert found.detail["drawn_from"] == "base"
    with pytest.raises(FileNotFoundError, match=r"must hold the base's texts for these settings"):
        settings(seed=1).measure(now, tmp_path, Parts())


def test_a_model_that_has_broken_gives_no_numbers_and_no_error(tmp_path: Path):
    settings().begin(subject_of(base_law(), "base"), tmp_path)
    broken = subject_of(lambda tokens: base_law()(tokens) * torch.nan)
    found = settings().measure(broken, tmp_path, Parts())
    assert np.isnan(found.estimates["free_energy"].value)
    json.dumps(found.to_json(), allow_nan=False)
    Landscape.table(Result.from_json(json.loads(json.dumps(found.to_json()))))


def test_it_leaves_no_trace(tmp_path: Path, model, tokenizer):
    subject = Subject(model, tokenizer, "tiny")
    chosen = (Instruction("a", "x", "Pick a digit"), Instruction("b", "y", "Name a color"))
    torch.manual_seed(5)
    random, modes = torch.get_rng_state(), [each.training for each in model.modules()]
    own = Landscape(tokens=4, instructions=chosen)
    own.begin(subject, tmp_path)
    assert own.measure(subject, tmp_path, Parts()).estimates["free_energy"].value < 1e-9
    assert torch.equal(torch.get_rng_state(), random)
    assert [each.training for each in model.modules()] == modes


# --- what is shown ---------------------------------------------------------------------------


def test_the_result_survives_its_file_and_shows_the_same(tmp_path: Path):
    found = measured(tmp_path)
    back = read_result(write_result(tmp_path, found))
    assert Landscape.table(back) == Landscape.table(found)
    table = Landscape.table(found)
    assert "F = KL(aligned ‖ base), along responses of the model" in table
    for name in PLANTED:
        assert name in table
    for suffix in ("png", "svg"):
        Landscape.figure(back).savefig(tmp_path / f"shown.{suffix}")
        assert (tmp_path / f"shown.{suffix}").stat().st_size > 10_000


def test_the_early_tokens_are_those_of_the_docstring():
    assert landscape_module.EARLY == 5
