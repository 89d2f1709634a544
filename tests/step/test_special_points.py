"""Derivatives where torch has to choose one: on bounds, at ties, at zero, against NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tenfuse.testing import assert_equivalent

POINTS = (0.0, -0.0, 1.0, -1.0, 0.5, 6.0, -3.0, 3.0, 1.5, -1.5, 0.75, 20.0, -20.0, 1e-8)


def at_the_points(*functions):
    """The state of every function is the function of a state that runs through the points."""

    def f(x):
        h, states = torch.zeros(1, len(POINTS)), [torch.zeros(1, len(POINTS)) for _ in functions]
        for t in range(x.shape[1]):
            h = h * 0.0 + x[:, t]
            states = [0.5 * s + call(h) * (t + 1.0) for s, call in zip(states, functions, strict=True)]
        return states

    points = torch.tensor(POINTS)
    x = torch.stack([points, points.flip(0), points.roll(5), points.roll(9)])[None]
    (loop,) = assert_equivalent(f, x.contiguous()).loops
    assert loop.status == "fused", loop.reason


def test_bounds():
    at_the_points(F.hardtanh, F.relu6, F.hardsigmoid, F.hardswish, lambda h: torch.clamp(h, -1.0, 1.0))


def test_zero():
    at_the_points(torch.sinc, torch.abs, F.relu, F.softshrink, lambda h: torch.maximum(h, -h))


def test_what_a_division_leaves():
    at_the_points(lambda h: h % 1.5, lambda h: torch.fmod(h, 0.75), lambda h: torch.remainder(h, -0.5))


def test_phase_of_an_oscillator():
    def f(w):
        phase, out = torch.zeros(2, 3), []
        for t in range(w.shape[1]):
            phase = (phase + w[:, t]) % (2 * math.pi)
            out.append(torch.sin(phase))
        return torch.stack(out, 1)

    torch.manual_seed(0)
    (loop,) = assert_equivalent(f, torch.rand(2, 20, 3) * 2).loops
    assert loop.status == "fused", loop.reason


def test_deviation_of_a_state_that_does_not_vary():
    def f(x):
        h, out = torch.zeros(2, 4), []
        for t in range(x.shape[1]):
            h = h.std(-1, keepdim=True) + 0.1 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    torch.manual_seed(0)
    (loop,) = assert_equivalent(f, torch.randn(2, 6, 4)).loops
    assert loop.status == "fused", loop.reason


@pytest.mark.parametrize("choose", [torch.maximum, torch.minimum])
def test_against_nan_both_get_the_gradient(choose):
    def f(x):
        h, out = torch.zeros(2, 4), []
        for t in range(x.shape[1]):
            h = choose(h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    torch.manual_seed(0)
    x = torch.randn(2, 6, 4)
    x[0, 3, 1], x[1, 2, 2], x[1, 4, 0] = math.nan, math.inf, -math.inf
    (loop,) = assert_equivalent(f, x).loops
    assert (loop.status, loop.form) == ("fused", "semiring")
