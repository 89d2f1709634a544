"""Functions that say their own slope, in the step and beside it: fused, with that very gradient."""

from __future__ import annotations

import math

import torch
from fates import FUSED, fates, loops
from torch import nn

B, T, D = 2, 7, 4
X = (B, T, D)


class Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, sharpness):
        ctx.save_for_backward(v)
        ctx.sharpness = sharpness
        return (v >= 0).float()

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        return g.clone() / (math.pi * v * ctx.sharpness).pow_(2).add_(1), None


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        back = g * (1 - v.abs())
        back[v.abs() > 1] = 0
        return back


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.scale * g, None


class Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        share = torch.sigmoid(a - b)
        return g * share, torch.where(b > 2, 0.0, g * (1 - share))


class Square(torch.autograd.Function):
    """A gradient that is no multiple of the result's."""

    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, g):
        return g * g.abs()


class Mixed(torch.autograd.Function):
    """A gradient that is a sum over entries."""

    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, g):
        return g.cumsum(-1)


def neuron(spike):
    def f(x):
        v, spikes, levels = torch.zeros(B, D), [], []
        for t in range(T):
            v = v + 0.5 * (2 * x[:, t] - v)
            s = spike(v - 1.0)
            v = v * (1 - s)
            spikes.append(s)
            levels.append(v)
        return torch.stack(spikes, 1), torch.stack(levels, 1)

    return f


def test_a_spike_with_a_soft_slope():
    assert fates(neuron(lambda v: Threshold.apply(v, 2.0)), X) == FUSED


def test_a_slope_that_is_masked_in_place():
    assert fates(neuron(Triangle.apply), X) == FUSED


def test_recurrent_spikes_of_two_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3)

        def forward(self, x):
            v, s, u, out = torch.zeros(B, D), torch.zeros(B, D), torch.zeros(B, 3), []
            for t in range(T):
                v = 0.9 * v * (1 - s.detach()) + self.first(3 * x[:, t]) + self.again(s)
                s = Threshold.apply(v - 0.5, 1.0)
                u = 0.8 * u + self.last(s)
                out.append(u)
            return torch.stack(out, 1)

    assert fates(Net(), X) == FUSED


def test_a_rounding_with_slope_one():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = Rounded.apply(0.7 * h + x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, X) == FUSED


def test_a_gradient_turned_round_is_no_linear_recurrence():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = 0.7 * Reversed.apply(h, 0.5) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    (loop,) = loops(f, X)
    assert (loop.status, loop.form) == ("fused", "nonlinear")


def test_beside_the_state():
    def f(x, w):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = 0.7 * h + Rounded.apply(x[:, t]) * Threshold.apply(w, 3.0)
            out.append(Triangle.apply(h.cumsum(-1)))
        return torch.stack(out, 1)

    assert fates(f, X, (D,)) == FUSED


def test_slopes_by_two_operands():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = Both.apply(0.8 * h, x[:, t]) - 0.1 * x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, X) == FUSED


def test_infinite_and_undefined_states():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = 0.5 * h * (1 - Threshold.apply(h - 1, 1.0)) + x[:, t]
            out.append(Threshold.apply(h, 1.0))
        return torch.stack(out, 1)

    x = torch.randn(*X)
    x[0, 2, 0], x[1, 3, 1], x[0, 4, 2] = math.inf, math.nan, -math.inf
    assert fates(f, inputs=[x], grad=False) == FUSED


def test_a_gradient_that_is_no_multiple_is_kept():
    for function in (Square, Mixed):

        def f(x, apply=function.apply):
            h, out = torch.zeros(B, D), []
            for t in range(T):
                h = apply(h) + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

        assert set(fates(f, X)) == {"TF207"}


def test_another_slope_at_one_step():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = 0.5 * h + Threshold.apply(h - 1 + x[:, t], 1.0 if t != 3 else 2.0)
            out.append(h)
        return torch.stack(out, 1)

    assert all(loop.steps <= 4 for loop in loops(f, X) if loop.status == "fused")
