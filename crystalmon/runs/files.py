"""The files of a run: their names, durable writing, and write errors told in one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from crystalmon.runs.json_values import json_value

RUN_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
EVENTS_FILE = "events.jsonl"
LOG_FILE = "trainer_log.jsonl"

RESUME_KEY = "resume"
"""In the line files, the marker of a resume: lines before it with a larger step do not count."""

DOUBT_KEY = "doubtful_after"
"""In records.jsonl, a marker: the records before it with a larger step may be wrong, since a later
proof of how the model was run has failed."""


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def saved_checkpoints(output: Path) -> list[int]:
    """The steps of the checkpoints in a trainer's output folder, ascending."""
    names = (_CHECKPOINT.fullmatch(each.name) for each in output.glob("checkpoint-*"))
    return sorted(int(name[1]) for name in names if name)


class RunFolderError(OSError):
    """A folder cannot be written to; the message names it, the cause and what to do."""


_ADVICE = {
    errno.ENOSPC: "Free some disk space, or choose another output folder",
    errno.EDQUOT: "Free some of your disk quota, or choose another output folder",
    errno.EACCES: "Make it writable, or choose another output folder",
    errno.EPERM: "Make it writable, or choose another output folder",
    errno.EROFS: "Choose an output folder on a writable file system",
    errno.EEXIST: "Move the file that is in the way, or choose another output folder",
    errno.ENOTDIR: "Move the file that is in the way, or choose another output folder",
    errno.EISDIR: "Move the folder that is in the way, or choose another output folder",
}


@contextlib.contextmanager
def explained(folder: Path, purpose: str) -> Iterator[None]:
    """Turn what a full disk raises into a `RunFolderError`: which folder, why, what to do."""
    try:
        yield
    except RunFolderError:  # it is told already
        raise
    except (OSError, SafetensorError) as error:
        number, name = _cause(error)
        reason = os.strerror(number) if number else str(error)
        advice = _ADVICE.get(number, "Choose another output folder")
        place = f" ({name})" if name else ""
        raise RunFolderError(
            f"the folder {folder} cannot {purpose}: {reason}{place}. {advice}."
        ) from error


def _cause(error: OSError | SafetensorError) -> tuple[int, Any]:
    """The system's number of an error, 0 for none, and the file; safetensors tells it in words."""
    if isinstance(error, OSError):
        return error.errno or 0, error.filename
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(found[1]) if found else 0, None


def json_bytes(data: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Strict JSON with a line end; on one line without `indent`."""
    text = json.dumps(json_value(data), allow_nan=False, ensure_ascii=False, indent=indent)
    return text.encode() + b"\n"


def write_whole(file: Path, content: bytes, *, keep: bool = True) -> None:
    """Write a file whole or not at all: under another name, synced, then moved (or removed)."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb", buffering=0) as handle:
            _write_all(handle.fileno(), content)
        if keep:
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def append_lines(file: Path, block: bytes, *, sync: bool = True) -> None:
    """Append whole lines, synced to disk; if that fails, take back what has been written."""
    with file.open("a+b", buffering=0) as handle:
        size = handle.seek(0, os.SEEK_END)
        if size > 0:
            handle.seek(size - 1)
            block = block if handle.read(1) == b"\n" else b"\n" + block
        try:
            _write_all(handle.fileno(), block, sync)
        except OSError:
            with contextlib.suppress(OSError):
                handle.truncate(size)
            raise


def _write_all(descriptor: int, block: bytes, sync: bool = True) -> None:
    """Write every byte: unbuffered, a nearly full disk takes only a part at a time."""
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]
    if sync:
        os.fsync(descriptor)
