"""What `run.json` says of a monitored run: what is measured, with what."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import crystalmon
from crystalmon.lineage import INHERITED_KEY, to_info
from crystalmon.monitor import Monitor
from crystalmon.reference import model_name

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")


def run_info(
    monitor: Monitor, config: Mapping[str, Any], trainer: str, max_steps: int
) -> dict[str, Any]:
    """The content of `run.json`, but for its schema version.

    Args:
        monitor: of the run, with its reference.
        config: what the user asked the callback for, JSON-ready.
        trainer: what trains the model, by name.
        max_steps: the step at which training ends.
    """
    suite, reference = monitor.suite, monitor.reference.info
    return {
        "versions": library_versions(),
        "config": dict(config),
        "method": monitor.route.method,
        "precision": monitor.route.precision,
        "pack": monitor.route.pack if monitor.route.method == "tree" else None,
        "processes": monitor.ranks.size,
        "suite": suite.name,
        "suite_hash": suite.hash,
        "suite_texts": {
            task.name: {"prompts": list(task.prompts), "choices": list(task.choice_texts)}
            for task in suite
        },
        "reference": reference.id,
        "reference_model": reference.model,
        "model": model_name(monitor.model),
        INHERITED_KEY: to_info(monitor.inherited),
        "trainer": trainer,
        "max_steps": max_steps,
    }


def library_versions() -> dict[str, str]:
    """The versions of crystalmon and of those libraries it works with that are installed."""
    found = {"crystalmon": crystalmon.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
