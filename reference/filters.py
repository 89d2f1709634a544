"""Recursive filters: a biquad in two forms, and the leaky integrator of a spiking neuron.

Takes x [B, T]; leaves y [B, T].
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.case import Case, normal


def biquad(x: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Direct form I: y_t = b0 x_t + b1 x_{t-1} + b2 x_{t-2} - a1 y_{t-1} - a2 y_{t-2}."""
    x1 = x2 = y1 = y2 = torch.zeros_like(x[:, 0])
    ys = []
    for t in range(x.shape[1]):
        y = b[0] * x[:, t] + b[1] * x1 + b[2] * x2 - a[0] * y1 - a[1] * y2
        x2, x1 = x1, x[:, t]
        y2, y1 = y1, y
        ys.append(y)
    return torch.stack(ys, dim=1)


def biquad_transposed(x: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Transposed direct form II: two states that couple through the output."""
    s1, s2 = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        y_t = b[0] * x[:, t] + s1
        s1, s2 = b[1] * x[:, t] - a[0] * y_t + s2, b[2] * x[:, t] - a[1] * y_t
        y[:, t] = y_t
    return y


def leaky(x: Tensor, tau: float = 2.0) -> Tensor:
    """v <- v + (x - v) / tau, the membrane potential without spikes."""
    v = 0.0
    out = []
    for t in range(x.shape[1]):
        v = v + (x[:, t] - v) / tau
        out.append(v)
    return torch.stack(out, dim=1)


def example_inputs(batch: int = 2, steps: int = 64) -> tuple[Tensor, ...]:
    """x, b, a: a resonance at radius 0.9."""
    return normal(batch, steps), torch.tensor([0.2, 0.1, -0.3]), torch.tensor([-1.2, 0.81])


CASES = (
    Case("filters/biquad", lambda steps: (biquad, example_inputs(2, steps))),
    Case(
        "filters/biquad-transposed",
        lambda steps: (biquad_transposed, example_inputs(2, steps)),
        "filters/biquad",
    ),
    Case("filters/leaky", lambda steps: (leaky, (normal(2, steps),))),
)
