"""The delta-rule family: a matrix state whose writes first read what is stored.

Takes q, k [B, H, T, K], v [B, H, T, V] and gates with the same leading axes; leaves
o [B, H, T, V].  With S [B, H, K, V] starting at zero:

    DeltaNet       S <- S + beta k (v - k^T S)
    gated delta    S <- e^g S first, one g per head and step
    KDA            S <- diag(e^g) S first, one g per key entry
    RWKV-7         S <- S (diag(w) + a b^T) + v k^T, state [V, K], read S r
    DeltaProduct   several DeltaNet writes per token, one read

and o = q^T S after the write.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.case import Case, Model, gate, normal, unit


def deltanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """With matmul, appending; beta [B, H, T]."""
    batch, heads, steps, dk = k.shape
    s = torch.zeros(batch, heads, dk, v.shape[-1], dtype=q.dtype, device=q.device)
    outputs = []
    for t in range(steps):
        k_t = k[:, :, t].unsqueeze(-1)
        read = k_t.transpose(-1, -2) @ s
        s = s + beta[:, :, t, None, None] * k_t @ (v[:, :, t].unsqueeze(-2) - read)
        outputs.append((q[:, :, t].unsqueeze(-2) @ s).squeeze(-2))
    return torch.stack(outputs, dim=2)


def deltanet_einsum(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """With einsum, writing into a preallocated output."""
    s = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    o = torch.zeros_like(v)
    for i in range(q.shape[2]):
        q_i, k_i, v_i, beta_i = q[:, :, i], k[:, :, i], v[:, :, i], beta[:, :, i]
        v_old = torch.einsum("bhk,bhkv->bhv", k_i, s)
        u = (v_i - v_old) * beta_i[..., None]
        s = s + torch.einsum("bhk,bhv->bhkv", k_i, u)
        o[:, :, i] = torch.einsum("bhk,bhkv->bhv", q_i, s)
    return o


def deltanet_pointwise(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """With products and sums over elements, the lists from ``unbind`` and ``zip``."""
    s = 0.0
    outputs = []
    for q_t, k_t, v_t, b_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
        read = (s * k_t[..., None]).sum(-2)
        s = s + k_t[..., None] * ((v_t - read) * b_t[..., None])[..., None, :]
        outputs += [(s * q_t[..., None]).sum(dim=-2)]
    return torch.stack(outputs, 2)


def deltanet_in_place(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """The values overwritten by what is written; the state cloned where it is read."""
    o = torch.zeros_like(v)
    s = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1]).to(v)
    v = v.clone()
    for i in range(q.shape[-2]):
        _k, _q, _v = k[:, :, i], q[:, :, i], v[:, :, i].clone()
        _v = (_v - (s.clone() * _k[..., None]).sum(-2)) * beta[:, :, i][..., None]
        s = s.clone() + _k.unsqueeze(-1) * _v.unsqueeze(-2)
        o[:, :, i] = torch.einsum("bhd,bhdm->bhm", _q, s)
    return o


def gated_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """beta, g [B, H, T]; g is a logarithm, at most 0."""
    s = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype, device=v.device)
    outputs = torch.empty_like(v)
    for t in range(v.shape[2]):
        q_t, k_t, v_t = q[:, :, t], k[:, :, t], v[:, :, t]
        s = s * g[:, :, t].exp()[..., None, None]
        u = (v_t - (s * k_t.unsqueeze(-1)).sum(dim=-2)) * beta[:, :, t].unsqueeze(-1)
        s = s + k_t.unsqueeze(-1) * u.unsqueeze(-2)
        outputs[:, :, t] = (s * q_t.unsqueeze(-1)).sum(dim=-2)
    return outputs


def gated_delta_matmul(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """As ``gated_delta`` with the decay and the write in one expression of matmuls."""
    decay = g.exp()
    s = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype, device=v.device)
    rows: list[Tensor] = []
    for t in range(v.shape[2]):
        a, b = decay[:, :, t, None, None], beta[:, :, t, None, None]
        k_t = k[:, :, t, :, None]
        s = a * s + b * (k_t @ (v[:, :, t, None, :] - k_t.mT @ (a * s)))
        rows.append((q[:, :, t, None, :] @ s)[:, :, 0])
    return torch.stack(rows, dim=-2)


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """beta [B, H, T]; g [B, H, T, K], a logarithm for every key entry."""
    s = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    o = torch.zeros_like(v)
    for i in range(k.shape[2]):
        q_i, k_i, v_i, g_i, b_i = q[:, :, i], k[:, :, i], v[:, :, i], g[:, :, i], beta[:, :, i]
        s = s * g_i[..., None].exp()
        s = s + torch.einsum(
            "... k, ... v -> ... k v", b_i[..., None] * k_i, v_i - (k_i[..., None] * s).sum(-2)
        )
        o[:, :, i] = torch.einsum("... k, ... k v -> ... v", q_i, s)
    return o


def rwkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """r, w, k, a, b [B, H, T, K], v [B, H, T, V]; the state is [V, K]."""
    s = torch.zeros(*v.shape[:2], v.shape[-1], k.shape[-1], dtype=v.dtype, device=v.device)
    out = []
    for t in range(r.shape[2]):
        kk, rr, vv = k[:, :, t].unsqueeze(-2), r[:, :, t].unsqueeze(-1), v[:, :, t].unsqueeze(-1)
        aa, bb = a[:, :, t].unsqueeze(-1), b[:, :, t].unsqueeze(-2)
        s = s * w[:, :, t, None, :] + s @ aa @ bb + vv @ kk
        out.append((s @ rr).squeeze(-1))
    return torch.stack(out, dim=2)


def delta_product(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """k [B, H, T, N, K], v [B, H, T, N, V], beta [B, H, T, N]: N writes, then one read."""
    s = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        for n in range(k.shape[3]):
            k_n = k[:, :, t, n]
            u = beta[:, :, t, n, None] * (v[:, :, t, n] - torch.einsum("bhk,bhkv->bhv", k_n, s))
            s = s + k_n.unsqueeze(-1) * u.unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], s))
    return torch.stack(outputs, dim=2)


def delta_transposed(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """S <- w S + (v - S k) k^T, the state [V, K]; read S k before the write."""
    s = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1])
    outputs = []
    for i in range(k.shape[2]):
        k_i, v_i = k[:, :, i], v[:, :, i]
        predicted = torch.matmul(s, k_i.unsqueeze(-1)).squeeze(-1)
        s = w[:, :, i, None, None] * s + (v_i - predicted).unsqueeze(-1) @ k_i.unsqueeze(-2)
        outputs.append(predicted)
    return torch.stack(outputs, dim=2)


def example_inputs(batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """q, k, v, beta for ``deltanet``."""
    shape = (batch, heads, steps, dim)
    return normal(*shape, scale=dim**-0.5), unit(*shape), normal(*shape), gate(batch, heads, steps)


def gated_inputs(batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """q, k, v, beta, g for ``gated_delta``."""
    return *example_inputs(batch, heads, steps, dim), -F.softplus(normal(batch, heads, steps) - 2.0)


def rwkv7_inputs(batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """r, w, k, v, a, b for ``rwkv7``: a = -kappa and b = kappa * rate of a unit vector kappa."""
    shape = (batch, heads, steps, dim)
    kappa = unit(*shape)
    w = torch.exp(-0.6065 * gate(*shape))
    return normal(*shape), w, normal(*shape, scale=dim**-0.5), normal(*shape), -kappa, kappa * gate(*shape)


def _kda_inputs(steps: int) -> tuple[Tensor, ...]:
    return *example_inputs(2, 2, steps, 4), -F.softplus(normal(2, 2, steps, 4) - 2.0)


def _product_inputs(steps: int) -> tuple[Tensor, ...]:
    shape = (2, 2, steps, 2)
    return normal(2, 2, steps, 4), unit(*shape, 4), normal(*shape, 5), gate(*shape, high=2.0)


def _transposed_inputs(steps: int) -> tuple[Tensor, ...]:
    return unit(2, 2, steps, 4), normal(2, 2, steps, 5), gate(2, 2, steps, low=0.8)


def _case(name: str, function: Model, inputs: Model, same_as: str = "") -> Case:
    return Case(f"delta/{name}", lambda steps: (function, inputs(steps)), same_as and f"delta/{same_as}")


def _plain(steps: int) -> tuple[Tensor, ...]:
    return example_inputs(2, 2, steps, 4)


def _gated(steps: int) -> tuple[Tensor, ...]:
    return gated_inputs(2, 2, steps, 4)


CASES = (
    _case("deltanet", deltanet, _plain),
    _case("deltanet-einsum", deltanet_einsum, _plain, same_as="deltanet"),
    _case("deltanet-pointwise", deltanet_pointwise, _plain, same_as="deltanet"),
    _case("deltanet-in-place", deltanet_in_place, _plain, same_as="deltanet"),
    _case("gated", gated_delta, _gated),
    _case("gated-matmul", gated_delta_matmul, _gated, same_as="gated"),
    _case("kda", kda, _kda_inputs),
    _case("rwkv7", rwkv7, lambda steps: rwkv7_inputs(2, 2, steps, 4)),
    _case("product", delta_product, _product_inputs),
    _case("transposed", delta_transposed, _transposed_inputs),
)
