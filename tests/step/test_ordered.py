"""Nodes for which order along an axis matters: their meaning, and their derivatives."""

import pytest
import torch

from tenfuse.emit.cpp import SSE, emit
from tenfuse.plan.kernel import Kernel
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import (
    Builder,
    CarrySpec,
    OutSpec,
    Position,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
    validate,
)
from tenfuse.step.show import formula
from tenfuse.step.tensors import rename

SIZES = dict(t=5, s=5, i=3, j=3, b=2, v=4)


def program(b, *outs):
    axes = [tuple(sorted(b.axes[o])) for o in outs]
    made = StepProgram(tuple(b.nodes), SIZES, (), tuple(map(OutSpec, outs, axes)))
    validate(made)
    return made


def streams(made):
    torch.manual_seed(0)
    shapes = made.inputs("stream")
    return {i: torch.randn([SIZES[a] for a in axes], dtype=torch.float64) for i, axes in shapes.items()}


def value(made, xs):
    return interpret.step(made, {("stream", i): x for i, x in xs.items()})[1]


def gradient(made):
    """``(derived, autograd's)`` gradients of every stream."""
    xs = {i: x.requires_grad_() for i, x in streams(made).items()}
    found = value(made, xs)
    seeds = [torch.randn_like(f) for f in found]
    want = torch.autograd.grad(
        sum((f * g).sum() for f, g in zip(found, seeds, strict=True)), list(xs.values())
    )
    back = adjoint(made, list(xs), [])
    inputs = {("stream", i): x.detach() for i, x in xs.items()}
    inputs |= {("stream", len(xs) + j): g for j, g in enumerate(seeds)}
    got = interpret.step(back.program, inputs)[1]
    return [got[back.streams[i]] for i in xs], want


def lower(b, ref):
    """Strictly below the diagonal of t and s."""
    below = b.call("gt", b.add(Position("t")), b.add(Position("s")))
    return b.call("where", below, ref, b.const(0.0))


def scans():
    for reverse in (False, True):
        for decay in (("t", "b"), ("b",), ()):
            for arg in (("t", "b", "v"), ("v",), ()):
                b = Builder()
                d, x = b.input("stream", 0, decay), b.input("stream", 1, arg)
                yield program(b, b.add(Scan("t", d, x, reverse)))
        for transpose in (False, True):
            for decay in (("t", "b", "i", "j"), ("i", "j")):
                for arg in (("t", "i", "v"), ("b",)):
                    b = Builder()
                    d, x = b.input("stream", 0, decay), b.input("stream", 1, arg)
                    yield program(b, b.add(Scan("t", d, x, reverse, ("i",), ("j",), transpose)))
        for ring in ("max-plus", "min-plus", "log-plus"):
            b = Builder()
            d, x = b.input("stream", 0, ("t", "b")), b.input("stream", 1, ("t", "b", "v"))
            yield program(b, b.add(Scan("t", d, x, reverse, semiring=ring)))


def solves():
    for transpose in (False, True):
        for arg in (("t", "v"), ("b", "t"), ("v",)):
            b = Builder()
            matrix = lower(b, b.input("stream", 0, ("b", "t", "s")))
            yield program(b, b.add(Solve(matrix, b.input("stream", 1, arg), ("t",), ("s",), transpose)))
        b = Builder()
        matrix = lower(b, b.input("stream", 0, ("t", "i", "s", "j")))
        yield program(
            b, b.add(Solve(matrix, b.input("stream", 1, ("t", "i", "v")), ("t", "i"), ("s", "j"), transpose))
        )


def others():
    b = Builder()
    x = b.input("stream", 0, ("t", "v"))
    twice = b.call("mul", x, b.call("sin", x))
    yield program(
        b, b.add(Shift(twice, "t", 1, 0.5)), b.add(Shift(twice, "t", -1)), b.add(Shift(x, "b", 1, 2.0))
    )
    moved = b.rename(twice, {"t": "s"})
    pairs = b.contract(b.call("mul", twice, moved), "v")
    yield program(b, pairs, b.call("add", moved, b.add(Position("v"))))
    swapped = b.rename(pairs, {"t": "s", "s": "t"})
    yield program(b, b.call("mul", swapped, b.call("add", pairs, b.rename(swapped, {"v": "i"}))))


@pytest.mark.parametrize("made", [*scans(), *solves(), *others()])
def test_derivatives(made):
    for got, want in zip(*gradient(made), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_a_scan_of_gates_at_zero_has_a_gradient():
    b = Builder()
    gate = b.input("stream", 0, ("t",))
    first = b.call("eq", b.add(Position("t")), b.const(0.0))
    made = program(b, b.add(Scan("t", gate, b.call("where", first, gate, b.const(0.0)))))
    x = torch.tensor([2.0, 0.0, 3.0, 0.0, 5.0], dtype=torch.float64)
    assert value(made, {0: x})[0].tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]
    back = adjoint(made, [0], [])
    got = interpret.step(back.program, {("stream", 0): x, ("stream", 1): torch.ones(5, dtype=torch.float64)})[
        1
    ]
    assert got[0].tolist() == [1.0, 8.0, 0.0, 0.0, 0.0]


def test_the_first_position_of_a_scan_reads_no_decay():
    b = Builder()
    made = program(b, b.add(Scan("t", b.input("stream", 0, ("t",)), b.input("stream", 1, ("t",)))))
    decay = torch.tensor([float("nan"), 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert value(made, {0: decay, 1: torch.ones(5, dtype=torch.float64)})[0].tolist() == [1, 2, 3, 4, 5]


def test_a_solve_is_the_inverse():
    made = next(solves())
    xs = streams(made)
    z = value(made, xs)[0]
    matrix = torch.eye(5) + xs[0].tril(-1)
    torch.testing.assert_close(matrix @ z, xs[1].expand(2, 5, 4))


def test_names_change_at_once():
    b = Builder()
    x = b.call("exp", b.input("stream", 0, ("t", "s")))
    there = b.rename(x, {"t": "s", "s": "t"})
    assert b.axes[there] == {"t", "s"}
    assert b.rename(there, {"t": "s", "s": "t"}) == x
    assert b.rename(x, {"v": "i"}) == x
    chain = b.rename(b.rename(x, {"t": "i"}), {"i": "j", "s": "t"})
    assert b.nodes[chain] == Rename(x, (("s", "t"), ("t", "j")))
    inner = b.add(Scan("t", x, x))
    assert b.nodes[rename(b, inner, {"s": "v"})] == Rename(inner, (("s", "v"),))


def test_axes_along_which_order_matters_are_not_parallel():
    b = Builder()
    h = b.input("carry", 0, ("b", "v"))
    x = b.input("stream", 0, ("t", "b", "v"))
    y = b.call("add", h, b.contract(b.add(Scan("t", x, x)), "t"))
    made = StepProgram(tuple(b.nodes), SIZES, (CarrySpec(("b", "v"), y, ("b", "v")),), ())
    validate(made)
    assert "t" not in made.parallel_axes() and {"b", "v"} <= made.parallel_axes()
    assert "scan" in formula(made)
    with pytest.raises(ValueError, match="no C\\+\\+ is generated for Scan"):
        emit(Kernel(made, ()), SSE)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (lambda b, x: Rename(x, (("t", "b"),)), "one name"),
        (lambda b, x: Scan("t", x, x, rows=("v",), cols=("j",)), "not square"),
        (lambda b, x: Solve(x, x, ("t",), ("b",)), "not square"),
        (lambda b, x: Scan("t", x, x, rows=("t",), cols=("s",), semiring="max-plus"), "semiring"),
        (lambda b, x: Scan("t", x, x, semiring="plus-plus"), "semiring"),
    ],
)
def test_what_is_malformed_is_named(node, message):
    b = Builder()
    x = b.input("stream", 0, ("t", "b"))
    b.add(node(b, x))
    with pytest.raises(ValueError, match=message):
        validate(StepProgram(tuple(b.nodes), SIZES, (), ()))
