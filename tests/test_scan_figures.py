"""The figures of a scan: what they show, what they cannot be made to do, and where they go."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, Visit, chromium
from test_page import EVIL
from test_transfer import other_family
from test_verdicts import PROMPTS, TASKS, at_seed, liquid_base, settled, towards, write_stages

from crystalmon.analysis.stage_measures import (
    TaskStages,
    measure_stages,
    proxy_mass,
    proxy_mse,
    seed_mass,
    seed_mse,
    variety,
)
from crystalmon.analysis.transfer import find_transfer
from crystalmon.analysis.verdicts import judge_run
from crystalmon.cli.main import main
from crystalmon.report.answer_figures import MOST_CHOICES, MOST_STAGES, histogram, pick_stages
from crystalmon.report.page import report_html, write_report
from crystalmon.report.scan_data import mean_band, read_stages
from crystalmon.report.scan_figures import scan_figures, write_scan_figures
from crystalmon.report.style import figure_svg
from crystalmon.report.transfer_figure import null_band, transfer_figure
from crystalmon.runs.json_values import json_value
from crystalmon.runs.names import SCAN_FILE
from crystalmon.runs.reader import read_run
from crystalmon.runs.store import write_info

pytestmark = pytest.mark.long

PNG = b"\x89PNG"


def write_scan(folder: Path, base: dict, stages: list[dict], *, evil: bool = False):
    """A scan with its `scan.json`; `evil` names try to be markup, and formulas."""
    run = write_stages(folder, base, stages)
    words = [*EVIL, "$\\frac$", "_", "$x$", "long " * 20] if evil else [f"w{c}" for c in range(8)]
    texts = {
        name: {"prompts": [f"p{p}" for p in range(PROMPTS)], "choices": words} for name in base
    }
    names = [EVIL[1], "$\\frac{$", "sft/checkpoint-100000000000", "_"] if evil else None
    listed = [
        {**stage, "name": names[stage["step"]] if names else stage["name"]}
        for stage in run.info["stages"]
    ]
    write_info(run.folder, {**run.info, "suite_texts": texts, "stages": listed})
    run = read_run(folder)
    found = measure_stages(run) | {"verdicts": [v.to_json() for v in judge_run(run)]}
    (run.folder / SCAN_FILE).write_text(json.dumps(json_value(found)))
    return run, json_value(found)


def few(base: dict) -> dict:
    return dict(list(base.items())[:2])


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    base = liquid_base()
    return write_scan(tmp_path_factory.mktemp("a"), base, [at_seed(base), settled(base)])


# --- what is drawn ---------------------------------------------------------------------------


def test_the_measures_are_those_of_scan_json(scanned):
    run, found = scanned
    stages = read_stages(run, found)
    assert stages.names == ("base", "sft", "dpo")
    for measure, key in (
        (variety, "variety"),
        (proxy_mse, "proxy_mse"),
        (proxy_mass, "proxy_mass"),
        (seed_mse, "final_seed_mse"),
        (seed_mass, "final_seed_mass"),
    ):
        band, count = mean_band(stages.tasks.values(), measure) or pytest.fail(key)
        assert count == TASKS
        np.testing.assert_allclose(band.value, list(found["mean"][key].values()), rtol=1e-6)
        assert (band.low <= band.value).all()
        assert (band.value <= band.high).all()
        assert band.low[0] < band.high[0]
        own, _ = mean_band([stages.tasks["task-1"]], measure) or pytest.fail(key)
        np.testing.assert_allclose(
            own.value, list(found["tasks"]["task-1"][key].values()), rtol=1e-6
        )


def test_a_task_without_a_seed_or_a_proxy_has_no_such_measure():
    q = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 5))
    bare = TaskStages(("a", "b", "c"), q, None, np.full(3, np.nan))
    for measure in (seed_mse, seed_mass, proxy_mse, proxy_mass):
        assert mean_band([bare], measure) is None
    assert mean_band([bare], variety) is not None
    assert mean_band([TaskStages(("a", "b", "c"), q[:, :1], None, bare.proxy)], variety) is None


def test_a_stage_with_nan_is_a_gap_and_no_error(scanned):
    stages = read_stages(*scanned)
    task = stages.tasks["task-0"]
    q = task.q.copy()
    q[1] = np.nan
    found = mean_band([TaskStages(task.choices, q, task.seed, task.proxy)], seed_mse)
    assert found is not None
    assert np.isnan(found[0].value).tolist() == [False, True, False]


def test_of_many_stages_and_choices_some_are_shown():
    assert pick_stages(3) == [0, 1, 2]
    assert pick_stages(40)[0] == 0
    assert pick_stages(40)[-1] == 39
    assert len(pick_stages(40)) == MOST_STAGES
    q = np.random.default_rng(0).dirichlet(np.full(100, 0.2), size=(2, 5))
    task = TaskStages(tuple(map(str, range(100))), q, None, np.full(100, np.nan))
    labels, means = histogram(task, [0, 1])
    assert labels[-1] == f"{101 - MOST_CHOICES} others"
    assert means.shape == (2, MOST_CHOICES)
    np.testing.assert_allclose(means.sum(axis=1), 1.0)
    q[1] = np.nan  # a stage without answers does not decide which choices are shown
    alone = TaskStages(task.choices, q[:1], None, task.proxy)
    assert histogram(task, [0, 1])[0] == histogram(alone, [0])[0]


def test_every_figure_is_written_as_png_and_svg(scanned, tmp_path):
    run, found = scanned
    files = write_scan_figures(run, found, tmp_path / "figures")
    names = ("variety", "seed", "seed_mse_tasks", "seed_mass_tasks", "proxy", "answers")
    assert [f.name for f in files] == [f"{n}.{kind}" for n in names for kind in ("svg", "png")]
    for file in files:
        content = file.read_bytes()
        assert content.startswith(PNG if file.suffix == ".png" else b"<?xml")


def test_a_figure_is_the_same_every_time(scanned):
    first, second = (figure_svg(scan_figures(*scanned)[1].figure) for _ in range(2))
    assert first == second


def test_a_base_alone_and_twenty_checkpoints_can_be_drawn(tmp_path):
    base = few(liquid_base())
    steps = [at_seed(base, share) for share in np.linspace(0.1, 0.98, 20)]
    for name, stages in (("alone", []), ("many", steps)):
        run, found = write_scan(tmp_path / name, base, stages)
        for each in scan_figures(run, found):
            assert len(figure_svg(each.figure)) > 5_000


def test_another_scans_json_is_refused(scanned):
    run, found = scanned
    with pytest.raises(ValueError, match=r"scan\.json must have the stages of the run"):
        read_stages(run, found | {"stages": found["stages"][:2]})


# --- transfer --------------------------------------------------------------------------------


def test_the_null_is_the_mean_over_tasks_of_prompts_drawn_at_random(scanned, tmp_path):
    base, own = liquid_base(), other_family(liquid_base())
    shared = {n: towards(own[n], base[n][t], 0.98) for t, n in enumerate(base)}
    b, _ = write_scan(tmp_path / "b", own, [shared])
    stages = find_transfer(scanned[0], b)
    null = null_band(stages)
    for place, stage in enumerate(stages):
        others = [np.mean(task.others) for task in stage.tasks.values()]
        assert {len(task.others) for task in stage.tasks.values()} == {PROMPTS - 1}
        assert null.value[place] == pytest.approx(np.mean(others), abs=0.005)
        assert null.low[place] < null.value[place] < null.high[place]
    distances = [np.mean([t.distance for t in stage.tasks.values()]) for stage in stages]
    assert distances[1] < null.low[1]
    assert distances[0] > null.low[0]
    assert "<svg" in figure_svg(transfer_figure("a", "$\\frac{", stages))
    file = tmp_path / "transfer.png"
    assert main(["transfer", str(scanned[0].folder), str(b.folder), "--figure", str(file)]) == 0
    assert file.read_bytes().startswith(PNG)


def test_a_figure_that_cannot_be_written_is_one_sentence(scanned, tmp_path, capsys):
    folder = str(scanned[0].folder)
    told = {
        "transfer.docx": "the file must end in .png or .svg or .pdf, got",
        "no/such/folder.png": "is not there. Make it first.",
        f"{'x' * 300}.png": "cannot take the figure: File name too long",
    }
    for name, sentence in told.items():
        assert main(["transfer", folder, folder, "--figure", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


# --- in the report ---------------------------------------------------------------------------


def scans_of(page: str) -> list[dict]:
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    return json.loads(text[1])["scans"]


def test_the_report_has_the_verdicts_and_figures_of_a_scan_alone(scanned, tmp_path):
    run, found = scanned
    (section,) = scans_of(report_html([run]))
    assert [v["verdict"] for v in section["verdicts"]] == [v["verdict"] for v in found["verdicts"]]
    assert len(section["figures"]) == 6
    training = write_stages(tmp_path / "training", liquid_base(), [])
    assert scans_of(report_html([training])) == []


def test_the_report_of_two_scans_looks_for_the_seeds_of_each_in_the_other(scanned, tmp_path):
    base, own = liquid_base(), other_family(liquid_base())
    shared = {n: towards(own[n], base[n][t], 0.98) for t, n in enumerate(base)}
    b, _ = write_scan(tmp_path / "b", own, [shared])
    *scans, across = scans_of(report_html([scanned[0], b]))
    assert [section["name"] for section in scans] == [scanned[0].name, b.name]
    assert across["verdicts"] == []
    titles = [figure["title"] for figure in across["figures"]]
    assert f"The seeds of {scanned[0].name} in {b.name}" in titles


def test_a_pair_without_seeds_is_said_and_costs_nothing_else(scanned, tmp_path):
    liquid, _ = write_scan(tmp_path / "liquid", liquid_base(), [liquid_base()])
    page = report_html([liquid, scanned[0]])
    *scans, across = scans_of(page)
    assert len(scans) == 2
    (figure,) = across["figures"]
    assert figure["title"] == f"The seeds of {scanned[0].name} in {liquid.name}"
    assert f"The seeds of {liquid.name} are not looked for in {scanned[0].name}" in page


def test_a_damaged_run_json_costs_the_transfers_alone(scanned, tmp_path):
    base = liquid_base()
    b, _ = write_scan(tmp_path / "b", base, [at_seed(base)])
    write_info(b.folder, {**b.info, "config": None})
    (b.folder / "reference" / "reference.safetensors").unlink()
    with pytest.warns(UserWarning, match="config must be a mapping"):
        runs = [scanned[0], read_run(b.folder)]
    names = [section["name"] for section in scans_of(report_html(runs))]
    assert scanned[0].name in names
    assert "Seeds across families" not in names


def test_a_damaged_scan_json_costs_the_figures_and_is_said(tmp_path):
    base = liquid_base()
    run, _ = write_scan(tmp_path, base, [at_seed(base)])
    (run.folder / SCAN_FILE).write_text('{"stages": 3')
    page = report_html([run])
    assert scans_of(page) == []
    assert "scan.json cannot be shown" in page


@pytest.mark.parametrize(("size", "dark"), [((1280, 900), False), (PHONE, True)])
def test_names_in_a_scan_are_shown_and_never_run(tmp_path, size, dark):
    base = few(liquid_base())
    run, _ = write_scan(tmp_path / "<b>", base, [at_seed(base), settled(base)], evil=True)
    page = write_report([run.folder], tmp_path / "report.html")
    assert page.read_text().count("</script>") == 3
    with chromium() as browser:
        visit = Visit(browser, size, dark=dark)
        opened = visit.open(page.as_uri())
        assert opened.locator("#scans figure img").count() == 6
        sizes = "[...document.querySelectorAll('#scans img')].map((i) => i.naturalWidth)"
        visit.wait(f"{sizes}.every((width) => width > 500)")
        assert opened.locator(".verdicts li").count() == 3
        assert opened.evaluate("document.documentElement.scrollWidth") == size[0]
        assert [text for text in visit.said if "MathJax" not in text] == []  # plotly: for a $
        assert [u for u in visit.asked if not u.startswith(("file:", "data:", "blob:"))] == []
        visit.close()
