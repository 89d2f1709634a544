"""Every kernel, forward and backward, against the loop in fp64, at sizes used in practice."""

import pytest
import torch
from gpuharness import STEPS, check, sized

from reference.steps import looped

DTYPES = [torch.float32, torch.bfloat16]
IN_CHUNKS = ("gla", "gated delta")
WIDE = [(8, 4096, 8, 128), (8, 4096, 2, 256), (2, 4096, 64, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_every_step(name, dtype):
    check(STEPS[name], sized(8, 4096, 4, 64), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["gated", "selective", "gla", "gated delta"])
def test_long(name, dtype):
    check(STEPS[name], sized(1, 32768, 4, 64), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", WIDE, ids=str)
@pytest.mark.parametrize("name", IN_CHUNKS)
def test_heads(name, size, dtype):
    check(STEPS[name], sized(*size), dtype)


@pytest.mark.parametrize("name", ["gated", "selective", "gated delta", "resonance", "lstm"])
def test_half(name):
    check(STEPS[name], sized(8, 1024, 4, 64), torch.float16)


@pytest.mark.parametrize("name", ["gated", "gla", "gated delta"])
def test_loops_in_python(name):
    """Traced step by step, a ragged last chunk."""
    check(STEPS[name], sized(8, 150, 4, 64), torch.float32, looped)


@pytest.mark.parametrize("steps", [1, 63, 64, 65])
def test_few_steps(steps):
    size = sized(2, 4096, 4, 64)
    algorithm = None if steps >= 8 else "sequential"
    check(
        STEPS["gated delta"], type(size)(2, steps, size.heads, size.dim), torch.float32, algorithm=algorithm
    )
