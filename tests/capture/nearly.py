"""What near-misses share: inputs, and what became of their loops."""

from __future__ import annotations

import torch

B, T, D = 2, 8, 3


def inputs(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*s).requires_grad_() for s in shapes]


def x_h():
    return inputs((B, T, D), (B, D))


def steps(harness):
    return [loop.steps for loop in harness.loops]


def codes(harness):
    return [kept.refusal.code for kept in harness.kept]
