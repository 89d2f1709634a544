"""Notes: kept, found again, and a miss when damaged."""

import pytest

from tenfuse.runtime import notes
from tenfuse.runtime.cache import key_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_was_kept_is_found():
    assert notes.recall(key_of("a")) is None
    notes.keep(key_of("a"), "text\nof two lines")
    assert notes.recall(key_of("a")) == "text\nof two lines"


def test_a_damaged_note_is_a_miss(own_cache):
    notes.keep(key_of("a"), "text")
    path = own_cache / "notes" / key_of("a")
    for damage in (b"", b"text", path.read_bytes()[:-1], b"\xff\xfe"):
        path.write_bytes(damage)
        assert notes.recall(key_of("a")) is None


def test_no_cache_is_no_error(monkeypatch):
    def root():
        raise PermissionError

    monkeypatch.setattr(notes.cache, "root", root)
    notes.keep(key_of("a"), "text")
    assert notes.recall(key_of("a")) is None
