"""An experiment that is killed between two of its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from crystalmon.experiments.common.parts import Parts


@contextlib.contextmanager
def killed_before_part(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The body must end by an interrupt, just before its part number `at` is kept."""
    put, left = Parts.put, [at]

    def killed(self: Parts, key: str, value: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        put(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            yield
