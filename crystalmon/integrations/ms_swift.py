"""An ms-swift plugin that makes the callback known to it as `crystalmon`.

A file `plugin.py` with the line `import crystalmon.integrations.ms_swift`, and then

    swift sft … --external_plugins plugin.py --callbacks crystalmon

The callback's arguments come from `CRYSTALMON_*` variables or the file that `CRYSTALMON_CONFIG`
names. `make test-frameworks` trains with it and ms-swift 4.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swift.callbacks import callbacks_map  # pyright: ignore[reportMissingImports]

from crystalmon.integrations.attach import make_callback

if TYPE_CHECKING:
    from crystalmon.monitor.callback import CrystalCallback


def build(args: Any, trainer: Any) -> CrystalCallback:
    """What ms-swift calls with its arguments and its trainer."""
    return make_callback()


callbacks_map["crystalmon"] = build
