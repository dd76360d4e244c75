"""Who writes to a folder: two commands, or two trainings, would undo each other's work.

Locks are the operating system's. They end with the process that holds them, however it ends.
Windows and some file systems have none: nothing is held there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from crystalmon.runs.files import explained

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"

_HELD: weakref.WeakValueDictionary[Path, RunLock] = weakref.WeakValueDictionary()
"""This process' locks, by run folder."""


class RunLock:
    """Keeps other processes from writing to a run folder, which is created if it is not there.

    A later training of this process takes the folder over: the earlier one may have been
    interrupted without a word.

    Args:
        folder: the run folder.

    Raises:
        ValueError: if another process writes to the folder.
        RunFolderError: if the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        with explained(folder, "be written to"):
            folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        earlier = _HELD.get(place)
        if earlier is not None and earlier.held:
            logger.warning(
                f"crystalmon: another training in this process takes over {folder}; the earlier "
                "one, which has not ended, is recorded no further."
            )
            earlier.release()
        self._file = folder / LOCK_FILE
        descriptor = _locked(self._file)
        if descriptor is None:
            owner = self._file.read_text(encoding="utf-8", errors="replace").strip()
            raise ValueError(
                f"another training writes to {folder} ({owner or 'its process is unknown'}). Wait "
                "until it has ended, or choose another output_dir."
            )
        self._descriptor = descriptor
        self._end = weakref.finalize(self, os.close, descriptor)
        os.truncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        os.write(descriptor, owner.encode())
        _HELD[place] = self

    @property
    def held(self) -> bool:
        """Whether it still is; not once it is released or taken over."""
        return self._end.alive

    def release(self) -> None:
        """Let others write."""
        if self.held:
            # the file's name is freed first: children that were forked hold on to the file
            with contextlib.suppress(OSError):
                if os.fstat(self._descriptor).st_nlink:  # else it is not ours any more
                    self._file.unlink()
            self._end()


def _let_go() -> None:
    """In a child that was forked: it must not keep what its parent, once killed, has freed."""
    for lock in list(_HELD.values()):
        lock._end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def no_other(file: Path, what: str) -> Iterator[None]:
    """Within, no other command does the same.

    Args:
        file: the lock's own, in a folder that exists; removed afterwards.
        what: what is done, such as `a scan`.

    Raises:
        ValueError: if another process holds it.
        RunFolderError: if the folder cannot be written to.
    """
    descriptor = _locked(file)
    if descriptor is None:
        raise ValueError(
            f"another command is busy with {what} in {file.parent}. Wait for it, or choose "
            "another folder."
        )
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(file: Path) -> int | None:
    """The lock's file, open and locked; closing it frees the lock. None if it is held already."""
    while True:
        with explained(file.parent, "be written to"):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except (ImportError, OSError):
            return descriptor
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # the last holder has just removed it: others would lock a new file
