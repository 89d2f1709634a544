"""Short texts on disk, addressed by what they were derived from.

Takes a key (``cache.key_of``) and a text; leaves the text at a later call, in this process
or another.  A note is one file holding the text and its digest, published by one atomic
rename and verified when read; a damaged one is a miss.  A cache that cannot be written is
no error: the text is derived again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tenfuse.runtime import cache, prune


def recall(key: str) -> str | None:
    """The text kept under ``key``."""
    folder = _folder()
    return _read(folder / key) if folder is not None else None


def keep(key: str, text: str) -> None:
    """Keep ``text`` under ``key``, where the cache can be written."""
    folder = _folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            prune.before_writing(folder.parent, len(text))
            cache.write_atomically(folder / key, f"{cache.key_of(text)}\n{text}")


def _folder() -> Path | None:
    try:
        folder = cache.root() / "notes"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder


def _read(path: Path) -> str | None:
    try:
        digest, _, text = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest != cache.key_of(text):
        return None
    prune.touch(path)
    return text


__all__ = ["keep", "recall"]
