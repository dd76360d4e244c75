"""The context experiment, on models whose log-odds of complying are a known function of α."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from planted_context import WordTokenizer, conflicting_model, write_conflicts

from crystalmon.experiments.common.conflicts import load_conflicts
from crystalmon.experiments.common.instructions import InstructionError
from crystalmon.experiments.common.parts import Parts
from crystalmon.experiments.common.statistics import (
    bounded_estimate,
    exchange_p,
    mean_of_known,
    sign_flip_p,
)
from crystalmon.experiments.common.subject import Subject
from crystalmon.experiments.context.compliance import (
    compare_shapes,
    compliance,
    describe_pair,
    excess_spread,
    falling_fit,
    find_crossing,
    loop_area,
    spread,
)
from crystalmon.experiments.context.context_ratio import Context
from crystalmon.experiments.context.context_summary import summarize
from crystalmon.experiments.context.dialogue import Dialogue, compose_levels
from crystalmon.runs.results import Result

ALPHA = np.linspace(0, 1, 13)


def experiment(tmp_path, instructions=1, **settings):
    file = write_conflicts(tmp_path, instructions)
    return Context(**{"conflicts": file, "tokens": 48, "orders": 1, **settings})


def measured(tmp_path, odds, instructions=1, *, chat=False, parts=None, shift=0.0, **settings):
    subject = Subject(conflicting_model(odds, shift=shift), WordTokenizer(chat), "planted")
    made = experiment(tmp_path, instructions, **settings)
    return made.measure(subject, tmp_path, parts or Parts())


# --- conflicts -------------------------------------------------------------------------------


def test_the_bundled_conflicts_are_many_and_closed():
    conflicts = load_conflicts()
    assert len(conflicts.instructions) >= 12
    assert len({each.category for each in conflicts.instructions}) >= 5
    assert len(conflicts.adversaries) >= 3
    for instruction in conflicts.instructions:
        assert set(instruction.compliant).isdisjoint(instruction.other)
        for adversary in conflicts.adversaries:
            said = adversary.against(instruction)
            assert not any("{" in text for text in said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("adversaries"), "the file: key 'adversaries' is missing"),
        (lambda d: d["instructions"][0].pop("other"), r"instructions\[0\]: key 'other' is missing"),
        (lambda d: d["instructions"][0].update(more=1), r"instructions\[0\]: unknown key 'more'"),
        (lambda d: d["instructions"][0].update(compliant=[True]), "'k0': compliant must be a non-"),
        (lambda d: d["instructions"][0].update(other=["yes"]), "answers must be unique, got 'yes'"),
        (lambda d: d["instructions"][0].update(question=" "), "'k0': question must be a non-blank"),
        (lambda d: d["instructions"].append(d["instructions"][0]), "ids must be unique, got 'k0'"),
        (lambda d: d.update(instructions=[]), "instructions must be a list of at least one"),
        (lambda d: d["adversaries"][0].update(texts="a"), "'against': texts must be a list"),
        (
            lambda d: d["adversaries"][0].update(texts=["{more}"]),
            "may hold {question} and {other} alone, got {more}",
        ),
        (lambda d: d["adversaries"][0].update(texts=["{"]), "must have its braces in pairs"),
    ],
)
def test_faulty_conflicts_are_refused_with_file_and_place(tmp_path, change, message):
    file = Path(write_conflicts(tmp_path))
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(json.dumps(data))  # JSON is YAML
    with pytest.raises(InstructionError, match=message) as caught:
        load_conflicts(file)
    assert str(file) in str(caught.value)


def test_what_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(InstructionError, match=r"bad.yaml: not valid YAML"):
        load_conflicts(tmp_path / "bad.yaml")
    with pytest.raises(FileNotFoundError, match="must be in a YAML file"):
        load_conflicts(tmp_path / "none.yaml")


# --- levels and texts ------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "against"), [(9, (11, 9, 11)), (7, (12, 19)), (11, (10, 17))])
def test_levels_rise_from_nothing_to_all(own, against):
    levels = compose_levels(own, against, 13, 60)
    alphas = np.array([level.alpha for level in levels])
    assert alphas[0] == 0
    assert alphas[-1] == 1
    assert (np.diff(alphas) > 0).all()
    assert np.abs(alphas - ALPHA).max() < 0.12
    sizes = [level.instruction_tokens + level.adversarial_tokens for level in levels]
    assert min(sizes) >= 30
    assert max(sizes) <= 80


def test_too_few_tokens_for_the_levels_are_refused():
    with pytest.raises(ValueError, match=r"tokens must be enough for 13 levels .* got 20, which"):
        compose_levels(9, (11,), 13, 20)


def test_the_ratio_counts_the_tokens_of_the_text(tmp_path):
    conflicts = load_conflicts(write_conflicts(tmp_path, own=3, against=(5, 4)))
    for chat in (False, True):
        tokenizer = WordTokenizer(chat)
        dialogue = Dialogue(
            *conflicts.instructions, *conflicts.adversaries, tokenizer, levels=13, tokens=48
        )
        for number, level in enumerate(dialogue.levels):
            for order in (0, 1, 2):
                words = dialogue.text(number, order, (0, 1)).split()
                assert words.count("i") == level.instruction_tokens
                assert words.count("a") == level.adversarial_tokens
                assert words.count("q0") == 3
                assert [word for word in words if word in ("yes", "no")] == ["yes", "no"]


def test_a_template_that_begins_the_text_does_so_once(tmp_path):
    conflicts = load_conflicts(write_conflicts(tmp_path))
    tokenizer = WordTokenizer(chat=True)
    dialogue = Dialogue(
        *conflicts.instructions, *conflicts.adversaries, tokenizer, levels=8, tokens=48
    )
    assert tokenizer(dialogue.text(3))["input_ids"].count(tokenizer.bos_token_id) == 1


def test_other_orders_are_shuffles_of_the_same_sentences(tmp_path):
    conflicts = load_conflicts(write_conflicts(tmp_path))
    dialogue = Dialogue(
        *conflicts.instructions, *conflicts.adversaries, WordTokenizer(), levels=9, tokens=64
    )
    texts = {dialogue.text(4, order) for order in range(4)}
    assert len(texts) > 1
    assert len({tuple(sorted(text.split())) for text in texts}) == 1


# --- planted truths --------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("start", "fall"), [(3.0, 8.0), (6.0, 7.5), (1.0, 12.0)])
def test_a_linear_law_is_recovered(tmp_path, chat, start, fall):
    result = measured(tmp_path, lambda k, alpha, last: start - fall * alpha, chat=chat)
    pair = result.detail["pairs"][0]
    assert pair["status"] == "flips"
    assert pair["alpha_c"] == pytest.approx(start / fall, abs=1e-4)
    assert pair["slope"] == pytest.approx(-fall / 4, abs=1e-4)
    assert pair["width"] == pytest.approx(2 * math.log(9) / fall, abs=1e-4)
    truth = compliance(start - fall * np.array(pair["alpha"]))
    assert pair["compliance"] == pytest.approx(truth, abs=1e-5)
    assert pair["coverage"] == pytest.approx([0.999] * Context().levels, abs=1e-5)
    assert len(set(pair["alpha"])) == Context().levels


def by_hand(alpha, start, fall, pull, memory):
    """Both loops of a model that is pulled to its last answer, turn by turn."""
    count = len(alpha)

    def along(way):
        last, found = 0, []
        for turn, level in enumerate([way[0]] * memory + way):
            odds = start - fall * alpha[level] + pull * last * (memory > 0)
            last = 1 if odds > 0 else -1
            if turn >= memory:
                found.append(1 / (1 + math.exp(-odds)))
        return found

    up, down = list(range(count)), list(range(count))[::-1]
    there, back = along(up + down[1:]), along(down + up[1:])
    first = np.array(there[:count]) - np.array(there[count - 1 :][::-1])
    second = np.array(back[count - 1 :]) - np.array(back[:count][::-1])
    steps = np.diff(alpha)
    return [float(np.sum(steps * (gap[1:] + gap[:-1]) / 2)) for gap in (first, second)]


@pytest.mark.parametrize("memory", [1, 2, 3])
@pytest.mark.parametrize("pull", [1.5, -0.8])
def test_hysteresis_is_recovered(tmp_path, memory, pull):
    start, fall = 4.2, 8.0
    result = measured(
        tmp_path, lambda k, alpha, last: start - fall * alpha + pull * last, memory=memory
    )
    pair = result.detail["pairs"][0]
    area, back = by_hand(pair["alpha"], start, fall, pull, memory)
    assert abs(area) > 0.05
    assert pair["area"] == pytest.approx(area, abs=1e-4)
    assert pair["reversed_area"] == pytest.approx(back, abs=1e-4)
    assert pair["hysteresis"] == pytest.approx((area + back) / 2, abs=1e-4)


def test_without_an_effect_of_the_answers_there_is_no_hysteresis(tmp_path):
    result = measured(tmp_path, lambda k, alpha, last: 3 + k - 8 * alpha, instructions=6)
    assert result.estimates["hysteresis"].value == pytest.approx(0, abs=1e-6)
    assert result.detail["p_values"]["hysteresis"] == 1
    forgetful = measured(tmp_path, lambda k, a, last: 3 - 8 * a + 2 * last, memory=0)
    assert forgetful.estimates["hysteresis"].value == pytest.approx(0, abs=1e-6)


def test_hysteresis_of_many_is_told_from_chance(tmp_path):
    result = measured(
        tmp_path, lambda k, alpha, last: 3 + 0.3 * k - 8 * alpha + 1.5 * last, instructions=8
    )
    found = result.estimates["hysteresis"]
    assert 0.05 < found.low <= found.value <= found.high
    assert result.detail["p_values"]["hysteresis"] < 0.02


def test_a_loop_of_a_model_that_only_tires_is_seen_as_such():
    up, down = np.full(13, 1.0), np.full(13, 0.0)
    later_is_less = [loop_area(ALPHA, up, down), loop_area(ALPHA, down, up)]
    assert sum(later_is_less) == pytest.approx(0)
    assert later_is_less[0] > 0.2


@pytest.mark.parametrize(
    ("odds", "shape"),
    [
        (lambda alpha: 12 - 24 * alpha, "sigmoid"),
        (lambda alpha: np.where(alpha < 0.45, 6.0, -6.0), "step"),
        (lambda alpha: np.log((0.95 - 0.9 * alpha) / (0.05 + 0.9 * alpha)), "linear"),
    ],
)
def test_the_planted_shape_wins(odds, shape):
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.02):
        curve = compliance(odds(ALPHA)) + noise * rng.standard_normal(13)
        bic = compare_shapes(ALPHA, curve)
        assert bic is not None
        assert min(bic, key=lambda name: bic[name]) == shape


def test_a_planted_step_wins_through_the_model(tmp_path):
    result = measured(tmp_path, lambda k, alpha, last: 6.0 if alpha < 0.4 else -6.0)
    assert result.detail["pairs"][0]["shape"] == "step"
    assert result.estimates["bic_gain"].value > 6


@pytest.mark.parametrize("key", ["alpha_c", "slope"])
def test_intervals_hold_the_planted_mean(key):
    """Twelve instructions of a population, noise on every log-odds; the truth is its mean."""
    inside, seeds = 0, 200
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        middles, falls = rng.normal(0.5, 0.08, 12), rng.uniform(10, 14, 12)
        found = []
        for middle, fall in zip(middles, falls, strict=True):
            log_odds = fall * (middle - ALPHA) + 0.3 * rng.standard_normal(13)
            value = getattr(find_crossing(ALPHA, log_odds), key)
            found.append(math.nan if value is None else value)
        truth = {"alpha_c": 0.5, "slope": -3.0}[key]
        interval = mean_of_known(np.array(found))
        inside += interval.low <= truth <= interval.high
    assert inside / seeds >= 0.93


def test_excess_spread_is_recovered_and_exchanged():
    alpha = ALPHA
    spreads = np.where(np.abs(alpha - 0.5) <= 0.15, 2.0, 0.5)
    assert excess_spread(alpha, spreads, 0.5) == pytest.approx(1.5)
    assert math.isnan(excess_spread(alpha, spreads, 3.0))
    assert spread(np.array([[1.0, 2.0], [3.0, 2.0]])) == pytest.approx([math.sqrt(2), 0])
    assert np.isnan(spread(np.ones((1, 3)))).all()


def planted_pair(name, middle, bump, adversary="a"):
    """A pair whose orders differ more near a place."""
    width = np.where(np.abs(ALPHA - bump) <= 0.15, 1.0, 0.2)
    line = 12 * (middle - ALPHA)
    curves = {"log_odds": [line - width, line + width], "alpha": ALPHA}
    loops = dict.fromkeys(("up", "down", "reversed_down", "reversed_up"), line)
    part = {**curves, **loops}
    named = {"instruction": name, "adversary": adversary, "category": "planted"}
    return {**named, **part, **describe_pair(part)}


def test_fluctuations_count_only_where_they_follow_the_threshold():
    middles = np.linspace(0.2, 0.8, 12)
    own = summarize([planted_pair(f"k{i}", m, m) for i, m in enumerate(middles)])
    assert own[0]["excess_spread"].low > 0.5
    assert own[1]["p_values"]["excess_spread"] < 0.01
    fixed = summarize([planted_pair(f"k{i}", m, 0.5) for i, m in enumerate(middles)])
    assert fixed[1]["p_values"]["excess_spread"] > 0.05


def test_adversaries_of_one_instruction_are_no_more_evidence_of_fluctuations():
    """Three instructions have six matches, however many pairs there are."""
    found = [
        planted_pair(f"k{i}", middle, middle, f"a{number}")
        for i, middle in enumerate((0.2, 0.5, 0.8))
        for number in range(6)
    ]
    assert summarize(found)[1]["p_values"]["excess_spread"] == pytest.approx(1 / 6, abs=0.05)
    one = [pair for pair in found if pair["instruction"] == "k1"]
    assert summarize(one)[1]["p_values"]["excess_spread"] == 1


# --- edges -----------------------------------------------------------------------------------


def test_what_never_flips_is_named_and_not_forced(tmp_path):
    def odds(k, alpha, last):
        return (5 - 2 * alpha, -1 - alpha, 4 - 8 * alpha)[k]

    result = measured(tmp_path, odds, instructions=3)
    assert result.detail["statuses"] == {
        "flips": ["k2 × against"],
        "never_flips": ["k0 × against"],
        "never_compliant": ["k1 × against"],
        "not_finite": [],
    }
    own = result.detail["by_instruction"]
    assert math.isnan(own["k0"]["alpha_c"])
    assert own["k0"]["alpha_c_at_least"] == 1
    assert math.isnan(own["k0"]["hysteresis"])
    assert own["k2"]["hysteresis"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(own["k1"]["alpha_c_at_least"])
    assert result.estimates["alpha_c"].value == pytest.approx(0.5, abs=1e-4)
    text = Context.table(result)
    assert "1 never compliant" in text
    assert "1/1" in text


def test_names_are_shown_as_they_are_and_not_read_as_formulas(tmp_path):
    sign = r"$\frac$"  # a formula that matplotlib would fail on
    file = Path(write_conflicts(tmp_path))
    told = file.read_text().replace("k0", f"'k{sign}'").replace("id: against", f"id: 'a{sign}'")
    file.write_text(told)
    made = Context(conflicts=str(file), tokens=48, orders=1)
    subject = Subject(
        conflicting_model(lambda k, alpha, last: 4 - 8 * alpha), WordTokenizer(), f"m{sign}"
    )
    figure = Context.figure(made.measure(subject, tmp_path, Parts()))
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    assert picture.getvalue().count(b"frac$") >= 3  # in the comments that name the texts


def test_a_broken_model_gives_no_figures_and_no_error(tmp_path):
    result = measured(tmp_path, lambda k, alpha, last: math.nan)
    assert result.detail["statuses"]["not_finite"] == ["k0 × against"]
    assert math.isnan(result.estimates["alpha_c"].value)
    back = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    Context.table(back)
    Context.figure(back)


def test_the_settings_tell_what_the_conflicts_say_and_not_where(tmp_path):
    made = experiment(tmp_path)
    before = made.settings
    file = Path(str(made.conflicts))
    text = file.read_text()
    moved = tmp_path / "moved.yaml"
    moved.write_text(text)
    assert Context(conflicts=str(moved), tokens=48, orders=1).settings == before
    file.write_text(text.replace("category: ", "category: other-", 1))
    assert made.settings != before


def test_the_falling_fit_pools_what_rises():
    assert falling_fit(np.array([3.0, 1.0, 2.0, 0.0])) == pytest.approx([3, 1.5, 1.5, 0])
    assert falling_fit(np.array([0.0, 1.0, 2.0])) == pytest.approx([1, 1, 1])
    assert find_crossing(ALPHA, np.full(13, math.nan)).status == "not_finite"


def test_a_curve_that_rises_has_no_shape():
    assert compare_shapes(ALPHA, ALPHA) is None
    assert compare_shapes(ALPHA, np.full(13, 0.7)) is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"levels": 7}, ValueError, "levels must be at least 8, got 7"),
        ({"levels": 9.5}, TypeError, "levels must be an integer, got 9.5"),
        ({"memory": -1}, ValueError, "memory must be at least 0"),
        ({"orders": 0}, ValueError, "orders must be at least 1"),
        ({"instructions": "cat"}, TypeError, "instructions must be a tuple of ids"),
        ({"instructions": ("none",)}, ValueError, "instructions must be among .* got 'none'"),
        ({"adversaries": ("none",)}, ValueError, "adversaries must be among .* got 'none'"),
        ({"adversaries": ()}, ValueError, "adversaries must not be empty"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Context(**settings)


def test_a_context_beyond_the_model_is_refused(tmp_path):
    model = conflicting_model(lambda k, alpha, last: 0.0, context=50)
    made = experiment(tmp_path)
    with pytest.raises(ValueError, match=r"at most 50 tokens, the model's context, got"):
        made.measure(Subject(model, WordTokenizer()), tmp_path, Parts())


def test_a_constant_on_the_logits_changes_nothing(tmp_path):
    def odds(k, alpha, last):
        return 3 - 8 * alpha + last

    plain, shifted = (measured(tmp_path, odds, shift=shift) for shift in (0.0, 700.0))
    for key, value in plain.estimates.items():
        assert shifted.estimates[key].value == pytest.approx(value.value, abs=1e-6, nan_ok=True)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    def odds(k, alpha, last):
        return 3 + k - 8 * alpha + last

    def stopping(k, alpha, last):
        if k == 2:
            raise KeyboardInterrupt
        return odds(k, alpha, last)

    file = tmp_path / "context.parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, stopping, instructions=3, parts=Parts(file))

    def rest_only(k, alpha, last):
        assert k == 2
        return odds(k, alpha, last)

    resumed = measured(tmp_path, rest_only, instructions=3, parts=Parts(file))
    whole = measured(tmp_path, odds, instructions=3)
    assert resumed.to_json()["detail"] == whole.to_json()["detail"]
    assert resumed.to_json()["estimates"] == whole.to_json()["estimates"]


def test_it_leaves_no_trace(tmp_path, model, tokenizer):
    """On a real model in training mode: weights, modes, random states, tokenizer."""
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = 4096  # letters are tokens to this tokenizer
    model = type(model)(config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = Context(instructions=("letter",), adversaries=("override",), levels=8, tokens=240)
    text = tokenizer.backend_tokenizer.to_str()
    result = made.measure(Subject(model, tokenizer), tmp_path, Parts())
    assert np.isfinite(result.detail["pairs"][0]["compliance"]).all()
    assert tokenizer.backend_tokenizer.to_str() == text
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_figure_shows_every_pair(tmp_path):
    result = measured(tmp_path, lambda k, alpha, last: 3 + k - 8 * alpha + last, instructions=3)
    figure = Context.figure(result)
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 3 + 5 + 1
    figure.savefig(tmp_path / "context.png")


# --- resampling ------------------------------------------------------------------------------


def test_signs_and_matches_are_exchanged():
    assert sign_flip_p(np.full(10, 0.2)) == pytest.approx(2 / 1024, abs=2e-3)
    assert sign_flip_p(np.zeros(5)) == 1
    assert math.isnan(sign_flip_p(np.array([])))
    x = np.arange(8.0)
    assert exchange_p(8, lambda match: float(x @ x[match]), exchanges=499) == pytest.approx(
        1 / 500, abs=3e-3
    )


def test_few_units_have_no_interval():
    assert math.isnan(bounded_estimate(2, lambda units: 1.0).low)
    assert math.isnan(bounded_estimate(0, lambda units: 1.0).value)
