"""Backward kernels (recompute inside chunks, then the adjoint) against autograd in fp64."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import programs
from gradients import derived
from harness import backward

from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram

CASES = {
    "ema": (programs.ema, programs.ema_adjoint, [("stream", 0), ("stream", 1)]),
    "ten": (
        programs.ten,
        programs.ten_adjoint,
        [("stream", 0), ("invariant", 0), ("invariant", 1), ("invariant", 2)],
    ),
    "delta": (programs.delta, programs.delta_adjoint, [("stream", i) for i in range(5)]),
}


def check(results, tolerance):
    for mine, theirs in results:
        while mine.dim() > theirs.dim():
            mine = mine.sum(0)
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        error = float((mine.double() - theirs).abs().max()) if theirs.numel() else 0.0
        assert error <= tolerance * scale, (error, scale, tuple(mine.shape))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps,chunk", [(1, 4), (4, 4), (5, 4), (11, 4), (3, 64)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients(name, steps, chunk, reverse):
    forward, adjoint, leaves = CASES[name]
    check(backward(forward(), adjoint(), steps, chunk, reverse=reverse, extra=leaves), 3e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_double(name):
    forward, adjoint, leaves = CASES[name]
    check(backward(forward(), adjoint(), 11, 4, "f64", extra=leaves), 1e-11)


@pytest.mark.parametrize("sizes", [dict(B=1, K=64, V=64), dict(B=3, K=5, V=70), dict(B=2, K=33, V=16)])
def test_delta_sizes(sizes):
    forward, adjoint, leaves = CASES["delta"]
    check(backward(forward(**sizes), adjoint(**sizes), 9, 4, extra=leaves), 3e-5)


@pytest.mark.parametrize("sizes", [dict(B=1, K=64), dict(B=16, K=33), dict(B=7, K=3)])
def test_ten_sizes(sizes):
    forward, adjoint, leaves = CASES["ten"]
    check(backward(forward(**sizes), adjoint(**sizes), 9, 4, extra=leaves), 3e-5)


def agree(found, tolerance):
    for name, mine, theirs in found:
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        error = float((mine.double() - theirs).abs().max()) if theirs.numel() else 0.0
        assert error <= tolerance * scale, (name, error, scale)


def without_sums(name):
    """The program; its accumulating outputs stacked, because an adjoint takes no others."""
    program = programs.FORWARD[name]()
    outs = tuple(dataclasses.replace(o, accumulate=False) for o in program.outs)
    return dataclasses.replace(program, outs=outs)


@pytest.mark.parametrize("name", programs.FORWARD)
@pytest.mark.parametrize("steps,chunk,reverse", [(1, 4, False), (11, 4, True), (8, 4, False), (5, 64, True)])
def test_derived_adjoint(name, steps, chunk, reverse):
    bools = (1,) if name == "masked" else ()
    agree(derived(without_sums(name), steps, chunk, reverse=reverse, bools=bools), 5e-5)


@pytest.mark.parametrize("name", programs.FORWARD)
def test_derived_adjoint_double(name):
    bools = (1,) if name == "masked" else ()
    agree(derived(without_sums(name), 6, 4, "f64", bools=bools), 1e-10)


def test_a_sum_spread_again_along_its_axes():
    """The gradient of z in y = x - sum z is one number for all of z: tasks may not each write a part."""
    b = Builder()
    own = ("b", "k", "v")
    h, x, z = b.input("carry", 0, own), b.input("stream", 0, own), b.input("stream", 1, ("k", "v"))
    y = b.call("sub", x, b.contract(b.call("mul", z, b.const(0.05)), "k", "v"))
    new = b.call("tanh", b.call("add", h, x))
    outs = (OutSpec(y, own), OutSpec(h, own))
    program = StepProgram(tuple(b.nodes), {"b": 17, "k": 20, "v": 17}, (CarrySpec(own, new, own),), outs)
    for name, mine, theirs in derived(program, 3, 2, "f64"):
        assert float((mine.reshape(theirs.shape) - theirs).abs().max()) <= 1e-9, name
