"""Buffers and states made like another tensor: conversions that change nothing, and some that do."""

from __future__ import annotations

import torch
from fates import FUSED, fates

B, T, D = 2, 6, 4
X = (B, T, D)


def test_a_buffer_made_like_the_input():
    def f(x, y):
        out, h = torch.zeros(B, T, D).to(x), torch.zeros(B, D).type_as(x)
        for t in range(T):
            h = torch.tanh(h) * y[:, t] + x[:, t]
            out[:, t] = h.view_as(y[:, t])
        return out, h

    assert fates(f, X, X) == FUSED


def test_a_state_changed_in_place_through_a_conversion():
    def f(x):
        h, out = torch.zeros(B, D).to(x).contiguous().float(), []
        for t in range(T):
            h *= 0.5
            h.view(B, D).add_(x[:, t])
            out.append(h.clone())
        return torch.stack(out, 1)

    assert fates(f, X) == FUSED


def test_a_buffer_of_another_dtype():
    def f(x, y):
        out, h = torch.zeros(B, T, D, dtype=torch.float64).to(y), x[:, 0]
        for t in range(T):
            h = h * 0.5 + x[:, t].to(h)
            out[:, t] = h
        return out, h

    assert fates(f, inputs=[torch.randn(*X), torch.randn(*X).double()]) == FUSED


def test_a_detached_view_of_a_buffer_keeps_its_gradient_out():
    def f(x):
        out, h = torch.zeros(B, T, D).to(x), torch.zeros(B, D)
        seen = []
        for t in range(T):
            h = torch.sin(h) + x[:, t]
            out[:, t] = h
            seen.append(out[:, t].detach().clone() * h)
        return out, torch.stack(seen, 1)

    fates(f, X)


def test_a_conjugate_is_no_conversion():
    def f(x):
        h, out = torch.zeros(B, D, dtype=torch.complex64), []
        for t in range(T):
            h = h.conj() * 0.5 + x[:, t]
            h += h.conj().to(x) * 0.1
            out.append(h)
        return torch.view_as_real(torch.stack(out, 1))

    fates(f, inputs=[torch.randn(*X, dtype=torch.complex64)])
