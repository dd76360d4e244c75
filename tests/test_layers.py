"""The import rules, read from the syntax trees of all modules and checked on live imports.

One unit is a module `crystalmon/x.py` or a subpackage `crystalmon/x/`. A unit may import units of
lower layers, at the top of a file or within a function, and of its own layer only what is listed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import crystalmon

PACKAGE = Path(crystalmon.__file__).parent

LAYERS = (
    ("sketch", "names", "pace", "budget", "families", "stages", "unique"),
    ("records", "panels", "trie", "descent", "odds"),
    ("tasks", "metrics", "thermodynamics", "tokentree", "models", "planted", "ranks", "schedule"),
    (
        "seeds",
        "scenarios",
        "fits",
        "isolation",
        "sequences",
        "console",
        "actions",
        "chat_templates",
    ),
    ("phases", "kinetics", "forward", "base_answers", "scalars", "claims"),
    ("scoring", "cost"),
    ("reference", "store", "scalar_trackers"),
    ("stage_measures", "verdicts", "locks"),
    ("transfer",),
    ("report", "lineage"),
    ("trackers", "workspace"),
    ("monitor",),
    ("run_info", "experiments"),
    ("callback", "scan", "watch", "detect", "send"),
    ("cli_options",),
    ("cli_scan", "cli_experiments"),
    ("cli",),
)
SIDEWAYS = {
    ("tokentree", "tasks"),
    ("planted", "tasks"),
    ("planted", "metrics"),
    ("stage_measures", "verdicts"),
}
"""Imports within a layer: (importer, imported)."""

WITHOUT_TORCH = (
    "records",
    "tasks",
    "metrics",
    "tokentree",
    "planted",
    "descent",
    "odds",
    "seeds",
    "scenarios",
    "phases",
    "fits",
    "kinetics",
    "store",
    "base_answers",
    "report",
    "stage_measures",
    "transfer",
    "verdicts",
    "watch",
)
HEAVY = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "safetensors")
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}


class Import(NamedTuple):
    """One import, wherever it stands in a file."""

    unit: str
    target: str
    names: tuple[str, ...]
    lazy: bool
    line: int


def package_units() -> dict[str, list[Path]]:
    """Source files by unit; `__init__` and `__main__` are the package itself."""
    units: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "assets":
            units.setdefault(parts[0], []).append(file)
    return units


def imports_of(unit: str, source: str, package: str) -> list[Import]:
    """All imports that run; those under `if TYPE_CHECKING:` do not."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, lazy)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(unit, alias.name, (), lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            target = node.module or ""
            if node.level:
                base = package.split(".")
                target = ".".join([*base[: len(base) - node.level + 1], *filter(None, [target])])
            names = tuple(alias.name for alias in node.names)
            found.append(Import(unit, target, names, lazy, node.lineno))
        elif isinstance(node, ast.Call):
            found.extend(dynamic_import(unit, node))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def dynamic_import(unit: str, call: ast.Call) -> list[Import]:
    """`importlib.import_module("name")` and `__import__("name")` with a literal name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("import_module", "__import__") or not call.args:
        return []
    argument = call.args[0]
    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
        return []
    return [Import(unit, argument.value, (), True, call.lineno)]


def all_imports() -> list[Import]:
    found = []
    for unit, files in package_units().items():
        for file in files:
            package = ".".join(["crystalmon", *file.relative_to(PACKAGE).parts[:-1]])
            found += imports_of(unit, file.read_text(encoding="utf-8"), package)
    return found


def imported_units(item: Import) -> set[str]:
    """The crystalmon units that one import statement loads."""
    parts = item.target.split(".")
    if parts[0] != "crystalmon":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    return {name for name in item.names if name in LEVEL} or {"crystalmon"}


def edges() -> list[tuple[str, str, int]]:
    """(importer, imported, line) between different units, the bare package left out."""
    return [
        (item.unit, target, item.line)
        for item in all_imports()
        for target in imported_units(item)
        if target not in (item.unit, "crystalmon")
    ]


UNITS = package_units()
IMPORTS = all_imports()
EDGES = edges()


def roots(item: Import) -> str:
    return item.target.split(".")[0]


# --- the reader of imports itself ------------------------------------------------------------


def test_the_reader_sees_every_kind_of_import():
    source = """
from __future__ import annotations
import torch.nn as nn, json
from crystalmon.tasks import Task
from crystalmon import phases, __version__
from . import store
from ..records import Event
if TYPE_CHECKING:
    from crystalmon.cli import main
else:
    import safetensors
class A:
    import numpy
    def f(self):
        import transformers
        return importlib.import_module("trl")
try:
    import wandb
except ImportError:
    pass
"""
    found = imports_of("x", source, "crystalmon.report")
    assert [(item.target, item.lazy) for item in found if item.target != "__future__"] == [
        ("torch.nn", False),
        ("json", False),
        ("crystalmon.tasks", False),
        ("crystalmon", False),
        ("crystalmon.report", False),
        ("crystalmon.records", False),
        ("safetensors", False),
        ("numpy", False),
        ("transformers", True),
        ("trl", True),
        ("wandb", False),
    ]
    units = set().union(*(imported_units(item) for item in found))
    assert units == {"tasks", "phases", "report", "records"}


def test_the_reader_sees_the_package():
    assert {"records", "tasks", "metrics", "phases", "monitor", "callback"} <= set(UNITS)
    assert ("phases", "metrics") in {edge[:2] for edge in EDGES}
    assert ("monitor", "scoring") in {edge[:2] for edge in EDGES}
    assert any(item.target == "torch" and item.unit == "scoring" for item in IMPORTS)


# --- the rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", sorted(set(UNITS) - {"__init__", "__main__"}))
def test_every_module_has_a_layer(unit):
    assert unit in LEVEL, (
        f"crystalmon/{unit} has no layer: add it to LAYERS in {Path(__file__).name}, "
        "above all that it imports and below all that imports it"
    )


def test_a_unit_stands_in_one_layer():
    everything = [unit for units in LAYERS for unit in units]
    assert len(everything) == len(set(everything))
    assert {unit for pair in SIDEWAYS for unit in pair} <= set(everything)
    assert all(LEVEL[a] == LEVEL[b] for a, b in SIDEWAYS)
    assert {edge[:2] for edge in EDGES} >= SIDEWAYS  # no entry outlives its import


def test_imports_point_downwards():
    wrong = [
        f"crystalmon/{importer} imports {imported} (line {line})"
        for importer, imported, line in EDGES
        if importer in LEVEL
        and LEVEL.get(imported, len(LAYERS)) >= LEVEL[importer]
        and (importer, imported) not in SIDEWAYS
    ]
    assert wrong == []


def test_imports_form_no_cycle():
    graph: dict[str, set[str]] = {}
    for importer, imported, _ in EDGES:
        graph.setdefault(importer, set()).add(imported)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("records") < order.index("monitor") < order.index("callback")


def test_importing_the_package_loads_none_of_its_modules():
    """PEP 562: the public names are imported on first use."""
    early = [item for item in IMPORTS if item.unit == "__init__" and not item.lazy]
    assert set().union(*(imported_units(item) for item in early)) <= {"crystalmon"}


@pytest.mark.parametrize("unit", [unit for unit in WITHOUT_TORCH if unit in UNITS])
def test_what_reads_and_decides_needs_no_torch(unit):
    below, todo = set(), {unit}
    while todo:
        below |= todo
        todo = {imported for importer, imported, _ in EDGES if importer in todo} - below
    heavy = [
        f"crystalmon/{item.unit} imports {item.target} (line {item.line})"
        for item in IMPORTS
        if item.unit in below and roots(item) in HEAVY
    ]
    assert heavy == []


def test_only_the_callback_knows_the_trainer():
    trainers = [
        f"crystalmon/{item.unit} imports {item.target} (line {item.line})"
        for item in IMPORTS
        if item.unit != "callback"
        and (
            roots(item) in ("trl", "accelerate")
            or (
                roots(item) == "transformers"
                and ("train" in item.target or any("Train" in name for name in item.names))
            )
        )
    ]
    assert trainers == []


def test_only_models_loads_models_and_only_when_asked():
    users = {(item.unit, item.lazy) for item in IMPORTS if roots(item) == "transformers"}
    assert users <= {("callback", False), ("callback", True), ("models", True)}


# --- on live imports -------------------------------------------------------------------------


def loaded_after(*modules: str) -> set[str]:
    """The top-level packages in a fresh interpreter that has imported these modules."""
    code = f"import sys, {', '.join(modules)}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def module_names(unit: str) -> list[str]:
    """The importable modules of a unit."""
    names = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in UNITS[unit]]
    return [".".join(part for part in parts if part != "__init__") for parts in names]


def test_reading_a_run_loads_no_torch():
    units = [unit for unit in WITHOUT_TORCH if unit in UNITS]
    loaded = loaded_after("crystalmon", *(name for unit in units for name in module_names(unit)))
    assert loaded.isdisjoint(HEAVY)
    assert {"crystalmon", "numpy"} <= loaded


def test_importing_the_package_is_cheap():
    loaded = loaded_after("crystalmon")
    assert loaded.isdisjoint({*HEAVY, "numpy", "yaml"})


@pytest.mark.skipif("cli" not in UNITS, reason="there is no cli")
def test_the_commands_start_without_torch():
    assert loaded_after("crystalmon.cli").isdisjoint(HEAVY)


def test_the_public_names_lead_to_their_modules():
    names = set(crystalmon.__all__)
    assert {"load_suite", "Monitor", "CrystalCallback", "read_run"} <= names
    assert set(dir(crystalmon)) == names
    for name in sorted(names - {"CrystalCallback", "Monitor", "__version__"}):
        value = getattr(crystalmon, name)
        assert value.__module__.startswith("crystalmon."), name
    with pytest.raises(AttributeError, match=r"module 'crystalmon' has no attribute 'nothing'"):
        crystalmon.nothing  # noqa: B018
