"""One command at a time in a folder: two that write the same would undo each other's work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from crystalmon.store import explained


@contextlib.contextmanager
def no_other(file: Path, what: str) -> Iterator[None]:
    """Within, this process alone does this; the lock ends with the process, however it ends.

    Where a file system or Windows has no such locks, nothing is held.

    Args:
        file: the lock's own, in a folder that exists; removed afterwards.
        what: is done, as the subject of a sentence.

    Raises:
        ValueError: if another process is at it.
        RunFolderError: if the folder cannot be written to.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has other locks
        yield
        return
    with explained(file.parent, "take results"):
        handle = file.open("ab")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{what} must be done by one command at a time in {file.parent}, and another is "
                "at it. Wait for it, or choose another folder."
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
