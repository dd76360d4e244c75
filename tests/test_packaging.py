"""What is published is whole, and its files agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import crystalmon

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with a wheel and an sdist of a copy of the tree, which has tests and a run too."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "crystalmon", tree / "crystalmon", ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for stray in ("tests/test_x.py", "tests/data/x.json", "runs/x/records.jsonl", "scripts/x.py"):
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).touch()
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, check=True, capture_output=True)
    return tree / "dist"


def of_package() -> set[str]:
    files = {file for file in (ROOT / "crystalmon").rglob("*") if file.is_file()}
    return {file.relative_to(ROOT).as_posix() for file in files if file.suffix != ".pyc"}


def test_the_wheel_holds_all_files_of_the_package_and_no_others(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == of_package()


def test_the_source_holds_the_package_and_no_tests(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert of_package() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not {name for name in names if name.startswith(("tests", "runs", "scripts"))}


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(cited["version"]) == crystalmon.__version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_the_workflow_makes_targets_that_are_there():
    (file,) = (ROOT / ".github" / "workflows").glob("*.yml")
    (job,) = yaml.safe_load(file.read_text())["jobs"].values()
    ran = [step["run"] for step in job["steps"] if "run" in step]
    assert ran == ["make check", "make test"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {command.removeprefix("make ") for command in ran} <= set(targets)
