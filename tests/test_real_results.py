"""The results of the study of a real base, on chains whose ends are planted."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from test_verdicts import CHOICES, TASKS, at_seed, liquid_base, seedless, settled, write_stages

from crystalmon.metrics.answers import liquidity
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.subsets import nested_subsets
from crystalmon.runs.files import RUN_FILE


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    script = importlib.import_module("real_results")
    monkeypatch.setattr(script, "DRAWS", 10)
    # those of scans are drawn in test_scan_figures
    monkeypatch.setattr(script, "write_scan_figures", lambda *given: [])
    return script


def write_stage(folder: Path, base: dict, first: dict, last: dict, max_steps: int = 1) -> None:
    """A stage of two probes, with what a training says of itself."""
    write_stages(folder, base, [last], first=first)
    info = json.loads((folder / RUN_FILE).read_text())
    del info["stages"]
    info |= {"reference": "0", "config": {"view": "raw"}, "max_steps": max_steps}
    choices = [f"choice-{number}" for number in range(CHOICES)]
    info["suite_texts"] = {name: {"choices": choices} for name in base}
    (folder / RUN_FILE).write_text(json.dumps(info))


@pytest.fixture
def study(tmp_path):
    base = liquid_base()
    for name, end in (("a", at_seed(base)), ("b", at_seed(base, 0.97)), ("c", seedless(base))):
        write_stage(tmp_path / name / "1-sft/crystalmon", base, base, end)
    write_stage(tmp_path / "a/2-dpo/crystalmon", base, at_seed(base), settled(base), max_steps=9)
    return tmp_path


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()[1:]]


def test_seeds_are_told_from_none_and_from_the_null(results, study):
    found = {row[0]: row[2:] for row in rows(results.format_seeds(results.read_chains(study)))}
    whole = [str(TASKS), "of", str(TASKS), "0"]
    for name in ("a", "b"):
        *counts, shuffled = found[name]
        assert counts == [*whole, str(TASKS), "0", "0"]
        assert float(shuffled) < 0.2 * TASKS
    *crystallized, on_a_wording, on_none, _, _ = found["c"]
    assert crystallized == whole
    assert int(on_a_wording) < int(on_none)


def test_a_seed_is_found_in_the_chain_that_has_it_too(results, study):
    found = {tuple(row[:2]): row for row in rows(results.format_shared(results.read_chains(study)))}
    assert found.keys() >= {("a", "b"), ("a", "c"), ("b", "a"), ("b", "c")}
    assert float(found["a", "b"][-1]) < 0.01 < 0.05 < float(found["a", "c"][-1])


def test_a_stage_that_is_not_finished_says_how_far_it_is(results, study):
    lines = results.format_stages(results.read_chains(study)).splitlines()
    assert [line.split()[2] for line in lines[1:5]] == ["base", "sft", "dpo", "base"]
    assert "dpo (1 of 9)" in lines[3]


def test_stages_of_two_bases_are_no_chain(results, study):
    file = study / "a/2-dpo/crystalmon" / RUN_FILE
    file.write_text(file.read_text().replace('"reference": "0"', '"reference": "1"'))
    with pytest.raises(ValueError, match="dpo must have the base of"):
        _ = results.read_chains(study)[0].joined


def test_what_is_kept_shows_the_same(results, study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept.tar.xz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", str(study), "--pack", "kept.tar.xz"])
    results.main()
    told = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["x"])
    results.main()
    assert capsys.readouterr().out == told.replace(str(study), "runs/real-kept")
    assert (tmp_path / "runs/real-kept/figures/course.png").stat().st_size > 10_000


def test_the_documents_tables_are_those_of_the_runs_that_are_kept(
    results, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "DRAWS", 100)
    monkeypatch.setattr(sys, "argv", ["x"])
    results.main()
    printed = capsys.readouterr().out.splitlines()
    page = (Path(results.__file__).parent / "README.md").read_text(encoding="utf-8")
    shown = page.partition("## A real base")[2].split("```")[1].splitlines()[1:]
    assert len(shown) > 10
    assert [line for line in shown if line not in printed] == []


def test_few_wordings_are_held_against_all(results, tmp_path, monkeypatch, capsys):
    """Planted: only the wordings that two of them stand for have come to answer alike."""
    script, base, alike = importlib.import_module("measure_few"), liquid_base(), {}
    for name, b in base.items():
        alike[name] = b.copy()
        two = nested_subsets(b, script.SIZES)[2]
        alike[name][two] = b[two].mean(axis=0)
    w = uniform_weights(24)
    before, now = (np.array([liquidity(q[n], w) for n in base]) for q in (base, alike))
    write_stage(tmp_path / "run/crystalmon", base, base, alike)
    monkeypatch.setattr(sys, "argv", ["measure_few.py", str(tmp_path / "run")])
    assert script.main() == 0
    found = rows(capsys.readouterr().out)
    assert [row[1:3] for row in found] == [["2", "1"], ["4", "1"], ["8", "1"]]
    _, _, _, mean, rms, _, _, task, scaled = found[0]
    assert float(mean) == float(rms) == pytest.approx(now.mean() / before.mean(), abs=1e-3)
    typical = 1.4826 * np.median(now / before)
    assert float(task) == pytest.approx(typical, abs=0.01)
    assert float(scaled) == pytest.approx(typical / (1 / 2 - 1 / 24) ** 0.5, abs=0.01)
    assert float(found[0][3]) > float(found[1][3]) > float(found[2][3])


def test_what_cannot_tell_about_few_wordings_is_one_sentence(results, study, monkeypatch):
    script, records = importlib.import_module("measure_few"), study / "a/1-sft/crystalmon"
    lines = (records / "records.jsonl").read_text().splitlines(keepends=True)
    for argument, change, words in [
        (study / "nowhere", None, "no crystalmon run in"),
        (records, lambda: (records / "records.jsonl").write_text(lines[0]), "two probes of all"),
        (
            study / "b/1-sft",
            lambda: shutil.rmtree(study / "b/1-sft/crystalmon/reference"),
            "no ref",
        ),
    ]:
        if change:
            change()
        monkeypatch.setattr(sys, "argv", ["measure_few.py", str(argument)])
        with pytest.raises(SystemExit, match=words):
            script.main()
