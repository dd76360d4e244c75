"""Bases that were scored before, in the user's cache folder: the next run need not score them.

`$CRYSTALMON_CACHE`, by default `~/.cache/crystalmon/bases`, holds a folder for each base:

    <key>/<precision>/       a reference, made with layers in this precision
    <key>/route-<hash>.json  how the model was run, given what that depends on, and the seconds

A reference is made beside its place and then moved there, so that it is whole whenever it is there,
whoever else writes. Trouble with the cache is one warning; what is asked for is then not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalmon.runs.files import json_bytes, write_whole
from crystalmon.runs.reference import (
    INFO_FILE,
    REFERENCE_SCHEMA,
    Reference,
    ReferenceInfo,
    load_reference,
)

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30
"""What the cache may hold; beyond it, the base whose last use is longest ago goes first."""

_PARTIAL = ".partial-"
_OURS = re.compile(r"[0-9a-f]{32}|\.partial-[0-9a-f]{32}")
_WARNED = set[tuple[str, str]]()


def cache_folder() -> Path:
    """Where bases are kept.

    Raises:
        RuntimeError: if no variable names a place and the user has no home.
    """
    if named := os.environ.get("CRYSTALMON_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crystalmon" / "bases"


@dataclass(frozen=True)
class BaseKey:
    """What decides a base's answers, but for the precision.

    Args:
        fingerprint: of the model.
        suite_hash, view, plan: see `reference.ReferenceInfo`.
    """

    fingerprint: str
    suite_hash: str
    view: str
    plan: str

    @property
    def folder(self) -> Path:
        """Where this base is kept, whether it is there or not."""
        parts = (self.fingerprint, self.suite_hash, self.view, self.plan, str(REFERENCE_SCHEMA))
        return cache_folder() / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CachedBase:
    """A base in the cache.

    Args:
        folder: its own.
        info: of one of its references.
        size: in bytes; run folders may hold the same file.
        used: when it last was, in seconds since the epoch.
    """

    folder: Path
    info: ReferenceInfo
    size: int
    used: float


def cached_route(key: BaseKey, depends: Mapping[str, Any]) -> dict[str, Any]:
    """What `keep_route` was told when all that a route depends on was the same; else nothing."""
    with _forgiving("read"):
        file = _route_file(key, depends)
        return dict(json.loads(file.read_bytes())) if file.is_file() else {}
    return {}


def keep_route(key: BaseKey, depends: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Remember how this base's model was run."""
    with _forgiving("written to"):
        key.folder.mkdir(parents=True, exist_ok=True)
        write_whole(_route_file(key, depends), json_bytes({**found, "depends": depends}))


def cached_base(
    key: BaseKey, precision: str, check: Callable[[Reference], Any]
) -> Reference | None:
    """A base's answers, with their rows on disk; None if they are not there.

    Args:
        key, precision: of the base.
        check: raises a ValueError for a reference that is damaged.
    """
    with _forgiving("read"):
        place = key.folder / precision
        if not (place / INFO_FILE).is_file():
            return None
        found = load_reference(place)
        if found.info.fingerprint != key.fingerprint:
            raise ValueError(f"{place} holds another base")
        check(found)
        with contextlib.suppress(OSError):  # a cache may be for reading only
            os.utime(place / INFO_FILE)
        return found
    return None


def keep_base(key: BaseKey, precision: str, reference: Reference) -> Reference:
    """Keep a base's answers in the place of those that may be there, and make room for them.

    Returns:
        The same reference; from disk, where it takes no memory, if it could be kept.
    """
    with _forgiving("written to"):
        place, partial = key.folder / precision, _partial()
        try:
            partial.mkdir(parents=True)
            reference.save(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove(place)
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(place)
            found = load_reference(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _make_room(key.folder)
        return found if found.info == reference.info else reference
    return reference


def cached_bases() -> list[CachedBase]:
    """The bases in the cache, the latest used first; damaged ones are left out."""
    found = []
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            for file in sorted(folder.glob(f"*/{INFO_FILE}"))[:1]:
                info = ReferenceInfo(**json.loads(file.read_bytes()))
                found.append(CachedBase(folder, info, _size(folder), _used(folder)))
    return sorted(found, key=lambda base: base.used, reverse=True)


def clear_cache() -> int:
    """Remove all bases from the cache.

    Returns:
        The bytes that the disk has got back: those of files that no run folder holds as well.

    Raises:
        OSError: if a file cannot be removed.
    """
    freed = 0
    for folder in _folders():
        freed += sum(each.st_size for each in _stats(folder) if each.st_nlink == 1)
        shutil.rmtree(folder)
    return freed


def _route_file(key: BaseKey, depends: Mapping[str, Any]) -> Path:
    text = json.dumps(depends, sort_keys=True)
    return key.folder / f"route-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _folders() -> list[Path]:
    """Those of bases, and those that a process was killed while writing."""
    place = cache_folder()
    inner = sorted(place.iterdir()) if place.is_dir() else []
    return [each for each in inner if each.is_dir() and _OURS.fullmatch(each.name)]


def _partial() -> Path:
    return cache_folder() / f"{_PARTIAL}{uuid.uuid4().hex}"


def _remove(folder: Path) -> None:
    """Remove a folder, all of it at once for whoever looks for it."""
    aside = _partial()
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _make_room(kept: Path) -> None:
    sizes = {folder: _size(folder) for folder in _folders()}
    for folder in sorted(sizes, key=_used):
        if sum(sizes.values()) > MAX_BYTES and folder != kept:
            _remove(folder)
            del sizes[folder]


def _stats(folder: Path) -> list[os.stat_result]:
    found = []
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            found.append(file.stat())
    return [each for each in found if stat.S_ISREG(each.st_mode)]


def _size(folder: Path) -> int:
    return sum(each.st_size for each in _stats(folder))


def _used(folder: Path) -> float:
    return max((each.st_mtime for each in _stats(folder)), default=0.0)


@contextlib.contextmanager
def _forgiving(done: str) -> Iterator[None]:
    """Within, what goes wrong with the cache is a warning, once for each cache."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        kind = done, os.environ.get("CRYSTALMON_CACHE", "")
        if kind not in _WARNED:
            _WARNED.add(kind)
            then = "the base is scored anew" if done == "read" else "the next run scores it again"
            logger.warning(f"crystalmon: the cache of bases cannot be {done}, so {then}: {error}")
