"""The adjoint of a step against autograd through the interpreter, in float64."""

import pytest
import torch

from tenfuse.step import interpret
from tenfuse.step.adjoint import Product, Summed, adjoint
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram
from tests.step.steps import STEPS, analysed

T = 3


def _gradient(term, outs, ys, own):
    """One term of an invariant's gradient, from the adjoint's outputs."""
    if isinstance(term, Summed):
        axes = outs[term.out].axes
        extra = [i for i, a in enumerate(axes) if a not in own]
        return ys[term.out].sum(extra) if extra else ys[term.out]
    letters = {a: i + 1 for i, a in enumerate({*outs[term.left].axes, *outs[term.right].axes, *own})}
    left, right = ([0, *(letters[a] for a in outs[i].axes)] for i in (term.left, term.right))
    return torch.einsum(ys[term.left], left, ys[term.right], right, [letters[a] for a in own])


def _states(program, carries, xs, constants, order):
    found = [[] for _ in carries]
    for t in order:
        for row, c in zip(found, carries, strict=True):
            row.append(c)
        inputs = {("carry", i): c for i, c in enumerate(carries)}
        inputs |= {("stream", i): x[t] for i, x in xs.items()} | {
            ("invariant", i): v for i, v in constants.items()
        }
        carries, _ = interpret.step(program, inputs)
    back = [order.index(t) for t in range(T)]
    return {i: torch.stack([row[t] for t in back]) for i, row in enumerate(found)}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_is_the_gradient(name, reverse):
    torch.manual_seed(1)
    step, *inputs = STEPS[name]
    program = analysed(step, *inputs)[2].program

    def random(axes, *lead):
        return (
            torch.rand([*lead, *(program.sizes[a] for a in axes)], dtype=torch.float64) + 0.1
        ).requires_grad_()

    carries = [random(c.axes) for c in program.carries]
    xs = {i: random(axes, T) for i, axes in program.inputs("stream").items()}
    constants = {i: random(axes) for i, axes in program.inputs("invariant").items()}
    finals, ys = interpret.scan(program, carries, xs, constants, T, reverse)
    seeds = [torch.randn_like(v) for v in (*finals, *ys)]
    leaves = [*carries, *xs.values(), *constants.values()]
    loss = sum((v * g).sum() for v, g in zip((*finals, *ys), seeds, strict=True))
    want = torch.autograd.grad(loss, leaves, materialize_grads=True)

    back = adjoint(program, list(xs), list(constants))
    with torch.no_grad():
        order = list(reversed(range(T))) if reverse else list(range(T))
        states = _states(program, carries, xs, constants, order)
        cotangents = {len(xs) + j: g for j, g in enumerate(seeds[len(finals) :])}
        got, outs = interpret.scan(
            back.program, seeds[: len(finals)], {**xs, **cotangents}, constants, T, not reverse, states=states
        )
        got += [outs[back.streams[i]] for i in xs]
        for i, v in constants.items():
            terms = [_gradient(t, back.program.outs, outs, back.axes[i]) for t in back.invariants.get(i, ())]
            got.append(sum(terms, torch.zeros_like(v)))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-10, rtol=1e-9)


def test_weights_of_a_wide_contraction_become_a_matmul():
    step, carries, streams, _ = STEPS["concatenated"]
    wide = [torch.empty(2, 64)], [torch.empty(2, 32)], [torch.empty(96, 64)]
    program = analysed(step, *wide)[2].program
    back = adjoint(program, [], [0, 1])
    assert all(isinstance(t, Product) for terms in back.invariants.values() for t in terms)
    assert carries and streams


def test_cotangents_are_numbered_after_all_streams_of_the_loop():
    """Even where the program reads only some of them."""
    b = Builder()
    h, x = b.input("carry", 0, ("d",)), b.input("stream", 2, ("d",))
    y = b.call("mul", h, x)
    program = StepProgram(tuple(b.nodes), {"d": 3}, (CarrySpec(("d",), y, ("d",)),), (OutSpec(y, ("d",)),))
    assert set(adjoint(program, [2], []).program.inputs("stream")) == {2, 3}
    assert set(adjoint(program, [2], [], given=5).program.inputs("stream")) == {2, 5}
