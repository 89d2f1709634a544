"""A kernel that has no text on its tiles: the loop is planned on others before it goes step by step."""

import torch

from benchmarks.aot import inputs
from benchmarks.aot_loops import LOOPS
from tenfuse.backend import explain_backend


def test_a_product_over_too_many_axes_gets_smaller_tiles():
    """The adjoint of two erasing vectors at head size 128 has one in the tiles that are estimated to fit."""
    case = next(c for c in LOOPS if c.name == "two-vector erase")
    given = [x.requires_grad_() for x in inputs(case, case.sizes[-1], torch.bfloat16)]
    loops = []
    torch._dynamo.reset()
    torch.compile(case.run, backend=explain_backend(loops, target="triton"))(*given)
    assert [(loop.status, loop.algorithm) for loop in loops] == [("fused", "chunked")]
