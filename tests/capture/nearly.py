"""What near-misses share: inputs, and what became of their loops."""

from __future__ import annotations

from spelled import inputs

B, T, D = 2, 8, 3


def x_h():
    return inputs((B, T, D), (B, D))


def steps(harness):
    return [loop.steps for loop in harness.loops]


def codes(harness):
    return [kept.refusal.code for kept in harness.kept]
