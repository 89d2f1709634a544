"""What a test of spellings draws, and what it holds of the loops that are found."""

from __future__ import annotations

import torch

B, T, D = 2, 7, 3


def inputs(*shapes, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(*s).requires_grad_() for s in shapes]


def x_h(t=T):
    return inputs((B, t, D), (B, D))


def found(harness, *want):
    """``want``: (steps, carries) per loop, in source order."""
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == list(want), (
        harness.loops,
        harness.kept,
    )
    assert not harness.kept
    return harness
