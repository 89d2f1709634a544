"""The bound on the cache: when it holds more than it may, what was not used for longest goes.

Takes the cache's folder; TENFUSE_CACHE_SIZE, or a gibibyte.  Leaves what fits.  An entry goes as it came,
by one rename, so that another process finds all of it or nothing, and a process that is killed leaves a
temporary folder, which ``sweep`` removes later, from this process or another.  Nothing is touched that the
cache did not name: its folder may be anybody's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tenfuse.config import OptionError

log = logging.getLogger("tenfuse")
DEFAULT = 2**30
DRAFT = "tenfuse-draft-"
"""How everything temporary is named, in a folder that may hold what is not ours."""
_STALE = 3600.0
"""Seconds after which what is temporary is taken to be left by a killed process."""
_ROOM = 0.75
"""How full the cache is afterwards, so that not every kernel has to make room for itself."""
_SHARE = 0.125
"""A process looks again when it wrote this much of the bound."""
_KEY = re.compile(r"[0-9a-f]{64}")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", re.IGNORECASE)
_written = math.inf
"""Bytes this process wrote since it last looked."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A kernel (a folder) or a note (a file)."""

    path: Path
    size: int
    used: float


def bound() -> int:
    """What the cache may hold, in bytes; 0 for no bound.  Refuses, with ``OptionError``, what is no size."""
    text = os.environ.get("TENFUSE_CACHE_SIZE")
    if text is None:
        return DEFAULT
    read = _SIZE.fullmatch(text)
    if read is None:
        raise OptionError(
            f"TENFUSE_CACHE_SIZE is {text!r}; write 500M, 2G or a number of bytes, 0 for no bound"
        )
    return int(float(read[1]) * _UNITS[read[2].upper()])


def items(home: Path) -> list[Item]:
    """What the cache holds, in the order in which it was last used."""
    found = [_item(path) for folder in (home, home / "notes") for path in _named(folder)]
    return sorted((item for item in found if item is not None), key=lambda item: item.used)


def before_writing(home: Path, size: int) -> None:
    """Make room for something of about ``size`` bytes, where this process has not looked lately."""
    global _written
    try:
        allowed = bound()
    except OptionError as error:
        _complain(str(error))
        allowed = DEFAULT
    _written += size
    if _written < _SHARE * allowed:
        return
    _written = size
    sweep(home)
    if allowed:
        prune(home, allowed)


def prune(home: Path, allowed: int, room: float = _ROOM) -> list[Item]:
    """Remove what was not used for longest until the rest fills ``room`` of ``allowed``; what went."""
    every = items(home)
    total = sum(item.size for item in every)
    if total <= allowed:
        return []
    gone = []
    for item in every:
        if total <= room * allowed:
            break
        discard(item.path)
        # Whoever waits for its lock builds what is missing; two that build at once publish the same.
        (home / "locks" / item.path.name).unlink(missing_ok=True)
        total -= item.size
        gone.append(item)
    return gone


def discard(path: Path) -> None:
    """Remove an entry, of which nobody sees a part.  Needs no room on the disk."""
    away = path.parent / f"{DRAFT}{secrets.token_hex(8)}"
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.rename(path, away)
        shutil.rmtree(away, ignore_errors=True) if away.is_dir() else away.unlink()


def sweep(home: Path) -> None:
    """Remove what killed processes left behind: drafts, and locks of what was never published."""
    drafts = [*home.glob(f"{DRAFT}*"), *home.glob(f"notes/{DRAFT}*")]
    locks = [path for path in _named(home / "locks") if not (home / path.name).exists()]
    for old in (*drafts, *locks):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def touch(path: Path) -> None:
    """Say that an entry was used now; one that cannot be written is not ours to remove either."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _named(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if _KEY.fullmatch(path.name))


def _item(path: Path) -> Item | None:
    try:
        info = path.stat()
        parts = [each.stat() for each in path.iterdir()] if path.is_dir() else []
    except OSError:
        return None  # another process removes it
    return Item(path, sum(_on_disk(each) for each in (info, *parts)), info.st_mtime)


def _on_disk(info: os.stat_result) -> int:
    return max(info.st_size, 512 * getattr(info, "st_blocks", 0))


_complained: set[str] = set()


def _complain(text: str) -> None:
    if text not in _complained:
        _complained.add(text)
        log.warning("%s (until then %d MiB)", text, DEFAULT // 2**20)
