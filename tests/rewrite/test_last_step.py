"""Values that only the last step's are asked for: computed once, from the final states."""

import re

import pytest
import torch

import tenfuse


def root(x):
    h = y = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = h + x[:, t]
        y = torch.sqrt(h)
    return y


def root_of_an_input(x):
    h = y = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = h * 0.5 + x[:, t]
        y = torch.sqrt(x[:, t]) * h
    return y, h


def inputs_alone(x):
    y = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        y = torch.sqrt(x[:, t])
    return y


def backwards(x):
    h = y = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        h = h + x[:, t]
        y = torch.sqrt(h) * x[:, t]
    return y


def state_before(x):
    h = y = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        y = torch.exp(h)
        h = h * 0.5 + x[:, t]
    return y, h


def read(x):
    h, y = torch.zeros(x.shape[0], x.shape[2], x.shape[2], dtype=x.dtype), None
    for t in range(x.shape[1]):
        h = h * 0.9 + x[:, t, :, None] * x[:, t, None]
        y = (h * x[:, t, None]).sum(-1)
    return y


@pytest.mark.parametrize("steps", [5, 9])
@pytest.mark.parametrize("model", [root, root_of_an_input, inputs_alone, backwards, state_before, read])
def test_infinite_slopes_of_dropped_values_reach_nothing(model, steps):
    x = torch.rand(2, steps, 3, dtype=torch.float64)
    x[:, :3] = 0  # where a square root has an infinite slope
    x = x.flip(1) if model is backwards else x
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    compiled = torch.compile(model, backend="tenfuse", options={"strict": True, "inner": "eager"})
    for run, given in ((compiled, mine), (model, theirs)):
        found = run(given)
        sum(y.sum() for y in (found if isinstance(found, tuple) else (found,))).backward()
    assert [loop.status for loop in tenfuse.reports()[-1].loops] == ["fused"]
    assert torch.isfinite(theirs.grad).all()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_what_is_read_of_the_last_state_alone_is_not_written_at_every_step():
    x = torch.rand(2, 9, 8)
    compiled = torch.compile(read, backend="tenfuse", options={"strict": True, "inner": "eager"})
    torch.testing.assert_close(compiled(x), read(x))
    (loop,) = tenfuse.reports()[-1].loops
    (kernel,) = (text for name, _, text in loop.kernels if name.endswith("forward"))
    assert not re.search(r"^\s*float\* const q\d+ = p\d+ \+ t", kernel, re.MULTILINE)
