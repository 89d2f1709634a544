"""Linear attention and its decays: a matrix state written without reading it.

Takes q, k [B, H, T, K], v [B, H, T, V] and a decay; leaves o [B, H, T, V].  With S
[B, H, K, V] starting at zero, S <- a_t S + k v^T and o = q^T S, where a_t is 1 (linear
attention), a constant per head (RetNet), a number per step (Mamba-2, SSD) or a vector
over the keys (GLA).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.case import Case, Model, gate, normal


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype, device=v.device)
    outputs = []
    for t in range(q.shape[2]):
        s = s + torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], s))
    return torch.stack(outputs, dim=2)


def linear_attention_normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The read divided by q . z, with z the sum of the keys; q and k are made positive."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    s = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype, device=v.device)
    z = torch.zeros_like(k[:, :, 0])
    o = torch.zeros_like(v)
    for i in range(q.shape[2]):
        s = s + k[:, :, i].unsqueeze(-1) @ v[:, :, i].unsqueeze(-2)
        z = z + k[:, :, i]
        numerator = (q[:, :, i].unsqueeze(-2) @ s).squeeze(-2)
        o[:, :, i] = numerator / ((q[:, :, i] * z).sum(-1, keepdim=True) + 1e-6)
    return o


def retnet(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Decay 1 - 2^(-5 - h) for head h."""
    decay = 1 - torch.exp2(-5.0 - torch.arange(q.shape[1], dtype=q.dtype, device=q.device))
    s = None
    outputs = []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        write = k_t[..., None] * v_t[..., None, :]
        s = write if s is None else s * decay[:, None, None] + write
        outputs.append((q_t[..., None] * s).sum(-2))
    return torch.stack(outputs, dim=2)


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """g [B, H, T, K], a logarithm for every key entry."""
    s = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    o = torch.zeros_like(v)
    for i in range(q.shape[2]):
        s = s * g[:, :, i, :, None].exp() + k[:, :, i, :, None] * v[:, :, i, None, :]
        o[:, :, i] = (q[:, :, i, :, None] * s).sum(-2)
    return o


def ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Mamba-2: x [B, T, H, P], dt [B, T, H], a [H] negative, b and c [B, T, N] shared by heads."""
    h = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[-1])
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)
        h = h * decay[:, :, None, None] + torch.einsum("bh,bn,bhp->bhpn", dt[:, t], b[:, t], x[:, t])
        ys.append(torch.einsum("bhpn,bn->bhp", h, c[:, t]))
    return torch.stack(ys, dim=1)


def example_inputs(batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """q, k, v."""
    shape = (batch, heads, steps, dim)
    return normal(*shape, scale=dim**-0.5), normal(*shape, scale=dim**-0.5), normal(*shape)


def ssd_inputs(
    batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 8, states: int = 16
) -> tuple[Tensor, ...]:
    """x, dt, a, b, c."""
    return (
        normal(batch, steps, heads, dim),
        F.softplus(normal(batch, steps, heads) - 1.0),
        -gate(heads, low=0.5, high=4.0),
        normal(batch, steps, states),
        normal(batch, steps, states),
    )


def _case(name: str, function: Model, inputs: Model, same_as: str = "") -> Case:
    return Case(f"linear/{name}", lambda steps: (function, inputs(steps)), same_as)


def _plain(steps: int) -> tuple[Tensor, ...]:
    return example_inputs(2, 2, steps, 4)


def _gla_inputs(steps: int) -> tuple[Tensor, ...]:
    return *_plain(steps), -F.softplus(normal(2, 2, steps, 4) - 2.0)


CASES = (
    _case("attention", linear_attention, _plain),
    _case("attention-normalised", linear_attention_normalised, _plain),
    _case("retnet", retnet, _plain),
    _case("gla", gla, _gla_inputs),
    _case("ssd", ssd, lambda steps: ssd_inputs(2, 2, steps, 3, 4)),
)
