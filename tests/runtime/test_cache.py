"""The kernel cache: damage, many processes, a process killed in the middle."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tenfuse.reasons import Refused
from tenfuse.runtime import cache, compile, prune

SOURCE = 'extern "C" int kernel(char* const*, const long*, const long*, long steps, int) { return %d; }\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder):
    return [p for p in folder.iterdir() if len(p.name) == 64]


def test_second_build_compiles_nothing(folder, monkeypatch):
    first = compile.build(SOURCE % 1)
    monkeypatch.setattr(compile, "_compile", lambda *a: pytest.fail("compiled again"))
    assert compile.build(SOURCE % 1) == first
    assert (first.parent / cache.SOURCE).read_text() == SOURCE % 1


@pytest.mark.parametrize("name", [cache.LIBRARY, cache.SOURCE, cache.DIGEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_entry_is_a_miss(folder, name, damage):
    path = compile.build(SOURCE % 2).parent / name
    data = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    again = compile.build(SOURCE % 2)
    assert (again.parent / name).read_bytes()[:64] == data[:64]
    assert cache.lookup(again.parent.name) == again
    assert len(entries(folder)) == 1


def _many(n):
    return compile.build(SOURCE % (n % 2)).read_bytes()[:4]


def test_many_processes(folder):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert set(pool.map(_many, range(16))) == {b"\x7fELF"}
    assert len(entries(folder)) == 2
    assert not list(folder.glob(f"{prune.DRAFT}*"))


def test_killed_in_the_middle(folder, monkeypatch):
    script = (
        "import time; from tenfuse.runtime import cache\n"
        "def slow(text, library):\n"
        "    library.write_bytes(b'half'); print('now', flush=True); time.sleep(60)\n"
        "cache.fetch('k' * 64, 'x', slow)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    start = time.time()
    found = cache.fetch("k" * 64, "x", lambda text, library: library.write_bytes(b"whole"))
    assert found.read_bytes() == b"whole"
    assert time.time() - start < 5
    left = list(folder.glob(f"{prune.DRAFT}*"))
    assert left, "the killed process leaves its folder"
    old = time.time() - 2 * 3600
    for path in left:
        os.utime(path, (old, old))
    monkeypatch.setattr(prune, "_written", float("inf"))  # as in a process that has not looked yet
    cache.fetch("j" * 64, "x", lambda text, library: library.write_bytes(b"other"))
    assert not list(folder.glob(f"{prune.DRAFT}*"))


def test_an_unwritable_cache_does_not_stop_a_kernel(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(blocked / "cache"))
    assert compile.build(SOURCE % 3).exists()


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with pytest.raises(Refused) as caught:
        compile.compiler()
    assert caught.value.refusal.code == "TF401"
    assert str(tmp_path / "missing") in caught.value.refusal.reason


def test_a_rejected_source_names_the_first_error(folder):
    with pytest.raises(Refused) as caught:
        compile.build("this is not C++\n")
    assert caught.value.refusal.code == "TF402"
    assert str(folder) not in caught.value.refusal.reason
    assert not entries(folder)
