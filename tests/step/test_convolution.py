"""Convolutions of a state: windows of one entry, whole windows, windows that slide, over how much."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import tenfuse
from tenfuse.testing import assert_equivalent

B, T, D = 2, 6, 4
FUSED = ["fused"]


def fates(f, *shapes):
    torch.manual_seed(0)
    found = assert_equivalent(f, *(torch.randn(*s) for s in shapes))
    return [loop.code or loop.status for loop in found.loops]


def recurrent(step, *shapes):
    def f(x, *weights):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(T):
            h = torch.tanh(step(h, *weights)) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    return fates(f, *shapes)


def test_one_entry():
    assert recurrent(F.conv2d, (B, T, D, 3, 5), (D, D, 1, 1), (D,)) == FUSED
    assert recurrent(F.conv1d, (B, T, D, 3), (D, D, 1)) == FUSED


def test_one_entry_in_groups():
    step = lambda h, w, b: F.conv1d(h, w, b, groups=2)  # noqa: E731
    assert recurrent(step, (B, T, D, 3), (D, D // 2, 1), (D,)) == FUSED


def test_the_whole_window():
    def f(x, w, b):
        past, out = torch.zeros(B, D, 3), []
        for t in range(T):
            h = torch.tanh(F.conv1d(past, w, b, groups=D))
            past = torch.cat([past[:, :, 1:], h + x[:, t].unsqueeze(-1)], -1)
            out.append(h)
        return torch.stack(out, 1), past

    assert fates(f, (B, T, D), (D, 1, 3), (D,)) == FUSED


def test_one_entry_along_one_dimension_and_all_along_another():
    step = lambda h, w: F.conv2d(h, w).expand(-1, -1, 3, -1)  # noqa: E731
    assert recurrent(step, (B, T, D, 3, 2), (D, D, 3, 1)) == FUSED


def test_windows_that_slide():
    step = lambda h, w: F.conv1d(h, w, padding=1)  # noqa: E731
    assert recurrent(step, (B, T, D, 5), (D, D, 3)) == FUSED


def test_windows_with_gaps_in_groups():
    step = lambda h, w, b: F.conv1d(h, w, b, padding=2, dilation=2, groups=2)  # noqa: E731
    assert recurrent(step, (B, T, D, 7), (D, D // 2, 3), (D,)) == FUSED


def test_windows_over_a_plane_around_its_edges():
    step = lambda h, w: F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w)  # noqa: E731
    assert recurrent(step, (B, T, 1, 3, 4), (1, 1, 3, 3)) == FUSED


def test_strides():
    step = lambda h, w: F.conv1d(h, w, stride=2).repeat(1, 1, 2)  # noqa: E731
    assert recurrent(step, (B, T, D, 4), (D, D, 1)) == FUSED


def test_a_convolutional_memory():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.gates = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            h = c = x.new_zeros(B, 2, 3, 3)
            out = []
            for t in range(T):
                i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                out.append(h)
            return torch.stack(out, 1), c

    assert fates(Cell(), (B, T, 1, 3, 3)) == FUSED


def test_a_nan_stays_in_its_windows():
    def f(x, w):
        h, out = x[0], []
        for t in range(1, 4):
            h = torch.tanh(F.conv1d(h, w, padding=1)) + x[t]
            out.append(h)
        return torch.stack(out)

    x, w = torch.randn(4, 1, 1, 9), torch.randn(1, 1, 3)
    x[0, 0, 0, 2] = torch.nan
    compiled = torch.compile(f, backend="tenfuse", options={"inner": "eager"})
    torch.testing.assert_close(compiled(x, w), f(x, w), equal_nan=True)
    assert [loop.status for loop in tenfuse.reports()[-1].loops] == FUSED


def test_windows_over_so_much_that_the_operator_is_faster():
    step = lambda h, w: F.conv1d(h, w, padding=1)  # noqa: E731
    assert recurrent(step, (B, T, D, 65), (D, D, 3)) == ["TF202"]


def test_a_weight_that_the_state_decides():
    step = lambda h: F.conv1d(h, h[:1, :, :3], padding=1).expand(-1, D, -1)  # noqa: E731
    assert recurrent(step, (B, T, D, 5)) == ["TF202"]


def test_entries_of_the_state_in_another_order():
    def f(x, order):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h[:, order]) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    torch.manual_seed(0)
    found = assert_equivalent(f, torch.randn(B, T, D), torch.tensor([2, -1, 0, 0]))
    assert [loop.code or loop.status for loop in found.loops] == FUSED


def test_attention_among_the_entries_of_the_state():
    step = lambda h, k, v: F.scaled_dot_product_attention(h, k, v)  # noqa: E731
    assert recurrent(step, (B, T, 2, 3, D), (B, 2, 5, D), (B, 2, 5, D)) == FUSED
