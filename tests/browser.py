"""A headless Chromium for tests of pages; where there is none, they are skipped."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)
READY = "html[data-ready]"


def find_chromium() -> str | None:
    """`CHROMIUM` from the environment, else the first on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; skips the test where playwright or Chromium is missing."""
    pytest.importorskip("playwright")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on the path: install it, or name it in CHROMIUM")
    api: Any = importlib.import_module("playwright.sync_api")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page, and all that it said and asked for.

    Args:
        browser: from `chromium`.
        size: of the window.
        dark: whether the reader prefers dark colours.
    """

    def __init__(
        self, browser: Any, size: tuple[int, int] = DESKTOP, *, dark: bool = False
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            has_touch=size == PHONE,
        )
        self.page = self._context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str) -> Any:
        """Go there and wait until everything is drawn."""
        self.page.goto(address)
        self.page.wait_for_selector(READY, timeout=30_000, state="attached")
        return self.page

    def wait(self, condition: str, seconds: float = 9.0) -> float:
        """Wait until a JavaScript expression holds; how long that took.

        Playwright's own waiting compiles text in the page, which the page's policy forbids.
        """
        began = time.monotonic()
        while not self.page.evaluate(condition):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not within {seconds} s: {condition}")
            time.sleep(0.02)
        return time.monotonic() - began

    def close(self) -> None:
        """Forget the page."""
        self._context.close()
