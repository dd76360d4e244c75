"""The pages of the documentation lead where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_rooms import ROOMS

import crystalmon

ROOT = Path(__file__).parent.parent
ROOMS_WITH_PAGES = ("crystalmon/metrics", "crystalmon/monitor", "crystalmon/phases")
FOLDERS = (".", "crystalmon", *ROOMS_WITH_PAGES, "recipes", "scripts")
PAGES = [Path(folder, "README.md") for folder in FOLDERS]
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
    helpers = {"budget_live.py", "peak.py", "tiny_models.py", "tiny_world.py", "train.py"}
    helpers |= {"trained_bank.py"}
    helpers |= {f"validation_{kind}.py" for kind in ("sets", "simulated", "stress", "trained")}
    helpers |= {f"gpu_{part}.py" for part in ("answers", "speed", "training")}
    parts = {path.relative_to(ROOT / "scripts") for path in (ROOT / "scripts").rglob("*.py")}
    names = {f"{part.parts[0]}/" if part.parts[0] == "scenarios" else part.name for part in parts}
    for name in names - helpers:
        assert f"{name}`" in said, name


def test_the_code_names_every_room_and_its_modules():
    said = (ROOT / "crystalmon" / "README.md").read_text()
    rooms = set(re.findall(r"^\| `(\w+)/` \|", said, flags=re.MULTILINE))
    assert rooms == set(ROOMS)
    for name in re.findall(r"`([\w/]+\.py)`", said):
        assert (ROOT / "crystalmon" / name).is_file(), name


def test_modules_that_docstrings_name_are_there():
    known = {*crystalmon.__all__, "models"}  # the latter: the old name, which still works
    files = [file for folder in ("crystalmon", "recipes", "scripts", "tests")
             for file in (ROOT / folder).rglob("*.py")]  # fmt: skip
    for file in files:
        for name in re.findall(r"`crystalmon\.([\w.]+)`", file.read_text(encoding="utf-8")):
            place = ROOT / "crystalmon" / name.replace(".", "/")
            there = name in known or place.is_dir() or place.with_suffix(".py").is_file()
            assert there, f"{file.relative_to(ROOT)}: {name}"
