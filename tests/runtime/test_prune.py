"""The bound on the cache: what goes, what stays, and what happens to who wanted what went."""

import logging
import multiprocessing
import os
import shutil

import pytest

from tenfuse.cli import main
from tenfuse.config import OptionError
from tenfuse.reasons import Refused
from tenfuse.runtime import cache, compile, notes, prune

SOURCE = 'extern "C" int kernel(char* const*, const long*, const long*, long, int) { return %d; }\n'
SIZE = 40_000


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(prune, "_written", float("inf"))
    return tmp_path / "cache"


def entry(name, age=0.0):
    """A published entry that was last used ``age`` seconds ago."""
    path = cache.fetch(cache.key_of(name), "x", lambda text, library: library.write_bytes(bytes(SIZE))).parent
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def held(home):
    return sum(item.size for item in prune.items(home))


@pytest.mark.parametrize(
    "text, size",
    [("0", 0), ("1000", 1000), ("2K", 2048), ("1.5 MiB", 3 * 2**19), ("500mb", 500 * 2**20), ("2G", 2**31)],
)
def test_sizes(monkeypatch, text, size):
    monkeypatch.setenv("TENFUSE_CACHE_SIZE", text)
    assert prune.bound() == size


@pytest.mark.parametrize("text", ["", "apples", "-1", "2 G of them", "nan"])
def test_a_size_that_is_none_is_named(monkeypatch, caplog, text):
    monkeypatch.setenv("TENFUSE_CACHE_SIZE", text)
    with pytest.raises(OptionError, match="TENFUSE_CACHE_SIZE is"):
        prune.bound()
    assert main(["cache"]) == 2
    with caplog.at_level(logging.WARNING, "tenfuse"):
        assert entry(text).exists(), "a kernel is built all the same"


def test_what_was_used_last_stays(home):
    old, used, new = entry("old", 300), entry("used", 400), entry("new", 100)
    assert cache.lookup(used.name) is not None
    gone = prune.prune(home, held(home) - 1, room=0.7)
    assert [item.path for item in gone] == [old]
    assert used.exists() and new.exists() and not (home / "locks" / old.name).exists()


def test_writing_keeps_the_bound(home, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_SIZE", str(4 * SIZE))
    for n in range(12):
        latest = entry(f"{n}", age=100 - n)
        assert latest.exists()
        assert held(home) < 6 * SIZE
    monkeypatch.setenv("TENFUSE_CACHE_SIZE", "0")
    before = len(prune.items(home))
    for n in range(20, 32):
        entry(f"{n}")
    assert len(prune.items(home)) == before + 12


def test_notes_go_too(home):
    notes.keep(cache.key_of("a"), "text")
    assert prune.prune(home, 0)
    assert notes.recall(cache.key_of("a")) is None
    assert not list((home / "notes").iterdir())


def test_what_the_cache_did_not_name_is_left_alone(home):
    entry("mine")
    (home / "tmp-theirs").mkdir()
    (home / "thesis.tex").write_text("years of work")
    for path in home.iterdir():
        os.utime(path, (0, 0))
    assert main(["cache", "clear"]) == 0
    assert (home / "thesis.tex").exists() and (home / "tmp-theirs").exists()
    assert prune.items(home) == []


def test_a_killed_process_leaves_nothing_for_ever(home):
    entry("there")
    kept, lock = home / "locks" / cache.key_of("there"), home / "locks" / cache.key_of("never published")
    drafts = [home / f"{prune.DRAFT}a", home / "notes" / f"{prune.DRAFT}b"]
    (home / "notes").mkdir()
    drafts[0].mkdir()
    for path in (drafts[1], lock):
        path.write_text("")
    prune.sweep(home)
    assert all(path.exists() for path in (*drafts, lock)), "someone may be at work there"
    for path in (*drafts, lock, kept):
        os.utime(path, (0, 0))
    prune.sweep(home)
    assert kept.exists() and not any(path.exists() for path in (*drafts, lock))


def _at_once(n):
    os.environ["TENFUSE_CACHE_SIZE"] = "30K"  # less than two kernels: all remove one another's
    return [compile.load(SOURCE % (n * 100 + i))(None, None, None, 0, 0) for i in range(4)]


def test_processes_that_remove_one_another_s(home):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_at_once, range(4)) == [[n * 100 + i for i in range(4)] for n in range(4)]


def test_a_kernel_that_went_before_it_was_loaded_is_built_again(monkeypatch):
    build, calls = compile.build, []

    def removed_once(source):
        calls.append(path := build(source))
        if len(calls) == 1:
            shutil.rmtree(path.parent)
        return path

    monkeypatch.setattr(compile, "build", removed_once)
    assert compile.load(SOURCE % 7001)(None, None, None, 0, 0) == 7001
    assert len(calls) == 2


def test_a_library_that_does_not_load_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(compile, "build", lambda source: tmp_path / "broken.so")
    with pytest.raises(Refused) as caught:
        compile.load(SOURCE % 7002)
    assert caught.value.refusal.code == "TF405"


def test_a_full_disk_is_a_reason_and_not_the_compiler_s_fault(tmp_path, monkeypatch, caplog):
    tool = tmp_path / "full"
    tool.write_text('#!/bin/sh\necho "fatal error: error writing: No space left on device" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setattr(compile, "compiler", lambda: compile.Compiler(str(tool), "", ""))
    with caplog.at_level(logging.WARNING, "tenfuse"), pytest.raises(Refused) as caught:
        compile.build(SOURCE % 7003)
    assert caught.value.refusal.code == "TF405"
    assert "No space left on device" in caught.value.refusal.reason


def test_a_compiler_that_went_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compile, "compiler", lambda: compile.Compiler(str(tmp_path / "gone"), "", ""))
    with pytest.raises(Refused) as caught:
        compile.build(SOURCE % 7004)
    assert caught.value.refusal.code == "TF401" and "gone" in caught.value.refusal.reason


def test_the_command_line(home, monkeypatch, capsys):
    entry("a", 10), entry("b")
    assert main(["cache"]) == 0
    assert "2 entries" in capsys.readouterr().out
    monkeypatch.setenv("TENFUSE_CACHE_SIZE", str(int(held(home) / 1.3)))
    assert main(["cache", "prune"]) == 0
    assert "removed 1 entries" in capsys.readouterr().out
    assert cache.lookup(cache.key_of("b")) is not None
