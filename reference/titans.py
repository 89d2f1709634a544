"""Titans: a memory trained at test time by gradient descent with momentum.

Takes q, k, v [B, T, D] and gates eta (momentum), theta (step), alpha (forgetting) [B, T];
leaves y [B, T, D].  With the memory M [B, D, D] and loss l = |M k - v|^2,

    S_t = eta_t S_{t-1} - theta_t grad l(M_{t-1}; x_t),  M_t = (1 - alpha_t) M_{t-1} + S_t,
    y_t = M_t q_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.case import Case, gate, normal, unit


def linear_memory(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
    """A linear memory updated per token: (M, S) are jointly affine."""
    m = q.new_zeros(q.shape[0], v.shape[-1], k.shape[-1])
    s = torch.zeros_like(m)
    ys = []
    for t in range(q.shape[1]):
        error = torch.einsum("bvk,bk->bv", m, k[:, t]) - v[:, t]
        grad = 2 * error.unsqueeze(-1) * k[:, t].unsqueeze(-2)
        s = eta[:, t, None, None] * s - theta[:, t, None, None] * grad
        m = (1 - alpha[:, t, None, None]) * m + s
        ys.append(torch.einsum("bvk,bk->bv", m, q[:, t]))
    return torch.stack(ys, dim=1)


def frozen_gradient(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
    """The gradient frozen at an empty memory: two chained scans with input-only gates."""
    grad = -2 * v.unsqueeze(-1) * k.unsqueeze(-2)
    m = torch.zeros_like(grad[:, 0])
    s = torch.zeros_like(grad[:, 0])
    ys = []
    for t in range(q.shape[1]):
        s = eta[:, t, None, None] * s - theta[:, t, None, None] * grad[:, t]
        m = (1 - alpha[:, t, None, None]) * m + s
        ys.append((m @ q[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, dim=1)


def event_driven(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
    """Writes only where the input's own surprise, |v| above its mean, asks for it: a state-free mask."""
    norm = v.norm(dim=-1)
    mask = (norm > norm.mean()).to(v.dtype)
    m = q.new_zeros(q.shape[0], v.shape[-1], k.shape[-1])
    s = torch.zeros_like(m)
    ys = []
    for t in range(q.shape[1]):
        error = (m @ k[:, t, :, None]).squeeze(-1) - v[:, t]
        s = eta[:, t, None, None] * s - (mask * theta)[:, t, None, None] * (
            error[:, :, None] * k[:, t, None, :]
        )
        m = (1 - alpha[:, t, None, None]) * m + s
        ys.append((m * q[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1)


def state_driven(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
    """Writes only where the error of the memory is large: a mask from the state, nonlinear."""
    m = q.new_zeros(q.shape[0], v.shape[-1], k.shape[-1])
    ys = []
    for t in range(q.shape[1]):
        error = (m @ k[:, t, :, None]).squeeze(-1) - v[:, t]
        surprised = error.square().sum(-1) > 1.0
        write = theta[:, t, None, None] * (error[:, :, None] * k[:, t, None, :])
        m = torch.where(surprised[:, None, None], (1 - alpha[:, t, None, None]) * m - write, m)
        ys.append((m * q[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1)


def mlp_memory(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """A two-layer memory v = W2 tanh(W1 k) updated per token by its own gradient: nonlinear."""
    w1, w2 = w1.expand(q.shape[0], *w1.shape), w2.expand(q.shape[0], *w2.shape)
    ys = []
    for t in range(q.shape[1]):
        hidden = torch.tanh((w1 @ k[:, t, :, None]).squeeze(-1))
        error = (w2 @ hidden.unsqueeze(-1)).squeeze(-1) - v[:, t]
        back = (w2.mT @ error.unsqueeze(-1)).squeeze(-1) * (1 - hidden * hidden)
        w2 = w2 - theta[:, t, None, None] * error[:, :, None] * hidden[:, None, :]
        w1 = w1 - theta[:, t, None, None] * back[:, :, None] * k[:, t, None, :]
        read = torch.tanh((w1 @ q[:, t, :, None]).squeeze(-1))
        ys.append((w2 @ read.unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, dim=1)


def example_inputs(batch: int = 2, steps: int = 64, dim: int = 8) -> tuple[Tensor, ...]:
    """q, k, v, eta, theta, alpha for ``linear_memory``."""
    return (
        normal(batch, steps, dim),
        unit(batch, steps, dim),
        normal(batch, steps, dim),
        gate(batch, steps, high=0.6),
        gate(batch, steps, high=0.3),
        gate(batch, steps, high=0.2),
    )


def _mlp_inputs(steps: int) -> tuple[Tensor, ...]:
    q, k, v, _, theta, _ = example_inputs(2, steps, 4)
    return q, k, v, 0.3 * theta, normal(5, 4, scale=0.5), normal(4, 5, scale=0.5)


CASES = (
    Case("titans/linear", lambda steps: (linear_memory, example_inputs(2, steps, 4))),
    Case("titans/frozen", lambda steps: (frozen_gradient, example_inputs(2, steps, 4))),
    Case("titans/event-driven", lambda steps: (event_driven, example_inputs(2, steps, 4))),
    Case("titans/state-driven", lambda steps: (state_driven, example_inputs(2, steps, 4))),
    Case("titans/mlp", lambda steps: (mlp_memory, _mlp_inputs(steps))),
)
