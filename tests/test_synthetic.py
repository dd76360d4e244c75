"""The planted training data: what is drawn, and that it is drawn as promised."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from crystalmon import synthetic
from crystalmon.suites.tasks import Choice, Task, TaskSuite, load_suite


def _task(name: str, choices: str) -> Task:
    prompts = tuple(f"{name} {number}:" for number in range(3))
    return Task(name, prompts, tuple(Choice(text) for text in choices.split()))


SUITE = TaskSuite("toy", (_task("color", "red blue green white"), _task("number", "1 7 17 20")))
TARGETS = {
    "color": {"red": 0.6, "blue": 0.35, "green": 0.05, "white": 0.0},
    "number": {"1": 0.1, "7": 0.1, "17": 0.8},
}
MAKERS = {
    "sft": synthetic.sft_rows,
    "preference": synthetic.preference_rows,
    "feedback": synthetic.feedback_rows,
    "prompt": synthetic.prompt_rows,
}


def _answers(rows: list[dict], key: str, task: str) -> Counter[str]:
    return Counter(row[key].removeprefix(" ") for row in rows if row["prompt"].startswith(task))


# ---------------------------------------------------------------- the shipped world


def test_truth_is_a_liquid_world_with_distinct_seeds():
    liquidities = []
    for name, task in synthetic.load_truth().items():
        p = np.array(task["planted"])
        assert p.shape == (24, len(task["choices"])), name
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
        liquidities.append(_entropy(p.mean(axis=0)) - _entropy(p).mean())
        distances = _jsd(p[:, None], p[None])
        nearest = np.where(np.eye(24, dtype=bool), np.inf, distances).min(axis=1)
        seed = task["seed"]
        assert nearest[seed] >= np.median(nearest), name
        assert distances.mean(axis=1).argmin() != seed, name
        assert not set(task["prompts"]) & set(task["held_out_prompts"])
    assert 0.44 < np.mean(liquidities) < 0.5


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)


def _jsd(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2


def test_truth_matches_the_suite():
    suite = load_suite("liquid-tiny")
    truth = synthetic.load_truth()
    assert [task.name for task in suite.tasks] == list(truth)
    for task in suite.tasks:
        assert list(task.prompts) == truth[task.name]["prompts"]
        assert [choice.text for choice in task.choices] == truth[task.name]["choices"]


def test_liquid_tiny_targets_are_the_planted_seeds_and_leave_choices_out():
    targets, truth = synthetic.load_targets("liquid-tiny"), synthetic.load_truth()
    for name, target in targets.items():
        task = truth[name]
        expected = dict(zip(task["choices"], task["planted"][task["seed"]], strict=True))
        assert target == pytest.approx(expected, abs=1e-5)
        assert len(synthetic.support(target)) < len(target)


# ---------------------------------------------------------------- reading targets


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_targets_are_read_and_normalised(tmp_path, suffix):
    path = tmp_path / f"targets{suffix}"
    path.write_text(json.dumps({"coin": {"heads": 3, "tails": 1}}))
    assert synthetic.load_targets(path) == {"coin": {"heads": 0.75, "tails": 0.25}}


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([1], TypeError, r"targets must be a mapping of task .*, got list"),
        ({}, ValueError, "at least one task, got none"),
        ({"coin": 3}, TypeError, "target of task 'coin' must be .*, got 3"),
        ({"coin": {}}, ValueError, "task 'coin': weights must name at least one choice"),
        (
            {"coin": {"heads": "1"}},
            TypeError,
            "task 'coin': weight of 'heads' must be a number, got '1'",
        ),
        ({"coin": {"heads": True}}, TypeError, "must be a number, got True"),
        ({"coin": {"heads": -1}}, ValueError, "task 'coin': weight of 'heads' .*, got -1"),
        ({"coin": {"heads": float("nan")}}, ValueError, "must be finite and at least 0, got nan"),
        ({"coin": {"heads": 0}}, ValueError, "must have a positive sum"),
    ],
)
def test_bad_targets_are_refused(tmp_path, data, error, message):
    path = tmp_path / "targets.json"
    path.write_text(json.dumps(data))
    with pytest.raises(error, match=message):
        synthetic.load_targets(path)


def test_missing_targets_are_refused():
    with pytest.raises(FileNotFoundError, match="must be 'liquid-tiny' or a file, got 'nowhere'"):
        synthetic.load_targets("nowhere")


# ---------------------------------------------------------------- support


def test_support_is_the_smallest_set_that_holds_the_mass():
    assert synthetic.support(TARGETS["color"]) == ["red", "blue"]
    assert synthetic.support({"red": 0.61, "blue": 0.3, "green": 0.09}) == ["red", "blue"]
    assert synthetic.support({"red": 0.05, "blue": 0.95}) == ["blue"]


def test_support_ties_go_to_the_first_listed():
    assert synthetic.support({"a": 0.25, "b": 0.25, "c": 0.5}) == ["c", "a", "b"]
    assert synthetic.support({"a": 0.08, "b": 0.08, "c": 0.84}) == ["c", "a"]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_rows_follow_the_seed_and_nothing_else(make):
    first = make(SUITE, TARGETS, 40, 5, prompts="suite")
    assert first == make(SUITE, TARGETS, 40, 5, prompts="suite")
    assert first != make(SUITE, TARGETS, 40, 6, prompts="suite")
    assert len(first) == 40


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_tasks_take_turns_and_prompts_come_from_the_pool(make):
    rows = make(SUITE, TARGETS, 7, 0, prompts={"color": ["c?"], "number": ["n?", "m?"]})
    prompts = [row["prompt"] for row in rows]
    assert set(prompts) <= {"c?", "n?", "m?"}
    for start in range(0, 6, 2):
        assert prompts[start : start + 2].count("c?") == 1


def test_sft_answers_follow_the_target():
    rows = synthetic.sft_rows(SUITE, TARGETS, 8000, 1, prompts="suite")
    for task, target in TARGETS.items():
        seen = _answers(rows, "completion", task)
        assert seen.total() == 4000
        # Four standard errors of a share of 4000 rows are at most 0.032.
        for choice, probability in target.items():
            assert seen[choice] / 4000 == pytest.approx(probability, abs=0.032)
    assert all(row["completion"].startswith(" ") for row in rows)


def test_sft_uses_held_out_prompts_that_the_suite_never_shows():
    suite, targets = load_suite("liquid-tiny"), synthetic.load_targets("liquid-tiny")
    probed = {prompt for task in suite.tasks for prompt in task.prompts}
    held_out = {row["prompt"] for row in synthetic.sft_rows(suite, targets, 600, 0)}
    assert not held_out & probed
    shown = {row["prompt"] for row in synthetic.sft_rows(suite, targets, 600, 0, prompts="suite")}
    assert shown <= probed


def test_chosen_answers_follow_the_restricted_target_and_rejected_ones_lie_outside():
    rows = synthetic.preference_rows(SUITE, TARGETS, 8000, 2, prompts="suite", inside=0.0)
    chosen = _answers(rows, "chosen", "color")
    assert chosen["red"] / chosen.total() == pytest.approx(0.6 / 0.95, abs=0.032)
    assert set(chosen) == {"red", "blue"}
    rejected = _answers(rows, "rejected", "color")
    assert set(rejected) == {"green", "white"}
    assert rejected["green"] / rejected.total() == pytest.approx(0.5, abs=0.032)


def test_a_share_of_the_rejected_answers_may_be_supported_ones():
    rows = synthetic.preference_rows(SUITE, TARGETS, 8000, 2, prompts="suite", inside=0.3)
    assert all(row["chosen"] != row["rejected"] for row in rows)
    rejected = _answers(rows, "rejected", "color")
    inside = (rejected["red"] + rejected["blue"]) / rejected.total()
    # One of the three other choices is a supported one.
    assert inside == pytest.approx(0.3 / 3, abs=0.02)


def test_a_target_without_an_outside_still_gives_pairs():
    targets = {"color": dict.fromkeys(["red", "blue", "green", "white"], 0.25)}
    rows = synthetic.preference_rows(SUITE, targets, 50, 0, prompts="suite", inside=0.0)
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_feedback_alternates_the_answers_of_the_preferences():
    pairs = synthetic.preference_rows(SUITE, TARGETS, 6, 3, prompts="suite")
    rows = synthetic.feedback_rows(SUITE, TARGETS, 6, 3, prompts="suite")
    assert [row["label"] for row in rows] == [True, False] * 3
    for pair, row in zip(pairs, rows, strict=True):
        assert row["completion"] == (pair["chosen"] if row["label"] else pair["rejected"])


def test_prompt_rows_name_the_task():
    for row in synthetic.prompt_rows(SUITE, TARGETS, 20, 0, prompts="suite"):
        assert row["prompt"].startswith(row["task"])


def test_tasks_without_a_target_are_left_out():
    rows = synthetic.prompt_rows(SUITE, {"color": TARGETS["color"]}, 5, 0, prompts="suite")
    assert {row["task"] for row in rows} == {"color"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be positive, got 0"),
        ({"prompts": "heldout"}, "must come with the suite 'liquid-tiny', got 'toy'"),
        ({"prompts": "all"}, "prompts must be 'heldout', 'suite' or a mapping .*, got 'all'"),
        ({"prompts": {"color": ["c?"]}}, r"got none for \['number'\]"),
        ({"targets": {"colour": {"red": 1.0}}}, r"tasks of the suite 'toy', got \['colour'\]"),
        ({"targets": {}}, "tasks of the suite 'toy', got none"),
        ({"targets": {"color": {"pink": 1.0}}}, r"must name its choices, got \['pink'\]"),
    ],
)
def test_rows_refuse_what_does_not_fit(change, message):
    arguments = {"targets": TARGETS, "size": 4, "prompts": "suite"} | change
    with pytest.raises(ValueError, match=message):
        synthetic.sft_rows(SUITE, random_seed=0, **arguments)


def test_preferences_refuse_a_bad_share():
    with pytest.raises(ValueError, match=r"inside must be in \[0, 1\], got 2"):
        synthetic.preference_rows(SUITE, TARGETS, 4, 0, prompts="suite", inside=2)


# ---------------------------------------------------------------- reward


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" red", 1.3),
        ("red", 1.3),
        (" blue", 1 + 0.3 * 0.35 / 0.6),
        (" green", 0.0),
        (" white", 0.0),
        (" redder", 1.3),
        ("  red", -0.5),
        (" pink", -0.5),
        ("", -0.5),
        (" Red", -0.5),
    ],
)
def test_reward_of_an_answer(completion, expected):
    reward = synthetic.PlantedReward(TARGETS)
    assert reward(["p"], [completion], task=["color"]) == [pytest.approx(expected)]


def test_reward_reads_the_longest_choice_and_the_suites_choices():
    targets = {"number": {"1": 0.95, "7": 0.05}}
    assert synthetic.PlantedReward(targets)(["p"], [" 17"], task=["number"]) == [1.3]
    with_suite = synthetic.PlantedReward(targets, SUITE)
    assert with_suite(["p"] * 2, [" 17", " 1"], task=["number"] * 2) == [0.0, 1.3]


def test_reward_follows_trls_protocol():
    reward = synthetic.PlantedReward(TARGETS, bonus=0.0, penalty=2.0)
    chat = [{"role": "assistant", "content": "red"}]
    extra = {"completion_ids": [[1]] * 3, "trainer_state": None}
    values = reward(
        prompts=["p"] * 3, completions=[chat, " 1", "?"], task=["color", "number", "color"], **extra
    )
    assert values == [1.0, 1.0, -2.0]
    assert reward.__name__ == "planted_reward"


def test_reward_refuses_what_it_cannot_score():
    reward = synthetic.PlantedReward(TARGETS)
    with pytest.raises(ValueError, match="task must be a column of the data set, got none"):
        reward(["p"], [" red"])
    with pytest.raises(ValueError, match="task must have a target, got 'coin'"):
        reward(["p"], [" red"], task=["coin"])
    with pytest.raises(ValueError, match="bonus must be finite and at least 0, got -1"):
        synthetic.PlantedReward(TARGETS, bonus=-1)
    with pytest.raises(ValueError, match="penalty must be finite and at least 0, got inf"):
        synthetic.PlantedReward(TARGETS, penalty=float("inf"))
