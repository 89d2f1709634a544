"""What is rewritten before scheduling computes the same, with fewer operations per entry."""

import math

import torch

from tenfuse.emit.cpp.simplify import simplify
from tenfuse.step import interpret
from tenfuse.step.program import Builder, CarrySpec, Contract, OutSpec, StepProgram

SIZES = {"k": 5, "v": 3}


def step(make):
    """A state S over k, v that decays, and an output made of a_k, g_v, w_k, b and S."""
    b = Builder()
    s, a, g = b.input("carry", 0, ("k", "v")), b.input("stream", 0, ("k",)), b.input("stream", 1, ("v",))
    w, c = b.input("stream", 2, ("k",)), b.input("stream", 3, ())
    new = b.call("mul", s, c)
    out = make(b, s, a, g, w, c)
    return StepProgram(
        tuple(b.nodes), SIZES, (CarrySpec(("k", "v"), new, ("k", "v")),), (OutSpec(out, ("k",)),)
    )


def same(program):
    """The simplified program, after its results were compared."""
    found = simplify(program)
    gen = torch.Generator().manual_seed(0)
    inputs = {("carry", 0): torch.randn(5, 3, generator=gen, dtype=torch.float64)}
    for i, axes in program.inputs("stream").items():
        shape = [SIZES[a] for a in axes]
        inputs["stream", i] = torch.randn(shape, generator=gen, dtype=torch.float64)
    for mine, theirs in zip(interpret.step(found, inputs), interpret.step(program, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    return found


def products(program):
    """Entries multiplied one by one below every contraction."""
    axes, found = program.axes_of(), 0
    for node in program.nodes:
        if isinstance(node, Contract):
            todo = [node.arg]
            while todo:
                inner = program.nodes[todo.pop()]
                todo += getattr(inner, "args", ())
                if getattr(inner, "fn", "") == "mul":
                    found += math.prod(SIZES[a] for a in axes[program.nodes.index(inner)])
    return found


def test_a_factor_without_the_summed_axis_multiplies_the_sum():
    def make(b, s, a, g, w, c):
        return b.contract(b.call("mul", g, b.call("mul", a, s)), "v")

    assert products(same(step(make))) == 15


def test_only_what_every_term_has_in_common_is_taken_out():
    def both(b, s, a, g, w, c):
        left = b.call("mul", g, b.call("mul", a, s))
        return b.contract(b.call("add", left, b.call("mul", b.call("mul", a, s), s)), "v")

    def one(b, s, a, g, w, c):
        left = b.call("mul", g, b.call("mul", a, s))
        return b.contract(b.call("add", left, b.call("mul", b.call("mul", w, s), s)), "v")

    assert products(same(step(both))) < products(same(step(one)))


def test_a_number_is_multiplied_with_the_shortest_factor():
    def make(b, s, a, g, w, c):
        return b.contract(b.call("mul", g, b.call("mul", c, s)), "v")

    found = same(step(make))
    assert products(found) == 3 + 15


def test_a_factor_that_is_also_squared_stays_right():
    def make(b, s, a, g, w, c):
        return b.contract(b.call("mul", b.call("mul", a, g), b.call("mul", a, s)), "v")

    same(step(make))
