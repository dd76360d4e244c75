"""One command at a time in a folder: two that write the same would undo each other's work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from crystalmon.runs.files import explained


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
    with _locked(file, what):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _locked(file: Path, what: str) -> BinaryIO:
    """The lock's file, open and locked; closing it frees the lock."""
    while True:
        with explained(file.parent, "take results"):
            handle = file.open("ab")
        try:
            _lock(handle)
        except BlockingIOError as error:
            handle.close()
            raise ValueError(
                f"{what} must be done by one command at a time in {file.parent}, and another is "
                "at it. Wait for it, or choose another folder."
            ) from error
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # whoever held it has removed it since: others would lock another file


def _lock(handle: BinaryIO) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has other locks
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return
