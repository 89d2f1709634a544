"""Compiled kernels on disk, addressed by what they were made from.

Takes a key (a hex digest over source, compiler, flags and CPU) and a way to build; leaves
the path of a shared library.  An entry is a folder with the source, the library and their
digests, published by one atomic rename and verified at every read; a damaged entry is a
miss and is replaced.  One builder per key at a time (a file lock, which a killed process
releases); where locks do not exist, several build and the first rename wins.  An entry may go at any
moment (``prune``): who was given a path and finds nothing there asks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tenfuse.runtime import prune

SOURCE, LIBRARY, DIGEST = "kernel.cpp", "kernel.so", "digest"
_KERNEL = 2**17
"""About what a source and a library take, in bytes."""


def root() -> Path:
    """The cache folder, private to this user: TENFUSE_CACHE_DIR or one in torch's cache."""
    named = os.environ.get("TENFUSE_CACHE_DIR")
    if named:
        folder = Path(named)
    else:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        folder = Path(cache_dir()) / "tenfuse"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid not in (os.getuid(), 0):
        raise PermissionError(f"the cache folder {folder} belongs to another user; set TENFUSE_CACHE_DIR")
    return folder


def key_of(*parts: str) -> str:
    """The digest of ``parts``, which cannot run into each other."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode()
        found.update(f"{len(data)}:".encode() + data)
    return found.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Put a file in place, of which others see all or nothing."""
    handle, draft = tempfile.mkstemp(prefix=prune.DRAFT, dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise


def lookup(key: str) -> Path | None:
    """The library of a sound entry."""
    entry = root() / key
    try:
        wanted = (entry / DIGEST).read_text()
        if wanted == _digest(entry):
            prune.touch(entry)
            return entry / LIBRARY
    except (OSError, UnicodeDecodeError):
        return None
    return None


def fetch(key: str, source: str, build: Callable[[Path, Path], None]) -> Path:
    """The library for ``key``, built by ``build(source file, library file)`` if missing."""
    found = lookup(key)
    if found is not None:
        return found
    with _lock(root() / "locks" / key):
        found = lookup(key)
        return found if found is not None else _publish(key, source, build)


def _digest(folder: Path) -> str:
    return key_of(*(hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in (SOURCE, LIBRARY)))


def _publish(key: str, source: str, build: Callable[[Path, Path], None]) -> Path:
    home = root()
    prune.before_writing(home, _KERNEL)
    made = Path(tempfile.mkdtemp(prefix=prune.DRAFT, dir=home))
    try:
        (made / SOURCE).write_text(source)
        build(made / SOURCE, made / LIBRARY)
        (made / DIGEST).write_text(_digest(made))
        _rename(made, home / key)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    found = lookup(key)
    if found is None:
        raise OSError(f"the cache entry {home / key} is damaged again right after it was written")
    return found


def _rename(made: Path, entry: Path) -> None:
    """Put ``made`` in place; a sound entry that another process put there first stays."""
    for _ in range(8):
        try:
            os.rename(made, entry)
            return
        except OSError:
            if lookup(entry.name) is not None:
                return
            prune.discard(entry)
    raise OSError(f"could not publish {entry}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
