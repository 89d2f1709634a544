"""A gate with a slope of its own, in chunks: its gradient is the slope's there too."""

import pytest
import torch

from tenfuse.testing import assert_equivalent

B, T, D = 2, 14, 3


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, g):
        return g * 0.5


def gated(x, g):
    h, out = x.new_zeros(B, D), []
    for t in range(T):
        h = Rounded.apply(torch.sigmoid(g[:, t])) * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def read(x, g):
    h, out = x.new_zeros(B, D), []
    for t in range(T):
        h = torch.sigmoid(g[:, t]) * h + x[:, t]
        out.append(Rounded.apply(h))
    return torch.stack(out, 1)


@pytest.mark.parametrize("loop", [gated, read], ids=lambda f: f.__name__)
@pytest.mark.parametrize("length", [4, 7])
def test_in_chunks(loop, length, chunks_of):
    chunks_of(length)
    torch.manual_seed(0)
    (seen,) = assert_equivalent(loop, torch.randn(B, T, D), torch.randn(B, T, D)).loops
    assert (seen.status, seen.form, seen.algorithm) == ("fused", "elementwise", "scan")
