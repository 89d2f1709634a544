"""Where values behind the state are made: what the kernel makes reads nothing that is made outside."""

from __future__ import annotations

import torch

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
