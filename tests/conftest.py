"""What tests share: small models and suites, made offline."""

from __future__ import annotations

import copy
import os
import sys

# before anything imports a hub client, a tracker or torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from crystalmon.suites.tasks import TaskSuite, load_suite


class WithoutTorch:
    """An import finder: what imports torch, a test or a whole file of them, is skipped."""

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            pytest.skip("needs torch", allow_module_level=True)


def pytest_addoption(parser):
    words = "skip what imports torch: no model is loaded, and the rest takes seconds"
    parser.addoption("--without-torch", action="store_true", help=words)


def pytest_configure(config):
    if config.getoption("--without-torch"):
        sys.meta_path.insert(0, WithoutTorch())


@pytest.fixture(autouse=True)
def _no_limit(request, monkeypatch):
    """Callbacks without a limit, so that which steps are probed does not depend on the clock.

    A test of the default carries the marker `limited`.
    """
    if "limited" not in request.keywords and "torch" in sys.modules:
        from crystalmon import CrystalCallback

        defaults = {**(CrystalCallback.__init__.__kwdefaults__ or {}), "max_overhead": None}
        monkeypatch.setattr(CrystalCallback.__init__, "__kwdefaults__", defaults)


@pytest.fixture(scope="session", autouse=True)
def _not_the_users_cache(tmp_path_factory):
    """For what is trained once for several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTALMON_CACHE", str(tmp_path_factory.mktemp("bases")))
        yield


@pytest.fixture(autouse=True)
def base_cache(tmp_path_factory, monkeypatch):
    """An empty cache of bases for each test."""
    folder = tmp_path_factory.mktemp("bases")
    monkeypatch.setenv("CRYSTALMON_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def _tiny():
    from crystalmon.scoring.models import load_model

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


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The library, offline, with all that it writes in `tmp_path`."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    module = pytest.importorskip("wandb")
    yield module
    module.teardown()
