"""Chunk programs of random steps: right, gradients too, or none."""

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import Unchunkable
from tenfuse.step import interpret
from tests.algebra.chunks import draw, gradients, run
from tests.algebra.random_steps import draw as random_step
from tests.algebra.test_chunk_adjoint import wanted

T, C, BLOCK = 11, 4, 2


def near(got, want):
    """Up to rounding of the largest entry of all; what overflows in the loop is not compared."""
    scale = max([1.0, *(x for w in want for x in w[w.isfinite()].abs().flatten().tolist())])
    for g, w in zip(got, want, strict=True):
        there = w.isfinite()
        torch.testing.assert_close(g[there], w[there], atol=1e-9 * scale, rtol=1e-7)


def tried(seed):
    """Whether the step has a chunk program; then it is right."""
    program = random_step(seed)
    recurrence = analyse(program)
    inputs = draw(program, T, seed=seed)
    try:
        finals, ys = run(program, recurrence, C, *inputs, T, torch.float64, block=BLOCK)
    except Unchunkable:
        return False
    states, outs = interpret.scan(program, *inputs, T)
    near([*finals, *ys], [*states, *outs])
    # The interpreter has no gradient where truth values are all that leaves, and none to cut.
    names = {getattr(n, "fn", "") for n in program.nodes}
    if names & {"cut", "logical_or", "logical_and"} or not all(v.isfinite().all() for v in (*states, *outs)):
        return True
    seeds = [torch.randn_like(v) for v in states], [torch.randn_like(v) for v in outs]
    want = wanted(program, inputs, T, seeds, torch.float64)
    with torch.no_grad():
        near(gradients(program, recurrence, C, inputs, T, seeds, torch.float64, block=BLOCK), want)
    return True


def test_some_random_steps():
    assert sum(tried(seed) for seed in range(80)) > 40


@pytest.mark.parametrize("seed", [1177, 2150])
def test_carries_coupled_in_another_semiring(seed):
    """Steps for which products of small matrices once gave wrong chunks."""
    tried(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many_random_steps(block):
    assert sum(tried(seed) for seed in range(1000 + 100 * block, 1100 + 100 * block)) > 40
