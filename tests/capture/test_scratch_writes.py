"""Tensors that a step fills slice by slice from what is known without the state: values and gradients."""

from __future__ import annotations

import torch
from fates import FUSED, fates

B, T, D, E = 2, 6, 3, 4
K, V = (B, T, D), (B, T, D, E)


def test_columns_by_a_contraction():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            a = torch.zeros(B, D, D)
            for j in range(D):
                a[..., j] = torch.einsum("bc,b->bc", k[:, t], k[:, t, j])
            s = 0.5 * s + x[:, t]
            out.append(a @ s)
        return torch.stack(out, 1), s

    assert fates(f, K, V) == FUSED


def test_rows_that_multiply_the_state():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            a = torch.zeros(B, D, D)
            a[:, -1] = k[:, t].sin()
            a[:, 0] = k[:, t] * 0.3
            s = a @ s + x[:, t]
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) == FUSED


def test_every_second_column():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            a = torch.ones(B, D, E)
            a[..., ::2] = k[:, t].unsqueeze(-1)
            a[..., 1::2] *= k[:, t].cos().unsqueeze(-1)
            s = torch.tanh(s) * 0.5 + x[:, t] * a
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) == FUSED


def test_diagonal_and_a_mask():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            a = torch.diag_embed(k[:, t])
            a = a.masked_fill_(a > 1, 0.0)
            s = torch.sin(a @ s) + x[:, t]
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) == FUSED


def test_every_second_entry_of_the_state():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            turned = torch.empty_like(s)
            turned[..., ::2] = -s[..., 1::2]
            turned[..., 1::2] = s[..., ::2]
            s = torch.tanh(s * k[:, t, :, None] + turned) + x[:, t]
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) == FUSED


def test_a_strided_slice_that_is_no_column():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            s = s.clone()
            s[..., 1:4:2] = 0.5 * s[..., 0:3:2] + x[:, t, :, :2]
            s[..., 0:3:3] = k[:, t].unsqueeze(-1)
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) in (FUSED, ["TF202"])


def test_memory_read_by_strides_is_kept():
    def f(k, x):
        s, out = torch.zeros(B, D, E), []
        for t in range(T):
            seen = x[:, t].as_strided((B, D, 2), (D * E, E, 1), 0)
            s = torch.tanh(s * k[:, t, :, None]) * seen.sum(-1, keepdim=True) + x[:, t]
            out.append(s)
        return torch.stack(out, 1)

    assert fates(f, K, V) == ["TF202"]
