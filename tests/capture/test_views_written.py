"""States written through views that are no slices: turned, reshaped, and what is kept, with its line."""

from __future__ import annotations

import torch
from fates import FUSED, fates, loops

B, T, D = 2, 6, 4
X = (B, T, D)


def test_turned():
    """The second operation works on what the first returned, which is the view."""

    def f(x):
        h, o = torch.zeros(D, B), []
        for t in range(T):
            h.t().mul_(0.5).add_(x[:, t])
            o.append(h.clone())
        return torch.stack(o), h

    assert fates(f, X) == FUSED


def test_permuted_and_sliced():
    def f(x):
        s, o = torch.zeros(B, 3, D), []
        for t in range(T):
            s.permute(2, 0, 1).mul_(0.5)[..., 1] += x[:, t].t()
            o.append(s.clone())
        return torch.stack(o, 1), s

    assert fates(f, X) == FUSED


def test_flat():
    def f(x):
        h, o = torch.zeros(B, D), []
        for t in range(T):
            h = h * 0.5
            h.view(-1).add_(x[:, t].reshape(-1))
            o.append(h)
        return torch.stack(o, 1)

    assert fates(f, X) == FUSED


def test_a_dimension_taken_apart():
    def f(x):
        h, o = torch.zeros(B, D), []
        for t in range(T):
            h.view(B, 2, 2)[:, 0].copy_(x[:, t, :2] + h[:, 2:])
            h.mul_(0.9)
            o.append(h.clone())
        return torch.stack(o, 1)

    assert fates(f, X) == FUSED


def _line(f, *shapes):
    """The code of the one kept loop, and how far below the definition its line is."""
    (loop,) = loops(f, *shapes)
    return loop.code, int(loop.where.rpartition(":")[2]) - f.__code__.co_firstlineno


def test_a_diagonal_beside_the_main_one_is_kept_at_its_line():
    def f(x):
        s, o = torch.zeros(B, D, D), []
        for t in range(T):
            s = s * 0.9 + x[:, t, :, None]
            s.diagonal(1, dim1=1, dim2=2).add_(1.0)
            o.append(s.sum(1))
        return torch.stack(o, 1)

    assert _line(f, X) == ("TF207", 4)


def test_an_integer_divided_by_the_state_is_kept_at_its_line():
    def f(x):
        h, n = torch.zeros(B, D), torch.zeros(B, dtype=torch.long)
        for t in range(T):
            h = h * 0.9 + x[:, t]
            n = n // ((h[:, 0] > 0).long() + 1)
        return h, n

    assert _line(f, X) == ("TF202", 4)
