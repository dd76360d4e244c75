"""Texts from a model, exact distributions along them, and the instructions that they answer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
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
from scipy import stats

from crystalmon.experiments.common import subject as subject_module
from crystalmon.experiments.common.instructions import (
    Instruction,
    InstructionError,
    fingerprint,
    load_instructions,
    resolve,
    take_evenly,
)
from crystalmon.experiments.common.scored_texts import Text, groups_to_generate
from crystalmon.experiments.common.statistics import (
    flat_weights,
    mean_estimate,
    nested_weights,
    weighted_estimate,
)
from crystalmon.experiments.common.subject import Subject

SIZE = 9


def chain(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()


def subject_of(law, **options) -> Subject:
    return Subject(PlantedModel(law, SIZE, **options), PlantedTokenizer(SIZE), "planted")


# --- the planted models themselves -----------------------------------------------------------


def test_a_planted_divergence_is_what_was_asked_for():
    base, direction = chain()[0], chain(1)[0]
    found = at_divergence(base, direction, 0.7)
    assert float(kl(found, at_divergence(base, direction, 0.0))) == pytest.approx(0.7, abs=1e-9)


def test_with_the_cache_and_without_it_a_planted_model_says_the_same():
    model = PlantedModel(by_last(chain()), SIZE)
    ids = torch.tensor([[3, 0, 5, 2, 7]])
    whole = model(ids).logits
    first = model(ids[:, :3], use_cache=True)
    rest = model(ids[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole)
    assert model.passes == [5, 3, 2]


# --- texts -----------------------------------------------------------------------------------


def test_scores_are_the_tables_rows_however_texts_are_batched():
    subject = subject_of(by_last(chain()))
    texts = [Text.after((3, MARKER), (1, 4)), Text.after((5, 5, 5, MARKER), (2, 2, 6))]
    found = {}
    subject.score(texts, found.__setitem__)
    for index, last in ((0, [MARKER, 1]), (1, [MARKER, 2, 2])):
        expected = subject.model.law(torch.tensor([last]))[0].log_softmax(-1)
        torch.testing.assert_close(found[index].double(), expected, atol=1e-5, rtol=0)


def test_drawn_texts_follow_the_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subject_module, "AT_ONCE", 400)
    table = chain()
    subject = subject_of(by_last(table))
    drawn = subject.generate([(1, MARKER)] * 400, 5, random_seed=1)
    first = np.bincount([text[0] for text in drawn], minlength=SIZE)
    expected = subject.model.law(torch.tensor([[MARKER]]))[0, 0].softmax(-1).numpy()
    assert stats.chisquare(first[1:], 400 * expected[1:] / expected[1:].sum()).pvalue > 0.001
    assert first[MARKER] == 0
    assert drawn == subject.generate([(1, MARKER)] * 400, 5, random_seed=1)
    assert drawn != subject.generate([(1, MARKER)] * 400, 5, random_seed=2)


def test_the_model_s_own_generation_settings_do_not_change_what_is_drawn():
    subject = subject_of(by_last(chain()))
    prompts = [(1, MARKER)] * 30
    plain = subject.generate(prompts, 6, random_seed=1)
    own = {"min_p": 0.9, "num_beams": 2, "typical_p": 0.2, "no_repeat_ngram_size": 1, "top_k": 2}
    own |= {"temperature": 0.1, "suppress_tokens": [2, 3, 4, 5], "forced_eos_token_id": 1}
    subject.model.generation_config.update(**own)
    assert subject.generate(prompts, 6, random_seed=1) == plain
    assert all(getattr(subject.model.generation_config, key) == own[key] for key in own)


def test_prompts_of_different_length_share_a_batch_only_where_padding_changes_nothing():
    prompts = [(1, MARKER), (2, 3, 4, MARKER), (2, 3, MARKER)]
    assert subject_of(by_depth(chain())).takes_padding(prompts)
    at_start = by_first({1: by_last(chain()), 2: by_last(chain(1))}, by_last(chain(2)))
    subject = subject_of(at_start)
    assert not subject.takes_padding(prompts)
    subject.model.passes.clear()
    assert [len(text) for text in subject.generate(prompts, 3)] == [3, 3, 3]
    assert list(groups_to_generate(prompts, False, 16)) == [[0], [2], [1]]
    assert list(groups_to_generate(prompts, True, 16)) == [[0, 2, 1]]


def test_a_real_model_takes_padding(model, tokenizer):
    subject = Subject(model, tokenizer, "tiny")
    prompts = [
        subject.prompt("Pick a digit"),
        subject.prompt("Pick a digit from 0 to 9 at random:"),
    ]
    assert subject.takes_padding(prompts)
    assert [len(text) for text in subject.generate(prompts, 12, past_end=True)] == [12, 12]


def test_a_text_ends_at_its_end_unless_it_is_to_go_on():
    end = 4
    table = torch.zeros(SIZE, SIZE)
    table[:, end] = 1.0
    subject = Subject(PlantedModel(by_last(table), SIZE), PlantedTokenizer(SIZE, eos=end))
    prompts = [(1, MARKER)] * 40
    short = subject.generate(prompts, 20)
    assert min(map(len, short)) < 10
    assert all(end not in text[:-1] for text in short)
    long = subject.generate(prompts, 20, past_end=True)
    assert {len(text) for text in long} == {20}
    assert all(end not in text for text in long)


def test_a_request_is_made_again_in_the_conversations_own_format(tokenizer):
    plain = subject_of(by_last(chain()))
    assert plain.request_again("ab") == plain.encode("\nab\n")
    chat = Subject(plain.model, PlantedTokenizer(SIZE, chat=True))
    assert chat.prompt("ab") == chat.encode("Uab\nA\n")
    assert chat.request_again("ab") == chat.encode("\nUab\nA\n")
    chat.tokenizer.apply_chat_template = lambda turns, **_: turns[0]["content"]
    with pytest.raises(ValueError, match=r"must show an answer between two requests"):
        chat.request_again("ab")


def test_a_text_beyond_the_context_is_refused():
    subject = subject_of(by_last(chain()), context=6)
    with pytest.raises(ValueError, match=r"at most 6 tokens, the model's context, got 7\. Ask"):
        subject.generate([(1, MARKER)], 5)


def test_a_token_that_the_model_does_not_know_is_refused():
    subject = subject_of(by_last(chain()))
    for work in (
        lambda: subject.generate([(1, MARKER), (SIZE, MARKER)], 2),
        lambda: subject.score([Text((1, SIZE), (0,))], lambda index, log_p: None),
    ):
        with pytest.raises(ValueError, match=r"among the model's 9, got 9\. Use a tokenizer"):
            work()


def test_generating_and_scoring_leave_no_trace(model, tokenizer):
    subject = Subject(model, tokenizer, "tiny")
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    settings = model.generation_config.to_dict()
    prompts = [subject.prompt("Pick a digit"), subject.prompt("Pick a color, please")]
    texts = subject.generate(prompts, 4, random_seed=7)
    pairs = zip(prompts, texts, strict=True)
    subject.score([Text.after(a, b) for a, b in pairs], lambda index, log_p: None)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == settings
    assert all(parameter.grad is None for parameter in model.parameters())
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert after == before


# --- instructions ----------------------------------------------------------------------------


def test_the_bundled_instructions_are_many_of_each_kind():
    found = load_instructions()
    categories = [each.category for each in found if not each.id.startswith("conflict")]
    counts = {name: categories.count(name) for name in categories}
    assert sum(count >= 12 for count in counts.values()) >= 8
    assert {"refusal", "persona", "factual", "formatting", "style", "arithmetic"} <= set(counts)
    assert len({each.text for each in found}) == len(found)


def test_a_subset_takes_all_categories_alike():
    found = load_instructions()
    some = take_evenly(found, 9)
    assert len(some) == 9
    assert len({each.category for each in some}) >= 8
    assert list(some) == [each for each in found if each in some]
    assert take_evenly(found, None) == take_evenly(found, 10_000) == found


def test_instructions_come_from_a_file_or_as_they_are(tmp_path: Path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "instructions:\n- {id: a, category: x, text: Say so, question: Done, compliant: [y]}\n"
    )
    own = (Instruction("a", "x", "Say so"),)
    assert resolve(file) == resolve(own) == own
    assert fingerprint(own) != fingerprint((Instruction("a", "x", "Say no"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"own\.yaml: instructions must be a list of at least one \{id, category, text\}"),
        ("instructions: []", r"at least one \{id, category, text\}, got \[\]"),
        ("instructions: [7]", r"instructions\[0\] must be a mapping, got int"),
        ("instructions: [{id: a, category: x}]", r"\[0\]: key 'text' is missing\. Add it"),
        ("instructions: [{id: a, category: x, text: t, txt: u}]", r"unknown key 'txt'\. Allowed"),
        ("instructions: [{id: A b, category: x, text: t}]", r"id must be of small letters.*'A b'"),
        ("instructions: [{id: a, category: x, text: ' '}]", r"text of 'a' must be a non-blank"),
        ("instructions: [{id: a, category: x, text: 7}]", r"must be a non-blank string, got 7"),
        ("instructions: [", r"not valid YAML"),
        ("instructions: []\ninstructions: []", r"line 2: key 'instructions' appears twice"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(tmp_path: Path, content: str, message: str):
    file = tmp_path / "own.yaml"
    file.write_text(content)
    with pytest.raises(InstructionError, match=message):
        load_instructions(file)


def test_other_faults_of_instructions(tmp_path: Path):
    twice = (Instruction("a", "x", "t"), Instruction("a", "y", "u"))
    with pytest.raises(InstructionError, match=r"id must be unique, got 'a' twice"):
        resolve(twice)
    with pytest.raises(InstructionError, match=r"must not be empty"):
        resolve(())
    with pytest.raises(TypeError, match=r"must be of class Instruction, got 'a'"):
        resolve(("a",))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"must be in a YAML file"):
        load_instructions(tmp_path / "none.yaml")


# --- intervals -------------------------------------------------------------------------------


def test_weights_of_groups_are_means_of_means():
    groups = ["a"] * 3 + ["b"]
    weights = nested_weights(groups)
    np.testing.assert_allclose(weights[0], [1 / 6] * 3 + [1 / 2])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(flat_weights(4).sum(axis=1), 1.0)
    # a group that is drawn k of 2 times has k halves of the weight
    assert set(np.round(weights[1:, 3], 6)) == {0.0, 0.5, 1.0}


def test_intervals_of_few_and_of_skewed_values_cover():
    rng = np.random.default_rng(0)
    for count, draws in ((8, rng.normal(size=(300, 8))), (24, rng.gamma(3.0, size=(300, 24)) - 3)):
        found = [mean_estimate(row, seed) for seed, row in enumerate(draws)]
        assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.93, count
    groups = [name for name in "abcdefgh" for _ in range(12)]
    covered = []
    for seed in range(150):
        values = np.repeat(rng.normal(size=8), 12) + rng.normal(size=96)
        each = weighted_estimate(nested_weights(groups, seed) @ values, 8)
        covered.append(each.low <= 0 <= each.high)
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("values", [[2.0], [1.0, 3.0]])
def test_one_or_two_values_have_no_interval(values: list[float]):
    found = mean_estimate(values)
    assert found.value == 2.0
    assert np.isnan([found.low, found.high]).all()
