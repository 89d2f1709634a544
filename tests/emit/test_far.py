"""Results written past the cache: any alignment, any dtype, the same numbers."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import programs
from gradients import derived
from harness import forward

from tenfuse.emit.cpp import source


@pytest.fixture(autouse=True)
def everything_far(monkeypatch):
    monkeypatch.setattr(source, "FAR_BYTES", -8)


@pytest.mark.parametrize("compute,tolerance", [("f32", 5e-5), ("f64", 1e-10)])
@pytest.mark.parametrize(
    "program",
    [programs.ema(D=40), programs.ten(K=40), programs.delta(K=16, V=40), programs.delta(B=8, K=32, V=64)],
)
def test_gradients(program, compute, tolerance):
    for name, mine, theirs in derived(program, 9, 4, compute):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((mine.double() - theirs).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("dtype,tolerance", [("f32", 1e-5), ("bf16", 4e-2)])
def test_forward(dtype, tolerance):
    (_, ys, _), (_, wanted), _ = forward(programs.ema(D=40), 9, dtype)
    for mine, theirs in zip(ys, wanted, strict=True):
        assert float((mine.double() - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))
