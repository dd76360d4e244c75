"""What `run.json` says of a monitored run: what is measured, with what."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import crystalmon
from crystalmon.monitor.probe import Monitor
from crystalmon.phases.stored import INHERITED_KEY, to_info
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import model_name, quantization
from crystalmon.suites.tasks import Choice

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")

_SETTINGS = (
    "beta",
    "kl_coef",
    "loss_type",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "num_generations",
    "num_iterations",
    "epsilon",
    "temperature",
    "seed",
    "data_seed",
)
"""The trainer's arguments that runs are compared by, under their names in transformers and TRL."""


def run_info(
    monitor: Monitor, settings: Mapping[str, Any], trainer: str, max_steps: int, args: Any = None
) -> dict[str, Any]:
    """The content of `run.json`, but for its schema version.

    Args:
        monitor: of the run, with its reference.
        settings: what the user asked for, ready for JSON; see `settings.Settings.to_info`.
        trainer: what trains the model, by name; see `trainer_name`.
        max_steps: the step at which training ends.
        args: the trainer's arguments, if there is a trainer.
    """
    suite, reference = monitor.suite, monitor.reference.info
    return {
        "versions": library_versions(),
        "config": dict(settings),
        **route_info(monitor.route),
        "processes": monitor.ranks.size,
        "suite": suite.name,
        "suite_hash": suite.hash,
        "suite_texts": {
            task.name: {"prompts": list(task.prompts), "choices": list(task.choice_texts)}
            for task in suite
        },
        "suite_forms": {  # what a choice's text does not tell
            task.name: [list(choice.forms) for choice in task.choices]
            for task in suite
            if any(choice != Choice(choice.text) for choice in task.choices)
        },
        "reference": reference.id,
        "reference_model": reference.model,
        "model": model_name(monitor.model),
        "quantization": quantization(monitor.model),
        INHERITED_KEY: to_info(monitor.course.inherited),
        "trainer": trainer,
        "max_steps": max_steps,
        # only what this trainer has: SFT has no `beta`
        "training": {k: _plain(getattr(args, k)) for k in _SETTINGS if hasattr(args, k)},
    }


def route_info(route: Route) -> dict[str, Any]:
    """How a model is run, for `run.json`."""
    pack = route.pack if route.method == "tree" else None
    found: dict[str, Any] = {"method": route.method, "precision": route.precision, "pack": pack}
    if route.trial is not None:  # the error and the times that the precision was chosen by
        found["precision_trial"] = dict(route.trial)
    return found


def trainer_name(args: Any) -> str:
    """As its arguments' class tells: `SFTConfig` → `SFT`, `TrainingArguments` → `Trainer`."""
    return type(args).__name__.replace("TrainingArguments", "Trainer").removesuffix("Config")


def _plain(value: Any) -> Any:
    """An enumeration's value, also within a list; numbers, texts and null as they are."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = getattr(value, "value", value)
    return value if isinstance(value, int | float | str | type(None)) else str(value)


def library_versions() -> dict[str, str]:
    """The versions of crystalmon and of those libraries it works with that are installed."""
    found = {"crystalmon": crystalmon.__version__}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
