"""The `>>>` examples in docstrings show what the code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import crystalmon

PACKAGE = Path(crystalmon.__file__).parent
WITH_EXAMPLES = [
    file.relative_to(PACKAGE.parent).with_suffix("")
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_print_what_they_say(path):
    parts = [part for part in path.parts if part != "__init__"]
    result = doctest.testmod(importlib.import_module(".".join(parts)))
    assert result.attempted > 0, "what looks like an example is none"
    assert result.failed == 0


def test_the_formulas_have_examples():
    assert {"answers", "bootstrap", "vocabulary"} <= {path.name for path in WITH_EXAMPLES}
