"""An Axolotl plugin that attaches the callback.

In Axolotl's YAML:

    plugins:
      - crystalmon.integrations.axolotl.CrystalPlugin

The callback's arguments come from `CRYSTALMON_*` variables or the file that `CRYSTALMON_CONFIG`
names. `make test-frameworks` loads it by the plugin manager of Axolotl 0.19. It has not been run in
a training.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]

from crystalmon.integrations.attach import make_callback


class CrystalPlugin(BasePlugin):
    """Gives every trainer that Axolotl builds a callback, behind its reporters."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback, for Axolotl to add to its trainer."""
        return [make_callback()]
