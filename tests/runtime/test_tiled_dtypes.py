"""Gradients of invariants on tiles, where their factors have two dtypes."""

import pytest
import torch

pytest.importorskip("triton.language")
from tenfuse.runtime.tiles import interpreting

pytestmark = pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU")


def gru(x, w, wn):
    h, out = torch.zeros_like(x[:, 0, 0]), []
    for t in range(x.shape[1]):
        r = torch.sigmoid(x[:, t, 0] + h @ w)
        n = torch.tanh(x[:, t, 1] + r * (h @ wn))
        h = h + r * (n - h)
        out.append(h)
    return torch.stack(out, 1)


def test_weights_of_a_bfloat16_loop_have_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 2, 4), (4, 4), (4, 4))
    exact = [torch.randn(s, generator=generator).bfloat16().double().requires_grad_() for s in shapes]
    inputs = [x.detach().bfloat16().requires_grad_() for x in exact]
    options = {"strict": True, "inner": "eager", "target": "triton"}
    fused = torch.compile(gru, backend="tenfuse", options=options, dynamic=False)
    fused(*inputs).float().sum().backward()
    gru(*exact).sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        error = (mine.grad.double() - theirs.grad).abs().max()
        assert error <= 0.03 * theirs.grad.abs().max(), float(error)
