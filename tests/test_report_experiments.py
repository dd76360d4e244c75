"""What experiments have found, on the page: cards, names that try to be markup, broken files."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest
from browser import PHONE, Visit, chromium
from matplotlib.figure import Figure
from test_page import make_run

from crystalmon.experiments.common.command import write_display
from crystalmon.report.experiment_cards import folder_cards
from crystalmon.report.page import write_report
from crystalmon.runs.results import Estimate, Result, write_result

pytestmark = pytest.mark.long

EVIL = "<img src=x onerror=alert(1)>"


def put(folder: Path, name: str = "drift", step: int | None = None, value: float = 1.0) -> None:
    estimates = {"slope": Estimate(value, 0.5, 2.0), EVIL: Estimate(math.nan)}
    result = Result(name, {}, {"model": EVIL, "base": None}, estimates, {}, step, 3.0)
    write_result(folder, result)
    figure = Figure()
    figure.subplots().set_title("<script>")
    write_display(folder, name, f"table {EVIL}", figure)


def test_a_card_holds_the_first_and_the_latest_step(tmp_path):
    for step, value in ((10, 2.0), (0, 1.0), (9, 5.0)):
        put(tmp_path, step=step, value=value)
    ((card,), notes) = folder_cards(tmp_path, "run")
    assert notes == []
    assert card["steps"] == [0, 9, 10]
    assert card["rows"][0] == {"key": "slope", "first": [1.0, 0.5, 2.0], "last": [2.0, 0.5, 2.0]}
    assert card["rows"][1]["last"] == [None, None, None]
    assert card["models"] == {"model": EVIL}
    assert base64.b64decode(card["figure"]).startswith(b"<?xml")


def test_other_files_are_left_alone_and_broken_ones_named(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "drift.json").write_text('{"experiment": "drift", "models"')
    (tmp_path / "context.json").write_text('{"experiment": "context", "models": {}}')
    cards, notes = folder_cards(tmp_path, "here")
    assert cards == []
    assert [note.split(" must be a result")[0] for note in notes] == [
        str(tmp_path / "context.json"), str(tmp_path / "drift.json"),
    ]  # fmt: skip
    assert folder_cards(tmp_path / "nowhere", "nowhere") == ([], [])


@pytest.mark.parametrize("alone", [True, False], ids=["folder", "run"])
def test_the_page_draws_them_in_both_themes(tmp_path, alone):
    folder = tmp_path / "results"
    if not alone:
        folder = make_run(tmp_path / "results", [0, 1, 2]).folder / "experiments"
    put(folder)
    put(folder, "landscape")
    file = write_report([tmp_path / "results"], tmp_path / "page.html")
    with chromium() as browser:
        for size, dark in (((1280, 900), False), (PHONE, True)):
            visit = Visit(browser, size, dark=dark)
            page = visit.open(file.as_uri())
            assert page.locator(".experiment").count() == 2
            assert page.evaluate("[...document.querySelectorAll('.experiment img')]"
                                 ".every((image) => image.naturalWidth > 0)")  # fmt: skip
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert EVIL in page.locator(".experiment table").first.inner_text()
            inverted = page.evaluate(
                "getComputedStyle(document.querySelector('.experiment img')).filter"
            )
            assert inverted.startswith("invert") == dark
            sections = page.locator("main section:visible h2").all_inner_texts()
            assert (sections == ["Experiments"]) == alone
            assert visit.said == []
            visit.close()


def test_a_payload_is_strict_json(tmp_path):
    put(tmp_path)
    cards, _ = folder_cards(tmp_path, "run")
    assert cards
    assert json.loads(json.dumps(cards, allow_nan=False)) == cards
