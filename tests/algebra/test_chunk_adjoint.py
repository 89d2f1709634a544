"""The adjoints of chunk programs against autograd through the loop."""

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.step import interpret
from tests.algebra.chunks import GATES, Errors, draw, exact, gradients, grown
from tests.algebra.loops import LOOPS, program_of


def wanted(program, inputs, steps, seeds, dtype):
    carries = [c.to(dtype, copy=True) for c in inputs[0]]
    streams, constants = ({i: x.to(dtype, copy=True) for i, x in y.items()} for y in inputs[1:])
    leaves = grown(carries, streams, constants)
    finals, ys = interpret.scan(program, carries, streams, constants, steps, dtype=dtype)
    loss = sum((v * g.to(dtype)).sum() for v, g in zip((*finals, *ys), (*seeds[0], *seeds[1]), strict=True))
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


def agrees(program, recurrence, gates, kind, lengths):
    errors = Errors()
    for C, T in lengths:
        inputs = draw(program, T, gates, kind)
        finals, ys = interpret.scan(program, *inputs, T)
        seeds = [torch.randn_like(v) for v in finals], [torch.randn_like(v) for v in ys]
        want = wanted(program, inputs, T, seeds, torch.float64)
        plain = wanted(program, inputs, T, seeds, torch.float32)
        with torch.no_grad():
            got = gradients(program, recurrence, C, inputs, T, seeds, torch.float64, block=C // 2)
            exact(list(got), list(want))
            got = gradients(program, recurrence, C, inputs, T, seeds, torch.float32, block=C // 2)
            errors.add(got, want, plain)
    errors.check()


@pytest.mark.parametrize("name", LOOPS)
def test_is_the_gradient_of_the_loop(name):
    program, gates = program_of(name)
    agrees(program, analyse(program), gates, "zero", ((4, 3), (4, 11)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("name", LOOPS)
def test_whatever_the_gates_and_the_chunk(name, kind):
    program, gates = program_of(name)
    if kind == "ordinary" or gates:
        agrees(program, analyse(program), gates, kind, ((4, 1), (4, 11), (16, 15), (16, 35)))
