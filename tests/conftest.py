"""What tests share: small models and suites, made offline."""

from __future__ import annotations

import copy
import os

# before anything imports a hub client, a tracker or torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from crystalmon.models import load_model
from crystalmon.tasks import TaskSuite, load_suite


@pytest.fixture(scope="session")
def _tiny():
    return load_model("liquid-tiny")


@pytest.fixture
def tokenizer(_tiny):
    """The tokenizer of `liquid-tiny`."""
    return _tiny[1]


@pytest.fixture
def model(_tiny):
    """A fresh `liquid-tiny` in training mode, free to be changed."""
    fresh = type(_tiny[0])(copy.deepcopy(_tiny[0].config))
    fresh.load_state_dict(_tiny[0].state_dict())
    fresh.name_or_path = ""
    return fresh.train()


@pytest.fixture(scope="session")
def suite():
    """Three tasks of the model's own suite, one of them with multi-token choices."""
    whole = load_suite("liquid-tiny")
    return TaskSuite("three", tuple(whole[name] for name in ("coin", "number", "color")))
