"""The W&B workspace, against its package's own schema."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from crystalmon.cli.main import main
from crystalmon.runs.names import STEP_KEY
from crystalmon.trackers.panels import dashboard
from crystalmon.trackers.wandb_workspace import build_workspace, describe_workspace

# its models use what its version of pydantic has deprecated
pytestmark = pytest.mark.filterwarnings("ignore")


def panels_of(workspace: Any) -> list[Any]:
    return [panel for section in workspace.sections for panel in section.panels]


def test_the_workspace_has_the_panels_and_passes_its_schema() -> None:
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace("team", "runs", "tasks")
    titles = [panel.title for panel in panels_of(workspace)]
    assert {title for group in dashboard(logged="tasks").values() for title in group} <= set(titles)
    described = describe_workspace(workspace)
    assert len(described) == len(titles) + len(workspace.sections)
    text = workspace._to_model().model_dump_json(by_alias=True)
    for part in (STEP_KEY, "crystalmon/order", "crystalmon_media/answers", "crystalmon_tasks/.*/"):
        assert part in text


def test_the_command_checks_without_saving(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    assert main(["workspace", "team/runs", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Distance from the base" in said
    assert said.endswith("\nchecked, nothing saved\n")
    assert main(["workspace", "runs", "--dry-run"]) == 2
    assert "project must be <entity>/<project>, got 'runs'" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install wandb-workspaces"):
        build_workspace("team", "runs")
