"""Contractions of a state taken one step early: when they are, and that nothing changes."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import programs
from gradients import derived
from harness import forward

from tenfuse.emit.cpp.retime import early, repeated, shared
from tenfuse.emit.cpp.simplify import simplify
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import Builder, CarrySpec, Contract, Input, OutSpec, StepProgram, prune, validate


def two_sums(op="sum", outer="k", read=("k", "v")):
    """S <- a S + k (z + y)^T, z and y two contractions of S; ``read`` names S in the second."""
    b = Builder()
    s, k, w = (
        b.input("carry", 0, ("b", "k", "v")),
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "k")),
    )
    a = b.call("sigmoid", b.input("stream", 2, ("b",)))
    z = b.contract(b.call("mul", k, s), outer, op=op)
    other = b.input("carry", 0, ("b", *read))
    y = b.call("tanh", b.contract(b.call("mul", b.call("sin", w), other), "k", op="max"))
    new = b.call("add", b.call("mul", a, s), b.call("mul", k, b.call("tanh", b.call("add", z, y))))
    out = b.contract(b.call("mul", new, w), "k")
    sizes = {"b": 3, "k": 17, "v": 17}
    return StepProgram(
        tuple(b.nodes),
        sizes,
        (CarrySpec(("b", "k", "v"), new, ("b", "k", "v")),),
        (OutSpec(out, ("b", "v")),),
    )


def momentum():
    """A carry read in the contraction of another: both enter the sum taken early."""
    b = Builder()
    own = ("b", "k", "v")
    s, m, k, v = (
        b.input("carry", 0, own),
        b.input("carry", 1, own),
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "v")),
    )
    z = b.contract(b.call("mul", k, b.call("add", s, b.call("sin", m))), "k")
    u = b.call("mul", k, b.call("sub", v, z))
    m2 = b.call("add", b.call("mul", b.const(0.5), m), u)
    s2 = b.call("add", b.call("mul", b.const(0.9), s), m2)
    out = b.contract(b.call("mul", s2, k), "k")
    sizes = {"b": 2, "k": 20, "v": 33}
    return StepProgram(
        tuple(b.nodes), sizes, (CarrySpec(own, s2, own), CarrySpec(own, m2, own)), (OutSpec(out, ("b", "v")),)
    )


MOVED = {
    "delta": programs.delta,
    "two sums": two_sums,
    "maximum": lambda: two_sums("max"),
    "momentum": momentum,
}


def close(mine, theirs, tolerance=1e-9):
    scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
    assert mine.numel() == 0 or float((mine.double() - theirs).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("name", MOVED)
def test_taken_early(name):
    program = prune(simplify(MOVED[name]()))
    validate(program)
    moved = early(program)
    assert moved.first is not None
    assert len(moved.program.carries) > len(program.carries)
    assert any(isinstance(n, Input) and n.kind == "ahead" for n in moved.program.nodes)


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("reverse", [False, True])
def test_forward(name, steps, reverse):
    got, want, _ = forward(MOVED[name](), steps, "f64", "f64", reverse=reverse, checkpoint=3)
    for mine, theirs in zip(got[0] + got[1], want[0] + want[1], strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("steps,chunk", [(1, 4), (4, 4), (5, 4), (11, 4), (3, 64)])
def test_backward(name, steps, chunk):
    for _, mine, theirs in derived(MOVED[name](), steps, chunk, "f64", reverse=steps % 2 == 0):
        close(mine.reshape(theirs.shape), theirs)


def test_the_adjoint_reads_what_the_forward_carries():
    program = simplify(programs.delta())
    back = simplify(adjoint(program, range(5), ()).program)
    again = early(prune(simplify(programs.delta())))
    reading = shared(back, again)
    assert any(isinstance(n, Input) and n.kind == "state" and n.index == again.since for n in reading.nodes)
    assert sum(isinstance(n, Contract) for n in reading.nodes) < sum(
        isinstance(n, Contract) for n in back.nodes
    )


def test_a_state_read_under_other_names_is_summed_in_its_step():
    program = two_sums(read=("v", "k"))
    moved = early(simplify(program))
    assert len(moved.program.carries) == 2
    got, want, _ = forward(program, 5, "f64", "f64")
    for mine, theirs in zip(got[0] + got[1], want[0] + want[1], strict=True):
        close(mine, theirs)
    for _, mine, theirs in derived(program, 5, 2, "f64"):
        close(mine.reshape(theirs.shape), theirs)


@pytest.mark.parametrize("program", [programs.ema(), programs.ten()], ids=["no sum", "mixed axes"])
def test_left_where_it_is(program):
    assert early(simplify(program)).first is None


def discretised(fn="exp"):
    """h <- f(d A) h + d b, y = C h: the discretisation of a state-space model inside its loop."""
    b = Builder()
    h, d = b.input("carry", 0, ("b", "k", "v")), b.input("stream", 0, ("b", "k"))
    w, c, a = (
        b.input("stream", 1, ("b", "v")),
        b.input("stream", 2, ("b", "v")),
        b.input("invariant", 0, ("k", "v")),
    )
    gate = b.call(fn, b.call("neg", b.call("mul", d, a)))
    new = b.call("add", b.call("mul", gate, h), b.call("mul", d, w))
    out = b.contract(b.call("mul", new, c), "v")
    sizes = {"b": 2, "k": 35, "v": 16}
    own = ("b", "k", "v")
    return StepProgram(tuple(b.nodes), sizes, (CarrySpec(own, new, own),), (OutSpec(out, ("b", "k")),))


@pytest.mark.parametrize("fn,times", [("exp", 1), ("abs", 0)])
def test_costly_functions_of_the_inputs_are_computed_once(fn, times):
    program = simplify(discretised(fn))
    back = simplify(adjoint(program, range(3), (0,)).program)
    forward_again = prune(dataclasses.replace(program, outs=()))
    assert len(repeated(forward_again, back)) == times
    again = early(forward_again, repeated(forward_again, back))
    reading = shared(back, again)
    assert sum(getattr(n, "fn", "") == "exp" for n in reading.nodes) == 0


def test_a_costly_function_of_the_state_is_not_kept():
    program = simplify(two_sums())
    back = simplify(adjoint(program, range(3), ()).program)
    kept = [program.nodes[r] for r in repeated(program, back)]
    assert {n.fn for n in kept} == {"sigmoid", "sin"}


@pytest.mark.parametrize("steps,chunk", [(1, 4), (4, 4), (5, 4), (11, 4)])
@pytest.mark.parametrize("reverse", [False, True])
def test_discretised_backward(steps, chunk, reverse):
    for _, mine, theirs in derived(discretised(), steps, chunk, "f64", reverse=reverse):
        close(mine.reshape(theirs.shape), theirs)
