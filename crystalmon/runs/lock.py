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
    """Hold a lock; it ends with the process, however that ends.

    Windows and some file systems have no such locks: nothing is held there.

    Args:
        file: the lock's own, in a folder that exists; removed afterwards.
        what: what is done, such as `a scan`.

    Raises:
        ValueError: if another process holds it.
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
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise ValueError(
                f"another command is busy with {what} in {file.parent}. Wait for it, or choose "
                "another folder."
            ) from error
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # the last holder has just removed it: others would lock a new file
