"""A length and a batch that were dynamic before the loop: other calls find the loop that the first found."""

from __future__ import annotations

import pytest
import torch

import tenfuse

B, D = 2, 4


def backwards(x):
    steps = x.shape[1]
    h, out = torch.zeros(x.shape[0], D), []
    for t in range(steps):
        h = 0.6 * h + x[:, steps - 1 - t] * (steps - t)
        out.append(h)
    return torch.stack(out, 1)


def forward_and_backward(x):
    steps = x.shape[1]
    out = x.new_zeros(2, x.shape[0], steps, D)
    a = b = torch.zeros(x.shape[0], D)
    for t in range(steps):
        a, b = torch.tanh(a + x[:, t]), torch.tanh(b + x[:, steps - t - 1])
        out[0, :, t], out[1, :, steps - 1 - t] = a, b
    return out, steps + x.shape[0]


def decoder(x):
    table = torch.linspace(-1, 1, 5 * D).view(5, D)
    token, rows, out = torch.zeros(x.shape[0], dtype=torch.long), torch.arange(x.shape[0]), []
    for t in range(x.shape[1]):
        scores = table[token] @ table.t() + x[rows, t].sum(1, True) * torch.arange(5.0)
        token = scores.argmax(-1)
        out.append(scores)
    return torch.stack(out, 1), token


@pytest.mark.parametrize("f", [backwards, forward_and_backward, decoder])
def test_other_lengths_and_batches(f):
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled = torch.compile(f, backend="tenfuse", options={"inner": "eager"})
    for steps, batch in ((9, B), (7, B), (12, 3), (12, 5)):
        x = torch.randn(batch, steps, D)
        before = len(tenfuse.reports())
        torch.testing.assert_close(compiled(x), f(x))
        for report in tenfuse.reports()[before:]:
            assert [loop.status for loop in report.loops] == ["fused"], report.loops[0].reason
