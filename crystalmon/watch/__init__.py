"""A running training, live: in the browser on this machine, or in a terminal. Needs no torch."""

from __future__ import annotations

from crystalmon.watch.feed import RunFeed
from crystalmon.watch.server import make_server, serve
from crystalmon.watch.terminal import watch_terminal

__all__ = ["RunFeed", "make_server", "serve", "watch_terminal"]
