"""Decays of a whole state kept in a number beside it: values, gradients, and where it is done."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import programs
from gradients import derived
from harness import forward

import tenfuse
from tenfuse.emit.cpp import deferred as stage
from tenfuse.emit.cpp.simplify import simplify
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram
from tenfuse.testing import assert_equivalent

OWN = ("b", "k", "v")


@pytest.fixture
def eager_numbers(monkeypatch):
    """States of any size are held with numbers."""
    monkeypatch.setattr(stage, "FEW", 1)


@pytest.mark.usefixtures("eager_numbers")
@pytest.mark.parametrize("name", programs.FORWARD)
@pytest.mark.parametrize("steps,chunk,reverse", [(1, 4, False), (11, 4, True), (8, 4, False)])
def test_every_program_with_numbers_for_states_of_any_size(name, steps, chunk, reverse):
    program, bools = programs.FORWARD[name](), (1,) if name == "masked" else ()
    (_, outs, _), want, _ = forward(program, steps, "f64", "f64", reverse=reverse, bools=bools)
    for mine, theirs in zip(outs, want[1], strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-9
    if not any(o.accumulate for o in program.outs):
        for what, mine, theirs in derived(program, steps, chunk, "f64", reverse=reverse, bools=bools):
            scale = max(1.0, float(theirs.abs().max()))
            assert float((mine - theirs).abs().max()) <= 1e-9 * scale, what


def step(gate, out="read", decay="mul", sizes=(2, 64, 64)):
    """S <- a S + k v^T with a over the axes ``gate``; y = q . S, or S itself."""
    b = Builder()
    s, a = b.input("carry", 0, OWN), b.input("stream", 0, gate)
    q, k, v = (b.input("stream", n, ("b", x)) for n, x in ((1, "k"), (2, "k"), (3, "v")))
    new = b.call("add", b.call(decay, s, a), b.call("mul", k, v))
    y = b.contract(b.call("mul", q, new), "k")
    outs = (OutSpec(y, ("b", "v")),) if out == "read" else (OutSpec(new, OWN),)
    return StepProgram(tuple(b.nodes), dict(zip(OWN, sizes, strict=True)), (CarrySpec(OWN, new, OWN),), outs)


@pytest.mark.parametrize("gate", [(), ("b",)])
@pytest.mark.parametrize("decay", ["mul", "div"])
def test_a_decay_of_the_whole_state_is_deferred(gate, decay):
    found = stage.deferred(simplify(step(gate, decay=decay)))
    assert dict(found.scales) == {0: 1}
    assert found.program.carries[1].axes == gate


@pytest.mark.parametrize(
    "program",
    [
        step(("b", "k")),
        step(OWN),
        step(("b",), out="state"),
        step(("b",), sizes=(2, 16, 16)),
        programs.transposed(),
        programs.lstm(),
    ],
    ids=["per key", "per entry", "every state is a result", "small", "two names", "elementwise"],
)
def test_one_that_saves_nothing_stays(program):
    assert not stage.deferred(simplify(program)).scales


EDGES = {
    "ordinary": lambda t: 0.9 + 0.1 * math.sin(t),
    "halves": lambda t: 0.5,
    "zero, one, negative and growth": lambda t: (1.0, 0.0, 0.7, -0.9, 1.3, -1.0)[t % 6],
    "strong": lambda t: math.exp(-20.0) if t % 5 == 2 else 0.99,
    "growth": lambda t: 1.05,
}


def gated(x, q, k, v):
    """Gated delta rule, one gate for each sequence."""
    state, outs = torch.zeros(q.shape[0], q.shape[2], v.shape[2], dtype=q.dtype), []
    for t in range(q.shape[1]):
        state = state * x[:, t, None, None]
        seen = torch.einsum("bk,bkv->bv", k[:, t], state)
        state = state + k[:, t, :, None] * (v[:, t] - seen)[:, None, :]
        outs.append(torch.einsum("bk,bkv->bv", q[:, t], state))
    return torch.stack(outs, 1), state


def inputs(edge, steps=70, seed=0):
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, steps, 64, generator=gen) for _ in range(3))
    gates = torch.tensor([[EDGES[edge](t + 3 * b) for t in range(steps)] for b in range(2)])
    return gates, q, k / k.norm(dim=-1, keepdim=True), v


def compiled():
    return torch.compile(gated, backend="tenfuse", options={"strict": True, "inner": "eager"})


@pytest.mark.parametrize("edge", EDGES)
def test_gates_at_their_edges(edge):
    args = tuple(x.requires_grad_() for x in inputs(edge))
    assert_equivalent(gated, *args, options={"inner": "eager"})
    loop = tenfuse.reports()[-1].loops[0]
    assert loop.status == "fused"
    assert all("== 1) {" in text for _, _, text in loop.kernels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_reaches_what_it_reaches_in_eager(value):
    for place in range(4):
        args = [x.clone() for x in inputs("ordinary")]
        args[place][(0, 20) if place == 0 else (0, 20, 5)] = value
        torch._dynamo.reset()
        for mine, theirs in zip(compiled()(*args), gated(*args), strict=True):
            assert torch.equal(mine.isnan(), theirs.isnan())
            assert torch.equal(mine.isfinite(), theirs.isfinite())


def test_large_states_do_not_overflow():
    gates, q, k, v = inputs("ordinary")
    mine, theirs = compiled()(gates, q * 1e-3, k, v * 1e37), gated(gates, q * 1e-3, k, v * 1e37)
    assert mine[1].isfinite().all()
    assert torch.allclose(mine[1] / 1e37, theirs[1] / 1e37, rtol=1e-4, atol=1e-4)
