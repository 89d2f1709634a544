"""What the kernel makes itself: it reads nothing that is made behind it, and views of streams in place."""

from __future__ import annotations

import torch

from reference import delta
from tenfuse.backend import explain_backend
from tenfuse.testing import assert_equivalent

B, T, D = 2, 6, 4


def test_behind_the_state_what_has_no_rule_stays_outside_with_all_that_reads_it():
    def f(k, x, lamb):
        h, out = torch.zeros(B, D, D), []
        for t in range(T):
            h = 0.5 * h + k[:, t].unsqueeze(-1) * k[:, t].unsqueeze(-2)
            y = x[:, t] / (torch.diagonal(h, dim1=-2, dim2=-1) + lamb)
            r = x[:, t] - (y.unsqueeze(-1) * h).sum(-2)
            out.append(y + r * (r * r).sum(-1, keepdim=True))
        return torch.stack(out, 1), h

    torch.manual_seed(0)
    found = assert_equivalent(f, torch.randn(B, T, D), torch.randn(B, T, D), torch.rand(D) + 1)
    assert [loop.status for loop in found.loops] == ["fused"]


def test_batches_that_end_one_after_another():
    sizes = [3, 3, 3, 3, 2, 2, 2, 1, 1, 1]

    def f(packed, w):
        h, out, at = torch.zeros(3, D), [], 0
        for n in sizes:
            new = torch.tanh(h[:n] * w + packed[at : at + n])
            h, at = torch.cat([new, h[n:]], 0), at + n
            out.append(new)
        return torch.cat(out), h

    torch.manual_seed(0)
    found = assert_equivalent(f, torch.randn(sum(sizes), D), torch.randn(D))
    assert [loop.status for loop in found.loops] == ["fused"] * 3


def test_views_of_a_stream_are_no_copies():
    """``einsum`` merges axes of its operands, which over all steps at once may take a tensor of its own."""
    loops, graphs = [], []
    torch._dynamo.reset()
    inputs = delta.example_inputs(2, 3, 9)
    torch.compile(delta.deltanet_einsum, backend=explain_backend(loops, graphs))(*inputs)
    assert [loop.status for loop in loops] == ["fused"]
    assert not any(name in graphs[-1][1] for name in ("aten.view", "aten.clone", "aten.permute"))
