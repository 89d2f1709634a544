"""What was compiled ahead of time is not compiled again; what was stopped or damaged is."""

import types

import pytest

pytest.importorskip("triton")

from benchmarks import aot_compile
from benchmarks.aot_compile import Binary, compiled


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The targets that were compiled for; each kernel is its own key."""
    found = []
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        aot_compile, "specialised", lambda launch, target: types.SimpleNamespace(key=lambda: launch + target)
    )

    def apart(launch, target):
        found.append((launch, target))
        failed = launch.removeprefix("bad ") if launch.startswith("bad ") else ""
        return Binary(target, failed, 1.5, 32, 0, 1024, 4, {"mma.sync": 2})

    monkeypatch.setattr(aot_compile, "_apart", apart)
    return found


def test_a_result_is_kept_for_each_target(calls):
    first = compiled("a", "sm_90")
    assert compiled("a", "sm_90") == first and first.matrix == {"mma.sync": 2}
    compiled("a", "sm_80")
    compiled("b", "sm_90")
    assert calls == [("a", "sm_90"), ("a", "sm_80"), ("b", "sm_90")]


def test_it_is_compiled_again_if_asked(calls):
    compiled("a", "sm_90")
    compiled("a", "sm_90", again=True)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "failed, times", [(aot_compile._STOPPED, 2), (aot_compile._CRASHED, 2), ("wrong", 1)]
)
def test_only_what_a_compiler_says_is_kept(calls, failed, times):
    for _ in range(2):
        assert compiled("bad " + failed, "sm_90").failed == failed
    assert len(calls) == times


def test_a_damaged_result_is_made_again(calls, tmp_path):
    compiled("a", "sm_90")
    (path,) = (tmp_path / "aot").iterdir()
    path.write_text(path.read_text()[:20])
    compiled("a", "sm_90")
    compiled("a", "sm_90")
    assert len(calls) == 2
