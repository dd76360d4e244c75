"""A W&B workspace with the right panels, through the optional package wandb-workspaces."""

from __future__ import annotations

import os
from typing import Any

from crystalmon.runs.names import DEFAULT_NAME, STEP_KEY
from crystalmon.trackers.panels import ANSWERS_KEY, DISTRIBUTIONS_KEY, MEDIA_PREFIX, SECTIONS, Panel


def build_workspace(entity: str, project: str) -> Any:
    """The workspace, not saved yet; building it needs no network.

    Args:
        entity: the W&B user or team.
        project: the W&B project that the runs were logged to.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; `.save()` sends it to W&B.

    Raises:
        ModuleNotFoundError: if wandb-workspaces is not installed.
    """
    # the package tells W&B of each use by default, and waits for it where there is no network
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a workspace needs the package wandb-workspaces. Run `pip install wandb-workspaces`."
        ) from error

    def line_plot(panel: Panel) -> Any:
        if panel.task_key is None:
            return panels.LinePlot(title=panel.title, x=STEP_KEY, y=[*panel.curves()])
        return panels.LinePlot(title=panel.title, x=STEP_KEY, metric_regex=panel.curves()[0])

    sections = [
        workspaces.Section(name=name, panels=[line_plot(panel) for panel in group], is_open=True)
        for name, group in SECTIONS.items()
    ]
    media: list[Any] = [
        panels.MediaBrowser(title="Answers: wordings × choices", media_keys=[ANSWERS_KEY]),
        panels.MediaBrowser(title="Distributions", media_keys=[DISTRIBUTIONS_KEY]),
    ]
    sections.insert(1, workspaces.Section(name=MEDIA_PREFIX, panels=media, is_open=True))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=DEFAULT_NAME,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP_KEY),
    )


def describe_workspace(workspace: Any) -> list[str]:
    """A line per section and panel, after a check against the package's own schema.

    Raises:
        ValueError: if the schema refuses the workspace.
    """
    view = workspace._to_model()
    type(view).model_validate(view.model_dump(by_alias=True))
    lines: list[str] = []
    for section in workspace.sections:
        lines.append(section.name)
        lines += [f"  {panel.title}" for panel in section.panels]
    return lines
