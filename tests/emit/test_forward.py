"""Generated kernels against the meaning of the IR, forward."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import programs
from harness import forward

TOLERANCE = {"f32": 2e-5, "f64": 1e-12, "bf16": 1e-2, "f16": 2e-3}


def close(got, want, dtype):
    (finals, outs, _), (wanted, ys) = got, want
    for mine, theirs in zip(finals + outs, wanted + ys, strict=True):
        assert not torch.isnan(mine).any()
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        error = float((mine.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
        assert error <= TOLERANCE[dtype] * scale, (error, scale)


@pytest.mark.parametrize("name", programs.FORWARD)
@pytest.mark.parametrize("style", ["plain", "reversed", "gaps", "expanded"])
def test_layouts(name, style):
    program = programs.FORWARD[name]()
    bools = (1,) if name == "masked" else ()
    got, want, _ = forward(program, 7, style=style, bools=bools)
    close(got, want, "f32")


@pytest.mark.parametrize("name", programs.FORWARD)
def test_steps_and_direction(name):
    program = programs.FORWARD[name]()
    bools = (1,) if name == "masked" else ()
    for steps in (0, 1, 2, 64, 130):
        for reverse in (False, True):
            got, want, _ = forward(program, steps, reverse=reverse, bools=bools)
            close(got, want, "f32")


@pytest.mark.parametrize("name", programs.FORWARD)
def test_double(name):
    got, want, _ = forward(programs.FORWARD[name](), 7, "f64", "f64", bools=(1,) if name == "masked" else ())
    close(got, want, "f64")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["ema", "ten", "delta", "lstm", "scan"])
@pytest.mark.parametrize("style", ["plain", "gaps"])
def test_half(name, dtype, style):
    got, want, _ = forward(programs.FORWARD[name](), 7, dtype, style=style)
    close(got, want, dtype)


SIZES = {
    "ema": [dict(B=1, D=1), dict(B=2, D=16), dict(B=1, D=700), dict(B=0, D=5), dict(B=3, D=0)],
    "ten": [dict(B=1, K=1), dict(B=16, K=32), dict(B=9, K=70), dict(B=0, K=8)],
    "delta": [dict(B=1, K=1, V=1), dict(B=5, K=64, V=64), dict(B=1, K=33, V=257), dict(B=1, K=8, V=256)],
    "scan": [dict(B=1, D=64, N=16), dict(B=1, D=3, N=4), dict(B=2, D=33, N=24), dict(B=1, D=1, N=1)],
    "lstm": [dict(B=1, K=48), dict(B=11, K=33)],
    "bilinear": [dict(B=1, K=3, V=200), dict(B=2, K=64, V=16), dict(B=2, K=1, V=2)],
    "normalised": [dict(B=1, K=2, V=3), dict(B=3, K=40, V=40)],
}


@pytest.mark.parametrize("name,sizes", [(n, s) for n, many in SIZES.items() for s in many])
def test_sizes(name, sizes):
    got, want, _ = forward(programs.FORWARD[name](**sizes), 5)
    close(got, want, "f32")


@pytest.mark.parametrize("threads", [1, 3])
def test_dynamic_sizes_share_a_kernel(threads):
    torch.set_num_threads(threads)
    program = programs.ema(B=3, D=40, dynamic=("b", "d"))
    for B, D in ((1, 7), (4, 64), (2, 333)):
        got, want, _ = forward(program, 9, sizes={"b": B, "d": D})
        close(got, want, "f32")


@pytest.mark.parametrize("name", ["ema", "ten", "delta"])
def test_checkpoints(name):
    program = programs.FORWARD[name]()
    (_, _, saves), _, (inits, xs, invariants) = forward(program, 11, checkpoint=4)
    from tenfuse.step import interpret

    for slot, steps in enumerate((0, 4, 8)):
        want, _ = interpret.scan(program, inits, xs, invariants, steps)
        for save, theirs in zip(saves, want, strict=True):
            torch.testing.assert_close(save[slot].double(), theirs.double(), atol=1e-5, rtol=1e-4)


def test_nan_and_infinity_stay_in_their_channel():
    program = programs.ema(B=2, D=33)

    def spoil(index, x):
        if index == 1:
            x[2, 0, 5] = float("nan")
            x[3, 1, 32] = float("inf")

    (finals, outs, _), (want, ys), _ = forward(program, 7, special=spoil)
    torch.testing.assert_close(finals[0].double(), want[0], equal_nan=True)
    torch.testing.assert_close(outs[0].double(), ys[0], equal_nan=True)
    assert torch.isnan(outs[0]).sum() == 5


def test_maximum_propagates_nan():
    def spoil(index, x):
        x[1, 0, 3] = float("nan")

    (_, outs, _), (_, ys), _ = forward(programs.viterbi(), 4, special=spoil)
    torch.testing.assert_close(outs[0].double(), ys[0], equal_nan=True, atol=1e-5, rtol=1e-5)
    assert torch.isnan(outs[0]).any() and not torch.isnan(outs[0]).all()
