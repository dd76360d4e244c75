"""The rooms of the package and what each may import, read from the syntax trees of all modules.

A room is a folder of the package. `ROOMS` is the plan: whoever imports against it fails here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import crystalmon

PACKAGE = Path(crystalmon.__file__).parent

ROOMS: dict[str, str] = {
    "suites": "",
    "metrics": "",
    "scoring": "suites",
    "runs": "suites metrics",
    "synthetic": "suites metrics",
    "phases": "metrics runs",
    "analysis": "metrics runs phases",
    "report": "analysis phases runs metrics suites",
    "trackers": "report runs metrics",
    "experiments": "analysis scoring runs suites metrics report.style report.palette",
    "monitor": "suites metrics scoring runs phases report trackers experiments",
    "scan": "monitor analysis phases scoring runs metrics suites",
    "integrations": "monitor scoring suites",
    "cli": "*",
}
"""By room, the rooms that it may import (`room.module`: that module of it alone; `*`: any)."""

WITHOUT_TORCH = ("suites", "runs", "synthetic", "phases", "analysis", "report")
"""Rooms whose every module imports without the libraries that are slow to load."""

HEAVY = ("torch", "transformers", "trl", "accelerate", "datasets", "peft")


class Import(NamedTuple):
    """One import, wherever it stands in a file."""

    module: str
    target: str
    lazy: bool
    line: int

    def __str__(self) -> str:
        return f"{self.module} imports {self.target} (line {self.line})"


def modules() -> dict[str, Path]:
    """The package's modules by their full names."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imports_of(module: str, source: str, known: set[str]) -> list[Import]:
    """All imports that run; those under `if TYPE_CHECKING:` do not."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, lazy)
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: imports are absolute"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in full]
        found.extend(Import(module, name, lazy, node.lineno) for name in dict.fromkeys(names))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


MODULES = modules()
IMPORTS = [
    each
    for name, file in MODULES.items()
    for each in imports_of(name, file.read_text(encoding="utf-8"), set(MODULES))
]
INNER = [each for each in IMPORTS if each.target.split(".")[0] == "crystalmon"]


def room_of(module: str) -> str:
    """The room that a module lies in; empty for the package itself and its version."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def breaks(item: Import, rooms: dict[str, str]) -> bool:
    """Whether an import goes against the plan."""
    own, other = room_of(item.module), room_of(item.target)
    if not own or not other or own == other or rooms[own] == "*":
        return False
    inner = item.target.removeprefix("crystalmon.")
    allowed = rooms[own].split()
    return other not in allowed and inner not in allowed


# --- the reader of imports itself ------------------------------------------------------------


def test_the_reader_sees_every_kind_of_import():
    source = """
from __future__ import annotations
import torch.nn as nn, json
from crystalmon.suites.tasks import Task, TaskSuite
from crystalmon import phases, read_run
if TYPE_CHECKING:
    from crystalmon.cli import main
else:
    import safetensors
class A:
    def f(self):
        import transformers
try:
    import wandb
except ImportError:
    pass
"""
    found = imports_of("crystalmon.report.page", source, {"crystalmon.phases"})
    assert [(item.target, item.lazy) for item in found if item.target != "__future__"] == [
        ("torch.nn", False),
        ("json", False),
        ("crystalmon.suites.tasks", False),
        ("crystalmon.phases", False),
        ("crystalmon", False),
        ("safetensors", False),
        ("transformers", True),
        ("wandb", False),
    ]


def test_an_import_against_the_plan_is_found():
    against = Import("crystalmon.phases.order", "crystalmon.monitor.probe", True, 1)
    assert breaks(against, ROOMS)
    assert not breaks(against._replace(target="crystalmon.runs.records"), ROOMS)
    of_report = Import("crystalmon.experiments.drift.x", "crystalmon.report.style", False, 1)
    assert not breaks(of_report, ROOMS)
    assert breaks(of_report._replace(target="crystalmon.report.page"), ROOMS)


def test_the_reader_sees_the_package():
    assert {"crystalmon.monitor.callback", "crystalmon.phases.order"} <= set(MODULES)
    pairs = {(room_of(each.module), room_of(each.target)) for each in INNER}
    assert {("monitor", "scoring"), ("phases", "metrics"), ("cli", "report")} <= pairs


# --- the rules -------------------------------------------------------------------------------


def test_only_rooms_lie_at_the_root():
    files = {file.name for file in PACKAGE.glob("*.py")}
    assert files <= {"__init__.py", "__main__.py", "version.py"}
    folders = {
        file.relative_to(PACKAGE).parts[0] for file in MODULES.values() if file.parent != PACKAGE
    }
    assert folders == set(ROOMS)


def test_imports_keep_to_the_plan():
    assert [str(each) for each in INNER if breaks(each, ROOMS)] == []


def test_no_entry_of_the_plan_outlives_its_import():
    used = {
        (room_of(each.module), name)
        for each in INNER
        for name in (room_of(each.target), each.target.removeprefix("crystalmon."))
    }
    allowed = {(room, name) for room, names in ROOMS.items() for name in names.split()}
    assert {pair for pair in allowed if pair[1] != "*"} <= used


@pytest.mark.parametrize("unit", [room_of, str], ids=["rooms", "files"])
def test_imports_form_no_circle(unit):
    graph: dict[str, set[str]] = {}
    for each in INNER:
        if unit(each.module) != unit(each.target):
            graph.setdefault(unit(each.module), set()).add(unit(each.target))
    graph.pop("", None)
    graph.pop("crystalmon", None)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(graph) <= set(order)
    below, above = unit("crystalmon.runs.records"), unit("crystalmon.monitor.callback")
    assert order.index(below) < order.index(above)


def test_no_two_modules_and_no_two_public_classes_have_one_name():
    stems = Counter(file.stem for file in MODULES.values() if file.stem != "__init__")
    classes = Counter(
        node.name
        for file in MODULES.values()
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in (stems + classes).items() if count > 1] == []


def test_only_the_callback_knows_the_trainer():
    imported = {(each.module, each.target.split(".")[0]) for each in IMPORTS}
    assert not [module for module, library in imported if library in ("trl", "accelerate")]
    users = {module for module, library in imported if library == "transformers"}
    trainers = {"crystalmon.monitor.callback", "crystalmon.monitor.training"}
    loaders = {"crystalmon.scoring.models", "crystalmon.scoring.packaged"}
    assert users <= trainers | loaders | {"crystalmon.scoring.engines"}


# --- on live imports -------------------------------------------------------------------------


def loaded_after(*names: str) -> set[str]:
    """The top-level packages in a fresh interpreter that has imported these modules."""
    code = f"import sys, {', '.join(names)}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_reading_a_run_loads_no_torch():
    loaded = loaded_after(*(name for name in MODULES if room_of(name) in WITHOUT_TORCH))
    assert loaded.isdisjoint(HEAVY)
    assert {"crystalmon", "numpy"} <= loaded


def test_importing_the_package_is_cheap():
    loaded = loaded_after("crystalmon")
    assert loaded.isdisjoint({*HEAVY, "numpy", "yaml", "safetensors"})


def test_the_commands_start_without_torch_and_matplotlib():
    assert loaded_after("crystalmon.cli.main").isdisjoint({*HEAVY, "matplotlib"})


# --- the public names ------------------------------------------------------------------------


def test_the_public_names_lead_to_their_modules():
    names = set(crystalmon.__all__)
    assert {"load_suite", "load_model", "Monitor", "CrystalCallback", "read_run"} <= names
    assert set(dir(crystalmon)) == names
    for name in sorted(names - {"__version__"}):
        assert getattr(crystalmon, name).__module__.startswith("crystalmon."), name
    with pytest.raises(AttributeError, match=r"module 'crystalmon' has no attribute 'nothing'"):
        crystalmon.nothing  # noqa: B018


def test_the_old_name_of_load_model_goes_on_working_with_a_warning():
    with pytest.warns(DeprecationWarning, match="from crystalmon import load_model"):
        from crystalmon.models import load_model
    assert load_model is crystalmon.load_model
    with pytest.warns(DeprecationWarning, match="from crystalmon import load_model"):
        assert crystalmon.models.load_model is load_model
