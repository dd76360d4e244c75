"""A W&B workspace with the right panels, through the optional package wandb-workspaces."""

from __future__ import annotations

import os
from typing import Any

from crystalmon.runs.names import DEFAULT_NAME, STEP_KEY
from crystalmon.trackers.base import Logged
from crystalmon.trackers.panels import ANSWERS, DISTRIBUTIONS, TASKS, dashboard


def build_workspace(entity: str, project: str, logged: Logged = "suite") -> Any:
    """Build the workspace of a user's or team's project; its `.save()` sends it to W&B.

    Args:
        entity, project: as in W&B's addresses.
        logged: what its runs log; see `callback.CrystalCallback`.

    Raises:
        ModuleNotFoundError: if wandb-workspaces is not installed.
    """
    # by default the package reports each use to W&B, and without a network it waits for that
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a workspace needs the package wandb-workspaces. Run `pip install wandb-workspaces`."
        ) from error

    def plot(section: str, title: str, curves: list[str]) -> Any:
        shown: Any = {"metric_regex": f"^{curves[0]}$"} if section == TASKS else {"y": curves}
        return panels.LinePlot(title=title, x=STEP_KEY, **shown)

    def section(name: str, shown: list[Any]) -> Any:
        return workspaces.Section(name=name, panels=shown, is_open=True)

    sections = [
        section(name, [plot(name, *panel) for panel in group.items()])
        for name, group in dashboard(logged=logged).items()
    ]
    media = {"Answers: wordings × choices": ANSWERS, "Distributions": DISTRIBUTIONS}
    browsers = [
        panels.MediaBrowser(title=title, media_keys=[DEFAULT_NAME + key])
        for title, key in media.items()
    ]
    sections.insert(1, section(f"{DEFAULT_NAME}_media", browsers))
    settings = workspaces.WorkspaceSettings(x_axis=STEP_KEY)
    return workspaces.Workspace(
        entity=entity, project=project, name=DEFAULT_NAME, sections=sections, settings=settings
    )


def describe_workspace(workspace: Any) -> list[str]:
    """A line per section and panel, after a check against the package's own schema.

    Raises:
        ValueError: if the schema refuses the workspace.
    """
    model = workspace._to_model()
    type(model).model_validate(model.model_dump(by_alias=True))
    lines: list[str] = []
    for section in workspace.sections:
        lines.append(section.name)
        lines += [f"  {panel.title}" for panel in section.panels]
    return lines
