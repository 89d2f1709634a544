"""Sums over time of a backward: terms gathered, products over several steps at once."""

import pytest
import torch

from tenfuse.plan.product import gathered
from tenfuse.runtime import backward
from tenfuse.step.adjoint import Product, Summed, adjoint
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram


def rotation():
    """Two states that two gates turn into each other, then a matrix."""
    build, axes = Builder(), ("b", "k")
    a, b = (build.input("carry", i, axes) for i in (0, 1))
    x = build.input("stream", 0, axes)
    c, s = (build.input("invariant", i, ("k",)) for i in (0, 1))
    r = build.input("invariant", 2, ("k", "l"))
    one = build.call("add", build.call("sub", build.call("mul", c, a), build.call("mul", s, b)), x)
    two = build.call("add", build.call("mul", c, b), build.call("mul", s, a))
    nexts = [build.contract(build.call("mul", z, r), "k") for z in (one, two)]
    carries = tuple(CarrySpec(axes, n, ("b", "l")) for n in nexts)
    sizes = {"b": 4, "k": 32, "l": 32}
    return StepProgram(tuple(build.nodes), sizes, carries, (OutSpec(nexts[0], ("b", "l")),))


def test_terms_over_the_same_axes_are_one_sum():
    whole = adjoint(rotation(), [0], [0, 1, 2])
    assert [len(whole.invariants[i]) for i in (0, 1, 2)] == [2, 2, 2]
    found = gathered(whole)
    assert all(isinstance(t, Summed) for i in (0, 1) for t in found.invariants[i])
    assert [len(found.invariants[i]) for i in (0, 1, 2)] == [1, 1, 2]
    assert len(found.program.outs) == len(whole.program.outs) - 2
    for i in (0, 1):
        assert found.program.outs[found.invariants[i][0].out].accumulate
    for before, after in zip(whole.invariants[2], found.invariants[2], strict=True):
        assert isinstance(after, Product)
        for k, n in ((before.left, after.left), (before.right, after.right)):
            assert found.program.outs[n] == whole.program.outs[k]
    assert found.program.outs[found.streams[0]] == whole.program.outs[whole.streams[0]]


def test_nothing_to_gather_changes_nothing():
    whole = adjoint(rotation(), [0], [2])
    assert gathered(whole) is whole


def turning(x, c, s, r):
    a = b = torch.zeros_like(x[:, 0])
    ys = []
    for t in range(x.shape[1]):
        a, b = (c * a - s * b + x[:, t]) @ r, (c * b + s * a) @ r
        ys.append(a)
    return torch.stack(ys, 1)


def tanh(x, c, s, r):
    """The gradient of the stream is a factor of the matrix's: it lies as the stream does."""
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(h @ r + x[:, t]) * c + s
        ys.append(h)
    return torch.stack(ys, 1)


@pytest.mark.parametrize("model", [turning, tanh])
@pytest.mark.parametrize("shape", [(3, 37), (1, 64), (16, 40), (2, 1), (40, 9), (0, 5)])
@pytest.mark.parametrize("piece", [1 << 13, 1 << 21])
def test_gradients_of_what_every_step_shares(model, shape, piece, monkeypatch):
    """Steps that the pieces and the steps taken at once divide, and do not; no batch at all."""
    monkeypatch.setattr(backward, "PIECE", piece)
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(*shape, 32, dtype=torch.float64, requires_grad=True)
    c, s = (torch.rand(32, dtype=torch.float64).mul(0.7).requires_grad_() for _ in range(2))
    r = (torch.eye(32) + 0.05 * torch.randn(32, 32)).double().requires_grad_()
    leaves = (x, c, s, r)
    run = torch.compile(model, backend="tenfuse", options={"strict": True, "inner": "eager"}, dynamic=False)
    for _ in range(2):
        got = torch.autograd.grad(run(*leaves).sin().sum(), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(model(*leaves).sin().sum(), leaves))
