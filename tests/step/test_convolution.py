"""Convolutions of a state: windows of one entry and whole windows are products, sliding ones are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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


def test_a_window_that_slides():
    step = lambda h, w: F.conv1d(h, w, padding=1)  # noqa: E731
    assert recurrent(step, (B, T, D, 5), (D, D, 3)) == ["TF202"]


def test_strides_and_gaps():
    step = lambda h, w: F.conv1d(h, w, stride=2).repeat(1, 1, 2)  # noqa: E731
    assert recurrent(step, (B, T, D, 4), (D, D, 1)) == ["TF202"]
