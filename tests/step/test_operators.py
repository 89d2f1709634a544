"""Operators on the state that were refused once: values, gradients and the form that is found."""

from __future__ import annotations

import torch
from torch import nn

from tenfuse.testing import assert_equivalent

B, T, D = 2, 7, 4


def found(f, *shapes):
    """The one loop, which has to be fused; values and gradients are held against float64."""
    torch.manual_seed(0)
    (loop,) = assert_equivalent(f, *[torch.randn(*s) for s in shapes]).loops
    assert loop.status == "fused", loop.reason
    return loop


def test_bilinear_form_of_the_state():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.form = nn.Bilinear(D, D, D)

        def forward(self, x):
            h, out = x[:, 0], []
            for t in range(T):
                h = self.form(h, x[:, t])
                out.append(h)
            return torch.stack(out, 1)

    assert found(Cell(), (B, T, D)).form == "dense"


def test_cross_product():
    def f(w):
        v, out = w[:, 0], []
        for t in range(T):
            v = v + 0.1 * torch.cross(w[:, t], v, dim=-1)
            out.append(v)
        return torch.stack(out, 1)

    assert found(f, (B, T, 3)).form == "block"


def test_triangles_of_a_state():
    def f(x):
        h, out = torch.ones(B, D, D), []
        for t in range(T):
            h = 0.5 * torch.triu(h @ x[:, t]) + x[:, t]
            out.append(h.tril(-1))
        return torch.stack(out, 1)

    def mask_alone(x):
        h, out = torch.ones(B, D, D), []
        for t in range(T):
            h = torch.tril(h, 1) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert found(f, (B, T, D, D)).form == "dense"
    assert found(mask_alone, (B, T, D, D)).form == "elementwise"


def test_products_of_vectors_made_as_matrices():
    """RWKV-7 as its reference writes it: both outer products by matmul, their views and casts."""

    def f(r, w, k, v, a, b):
        s, out = torch.zeros(B, 2, 5, D), []
        for t in range(T):
            vk = v[:, t].view(B, 2, 5, 1) @ k[:, t].view(B, 2, 1, D)
            ab = a[:, t].view(B, 2, D, 1) @ b[:, t].view(B, 2, 1, D)
            s = s * w[:, t].sigmoid().view(B, 2, 1, D) + s @ ab.float() + vk.float()
            out.append((s.to(dtype=r.dtype) @ r[:, t].view(B, 2, D, 1)).view(B, 2, 5))
        return torch.stack(out, 1)

    keys = (B, T, 2, D)
    loop = found(f, keys, keys, keys, (B, T, 2, 5), keys, keys)
    assert loop.form == "low-rank" and "(w.S)" in loop.formula


def test_every_second_entry_of_a_state():
    """A rotation of neighbours, as rotary embeddings interleave them."""

    def f(x, angle):
        h, out = torch.zeros(B, D), []
        c, s = torch.cos(angle), torch.sin(angle)
        for t in range(T):
            a, b = h[..., ::2], h[..., 1::2]
            h = torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert found(f, (B, T, D), (D // 2,)).form == "block"


def test_sizes_that_are_read_off_the_state():
    """With dynamic shapes every product asks its operands for their sizes, the state too."""

    def f(q, k, v):
        s, out = q.new_zeros(q.shape[0], D, D), []
        for t in range(q.shape[1]):
            n = s.shape[0]
            s = s * 0.9 - s @ (0.1 * k[:, t].view(n, D, 1) @ k[:, t].view(n, 1, D)) + v[:, t].view(n, D, 1)
            out.append((s @ q[:, t].view(n, D, 1)).view(n, D))
        return torch.stack(out, 1)

    def triangle(x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tril(h) * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    torch.manual_seed(0)
    (loop,) = assert_equivalent(f, *[torch.randn(B, T, D) for _ in range(3)], dynamic=True).loops
    assert (loop.status, loop.form) == ("fused", "low-rank"), loop.reason
    (loop,) = assert_equivalent(triangle, torch.randn(B, T, D, D), dynamic=True).loops
    assert loop.code == "TF202"
