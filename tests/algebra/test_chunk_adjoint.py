"""The adjoints of chunk programs against autograd through the loop."""

import pytest
import torch

from tenfuse.step import interpret
from tests.algebra.chunks import GATES, Errors, draw, gradients, grown
from tests.algebra.drafts import DRAFTS


def wanted(program, inputs, steps, seeds, dtype):
    carries = [c.to(dtype, copy=True) for c in inputs[0]]
    streams, constants = ({i: x.to(dtype, copy=True) for i, x in y.items()} for y in inputs[1:])
    leaves = grown(carries, streams, constants)
    finals, ys = interpret.scan(program, carries, streams, constants, steps, dtype=dtype)
    loss = sum((v * g.to(dtype)).sum() for v, g in zip((*finals, *ys), (*seeds[0], *seeds[1]), strict=True))
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("name", DRAFTS)
def test_is_the_gradient_of_the_loop(name, gates):
    draft = DRAFTS[name]()
    program, recurrence = draft.program(), draft.recurrence()
    errors = Errors()
    for C, T in ((4, 1), (4, 11), (16, 16), (16, 35), (16, 15)):
        inputs = draw(program, T, draft.gates, gates)
        finals, ys = interpret.scan(program, *inputs, T)
        seeds = [torch.randn_like(v) for v in finals], [torch.randn_like(v) for v in ys]
        want = wanted(program, inputs, T, seeds, torch.float64)
        plain = wanted(program, inputs, T, seeds, torch.float32)
        with torch.no_grad():
            for dtype in (torch.float32, torch.float64):
                got = gradients(program, recurrence, C, inputs, T, seeds, dtype, block=4)
                if dtype == torch.float64:
                    torch.testing.assert_close(list(got), list(want), atol=1e-11, rtol=1e-9)
                else:
                    errors.add(got, want, plain)
    errors.check()
