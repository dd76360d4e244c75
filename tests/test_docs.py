"""The pages of the documentation lead where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [Path(folder, "README.md") for folder in (".", "crystalmon", "recipes", "scripts")]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
COMMAND = re.compile(r"(?:python|--config)\s+((?:scripts|recipes)/[\w/]+\.(?:py|yaml))")


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, no punctuation, dashes for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings_that_are_there(page):
    here = ROOT / page
    for target, anchor in LINK.findall(here.read_text()):
        path = (here.parent / target).resolve() if target else here
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings(path), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_name_files_that_are_there(page):
    for name in COMMAND.findall((ROOT / page).read_text()):
        assert (ROOT / name).is_file(), f"{page}: {name}"


def test_every_script_is_named():
    said = (ROOT / "scripts" / "README.md").read_text()
    # what only other scripts import or start
    helpers = {"peak.py", "trained_bank.py", "train.py"}
    helpers |= {f"validation_{kind}.py" for kind in ("simulated", "stress", "trained")}
    for name in {path.name for path in (ROOT / "scripts").rglob("*.py")} - helpers:
        assert name in said, name


def test_every_module_has_its_place_in_the_table_of_the_code():
    table = (ROOT / "crystalmon" / "README.md").read_text().split("```text")[-1]
    names = {line_name for line in table.splitlines() for line_name in re.split(r"\s+", line[:41])}
    for path in (ROOT / "crystalmon").iterdir():
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            assert path.stem in names or path.stem == "__init__", path.stem
