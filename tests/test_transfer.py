"""One family's seeds in another's stages, where both are planted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_verdicts import (
    CHOICES,
    PROMPTS,
    TASKS,
    at_seed,
    liquid_base,
    settled,
    towards,
    write_stages,
)

from crystalmon.analysis.transfer import (
    RANK_DRAWS,
    StageTransfer,
    TaskTransfer,
    find_transfer,
    format_transfer,
    joint_p_value,
    seed_transfer,
)
from crystalmon.cli.main import main
from crystalmon.metrics.divergences import js_divergence
from crystalmon.report.transfer_figure import transfer_figure
from crystalmon.runs.files import RECORDS_FILE, RUN_FILE
from crystalmon.runs.names import REFERENCE_FOLDER
from crystalmon.runs.reader import read_run
from crystalmon.runs.reference import CHOICE_PREFIX, TENSOR_FILE
from crystalmon.runs.store import write_info

WORDS = [f"word-{index}" for index in range(CHOICES)]


def with_words(run, words=WORDS):
    texts = {name: {"choices": list(words)} for name in run.records[0].tasks}
    write_info(run.folder, {**run.info, "suite_texts": texts})
    return read_run(run.folder)


@pytest.fixture
def first(tmp_path):
    base = liquid_base()
    return with_words(write_stages(tmp_path / "a", base, [at_seed(base), settled(base)]))


def other_family(base):
    """Other wordings' answers, of another base."""
    rng = np.random.default_rng(8)
    return {name: rng.dirichlet(np.full(CHOICES, 0.5), size=PROMPTS) for name in base}


def test_the_same_seeds_are_found_in_another_family(first, tmp_path):
    base = liquid_base()
    own = other_family(base)
    shared = {n: towards(own[n], base[n][t], 0.98) for t, n in enumerate(base)}
    b = with_words(write_stages(tmp_path / "b", own, [shared]))
    before, after = find_transfer(first, b)
    assert (before.name, after.name) == ("base", "sft")
    assert before.p_value > 0.05
    assert after.p_value < 0.001
    assert len(after.tasks) == TASKS
    for t in range(TASKS):
        found = after.tasks[f"task-{t}"]
        assert (found.seed, found.p_value) == (t, pytest.approx(1 / PROMPTS))
        assert found.distance < found.null
    text = format_transfer(first, (before, after))
    assert text.splitlines()[0].endswith(f"in {TASKS} tasks")
    assert f"{TASKS}/{TASKS}" in text


def test_other_seeds_are_not(first, tmp_path):
    own = other_family(liquid_base())
    b = with_words(write_stages(tmp_path / "b", own, [at_seed(own)]))
    assert find_transfer(first, b)[-1].p_value > 0.05


def test_the_base_is_the_reference_not_the_first_probe(first, tmp_path):
    base = liquid_base()
    own = other_family(base)
    shared = {n: towards(own[n], base[n][t], 0.98) for t, n in enumerate(base)}
    expected = find_transfer(first, with_words(write_stages(tmp_path / "a-scan", own, [shared])))
    b = with_words(write_stages(tmp_path / "b", own, [shared], first=shared))
    before, after = find_transfer(first, b)
    assert before == expected[0]
    assert after.tasks == expected[1].tasks
    write_info(b.folder, {k: v for k, v in b.info.items() if k != "stages"})
    before, last = find_transfer(first, read_run(b.folder))
    assert (before.name, last.name, last.step) == ("base", "1", 1)
    assert before.tasks == expected[0].tasks


def test_other_views_are_refused(first, tmp_path):
    b = with_words(write_stages(tmp_path / "b", liquid_base(), []))
    file = b.folder / RECORDS_FILE
    file.write_text(file.read_text().replace('"view": "raw"', '"view": "chat"'))
    with pytest.raises(ValueError, match=r"must be of one view, got raw in .*a and chat in .*b\."):
        find_transfer(first, read_run(b.folder))


def test_a_p_value_is_bounded_only_where_no_draw_was_as_small(first):
    task = {"coin": TaskTransfer(0, 0.1, 0.2, 0.5, (0.2,))}
    none, one = (StageTransfer("sft", 1, task, (1 + drawn) / (RANK_DRAWS + 1)) for drawn in (0, 1))
    assert format_transfer(first, [none]).endswith("  < 5e-05")
    assert format_transfer(first, [one]).endswith("  0.0001")
    for stage, text in ((none, "≤ 5e-05"), (one, "0.0001")):
        right = transfer_figure("a", "b", [stage]).axes[1]
        assert f"all {text}" in [each.get_text() for each in right.texts]


def test_choices_are_matched_by_their_text(first, tmp_path):
    base, order = liquid_base(), np.random.default_rng(0).permutation(CHOICES)
    mixed = {name: b[:, order] for name, b in base.items()}
    stage = {name: q[:, order] for name, q in at_seed(base).items()}
    b = with_words(write_stages(tmp_path / "b", mixed, [stage]), [WORDS[i] for i in order])
    after = find_transfer(first, b)[-1]
    assert [task.p_value for task in after.tasks.values()] == pytest.approx([1 / PROMPTS] * TASKS)


def test_a_rank_by_its_formula():
    a = np.random.default_rng(1).dirichlet(np.ones(4), size=9)
    q = np.random.default_rng(2).dirichlet(np.ones(4), size=5)
    distances = [np.mean([js_divergence(row, candidate) for row in q]) for candidate in a]
    found = seed_transfer(q, a, 3)
    assert found.distance == pytest.approx(distances[3])
    assert found.null == pytest.approx(np.median(np.delete(distances, 3)))
    assert found.p_value == pytest.approx(np.mean(np.array(distances) <= distances[3] + 1e-15))


def test_the_joint_p_value_is_uniform_under_the_null():
    rng = np.random.default_rng(5)
    values = [joint_p_value(list(rng.integers(1, 25, 10) / 24), [24] * 10) for _ in range(200)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.array(values) <= 0.05) < 0.1
    assert joint_p_value([1 / 4], [4]) == pytest.approx(0.25, abs=0.02)
    assert np.isnan(joint_p_value([], []))


def test_what_cannot_be_compared_is_one_sentence(first, tmp_path, capsys):
    base = liquid_base()
    b = write_stages(tmp_path / "b", base, [at_seed(base)])
    with pytest.raises(ValueError, match=r"run\.json must hold the 8 choices of task 'task-0'"):
        find_transfer(first, b)
    b = with_words(b, [*WORDS[1:], "other"])
    with pytest.raises(ValueError, match="must have a task, with the same choices, in which"):
        find_transfer(first, b)
    (b.folder / RUN_FILE).unlink()
    assert main(["transfer", str(first.folder), str(b.folder)]) == 1
    assert "no crystalmon run in" in capsys.readouterr().err
    assert main(["transfer", str(first.folder), str(first.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found] == ["base", "sft", "dpo"]


def test_damaged_words_are_one_sentence(first, tmp_path, capsys):
    base = liquid_base()
    b = with_words(write_stages(tmp_path / "b", base, [at_seed(base)]))
    texts = {name: {"choices": ["a"]} for name in b.records[0].tasks}
    write_info(b.folder, {**b.info, "suite_texts": texts})
    assert main(["transfer", str(first.folder), str(b.folder)]) == 2
    assert "choices of task" in capsys.readouterr().err


def test_a_reference_that_lacks_a_task_is_one_sentence(first, capsys):
    lost = next(iter(first.records[0].tasks))
    file = first.folder / REFERENCE_FOLDER / TENSOR_FILE
    tables = load_file(file)
    del tables[f"{CHOICE_PREFIX}{lost}"]
    save_file(tables, file)
    assert main(["transfer", str(first.folder), str(first.folder)]) == 2
    error = capsys.readouterr().err
    assert f"must hold the tasks of its run, got none of {lost}" in error
    assert error.count("\n") == 1
