"""LAM: a dual-timescale hierarchical delta rule over chunks, and its variants.

The layer takes x [B, L, D] and leaves o [B, H, L, V].  Two matrix states per head, a fast F
and a slow S, both [B, H, K, V], start at zero.  Per chunk of C tokens, with N(X) = X / (|X|_F + 1e-8):

    1  F <- a^f F;  S <- a^s S                    5  F <- F + k^T Uf;  S <- S + k^T Us
    2  Fh = N(F);   Sh = N(S)                     6  F, S <- F + c psi S, S + c (1 - psi) F
    3  Uf = U - W Fh;  Us = U - W Sh              7  F <- N(F);  S <- N(S)
    4  o = alpha g^f (q Fh + Bm Uf) + (1 - alpha) g^s (q Sh + Bm Us),  alpha = 0.5 + 0.3 tau

Everything but F and S depends on the chunk alone; see ``Layer.chunks``.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, Model, gate, normal, unit


def normalised(x: Tensor) -> Tensor:
    """x over its Frobenius norm."""
    return x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-8)


@dataclasses.dataclass
class Chunks:
    """The state-free quantities, [B, H, N, ...] for N chunks (``c`` is [N])."""

    q: Tensor
    k: Tensor
    u: Tensor
    w: Tensor
    bm: Tensor
    af: Tensor
    as_: Tensor
    gf: Tensor
    gs: Tensor
    alpha: Tensor
    psi: Tensor
    c: Tensor


class Layer(nn.Module):
    """Projections, gates and the state-free part of every chunk; ``forward`` runs the recurrence."""

    def __init__(self, dim: int = 16, heads: int = 2, chunk: int = 4) -> None:
        super().__init__()
        self.heads, self.chunk = heads, chunk
        d = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = nn.Conv1d(3 * dim, 3 * dim, 4, groups=3 * dim, padding=3)
        self.gates = nn.Linear(dim, 5 * heads)
        self.shift = nn.Parameter(
            torch.tensor([0.0, math.log(0.3), math.log(0.9), 0.0, 0.0]).repeat_interleave(heads)
        )
        self.tau = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, 1))
        self.psi = nn.Sequential(nn.Linear(2 * d + 1, d), nn.SiLU(), nn.Linear(d, 1))
        self.bilinear = nn.Parameter(normal(d, d, scale=1 / d))

    def chunks(self, x: Tensor) -> Chunks:
        batch, length, _ = x.shape
        c = self.chunk if length >= self.chunk and length % self.chunk == 0 else length

        def cut(y: Tensor) -> Tensor:
            """[B, L, H * E] to [B, H, N, C, E]."""
            return y.view(batch, length // c, c, self.heads, -1).permute(0, 3, 1, 2, 4)

        mixed = F.silu(self.conv(self.qkv(x).mT)[..., :length].mT)
        q, k, v = (cut(y) for y in mixed.chunk(3, dim=-1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        beta, f, s, gf, gs = (cut(y) for y in torch.sigmoid(self.gates(x) + self.shift).chunk(5, dim=-1))
        v, kb = beta * v, beta * k
        tau = torch.sigmoid(self.tau(torch.cat([kb, v], dim=-1))).clamp(0.01, 0.99)
        a = -(kb @ k.mT).tril(-1)
        t = torch.eye(c, dtype=x.dtype, device=x.device) + a + (a @ a.mT).tril(-1)
        u = t @ v
        km, um = k.mean(-2), u.mean(-2)
        both = ((km @ self.bilinear) * um).sum(-1, keepdim=True)
        psi = torch.sigmoid(self.psi(torch.cat([km, um, both], dim=-1))).clamp(0.01, 0.99)
        return Chunks(
            q=q, k=k, u=u, w=t @ kb, bm=(q @ k.mT).tril(),
            af=f.mean(-2) * (1 - 0.1 * psi), as_=s.mean(-2) * (1 - 0.05 * psi),
            gf=gf, gs=gs, alpha=0.5 + 0.3 * tau, psi=psi, c=0.05 + 0.1 * psi.mean((0, 1, 3)),
        )  # fmt: skip

    def rest(self, p: Chunks) -> Tensor:
        return p.q.new_zeros(*p.q.shape[:2], p.k.shape[-1], p.u.shape[-1])


class Lam(Layer):
    """As published: a loop over chunks, writing into ``zeros_like``; dropout while training."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.chunks(x)
        fast, slow = self.rest(p), self.rest(p)
        o = torch.zeros_like(p.u)
        for i in range(p.q.shape[2]):
            q_i, k_i, u_i, w_i, b_i = p.q[:, :, i], p.k[:, :, i], p.u[:, :, i], p.w[:, :, i], p.bm[:, :, i]
            psi, alpha = p.psi[:, :, i, :, None], p.alpha[:, :, i]
            fast = fast * p.af[:, :, i, :, None]
            slow = slow * p.as_[:, :, i, :, None]
            fast_read, slow_read = normalised(fast), normalised(slow)
            u_fast, u_slow = u_i - w_i @ fast_read, u_i - w_i @ slow_read
            o_fast = p.gf[:, :, i] * (q_i @ fast_read + b_i @ u_fast)
            o_slow = p.gs[:, :, i] * (q_i @ slow_read + b_i @ u_slow)
            o[:, :, i] = alpha * o_fast + (1 - alpha) * o_slow
            d_fast, d_slow = k_i.transpose(-1, -2) @ u_fast, k_i.transpose(-1, -2) @ u_slow
            if self.training:
                d_fast, d_slow = F.dropout(d_fast, 0.1), F.dropout(d_slow, 0.1)
            fast, slow = fast + d_fast, slow + d_slow
            fast, slow = fast + p.c[i] * psi * slow, slow + p.c[i] * (1 - psi) * fast
            fast, slow = normalised(fast), normalised(slow)
        return o.flatten(2, 3)


class LamCore(Layer):
    """The exact rewrite: P = k^T U, G = k^T W and the outputs in parallel, a core of one product."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.chunks(x)
        fast, slow = self.rest(p), self.rest(p)
        write, read = p.k.mT @ p.u, p.k.mT @ p.w
        fasts, slows = [], []
        for i in range(p.q.shape[2]):
            psi = p.psi[:, :, i, :, None]
            fh = normalised(p.af[:, :, i, :, None] * fast)
            sh = normalised(p.as_[:, :, i, :, None] * slow)
            fasts.append(fh)
            slows.append(sh)
            fast = p.af[:, :, i, :, None] * fast + write[:, :, i] - read[:, :, i] @ fh
            slow = p.as_[:, :, i, :, None] * slow + write[:, :, i] - read[:, :, i] @ sh
            fast, slow = fast + p.c[i] * psi * slow, slow + p.c[i] * (1 - psi) * fast
            fast, slow = normalised(fast), normalised(slow)
        y, q = p.bm @ p.u, p.q - p.bm @ p.w
        o_fast = p.gf * (y + q @ torch.stack(fasts, dim=2))
        o_slow = p.gs * (y + q @ torch.stack(slows, dim=2))
        return (p.alpha * o_fast + (1 - p.alpha) * o_slow).flatten(2, 3)


class LamLinear(Layer):
    """The plain linear state S <- a^s S + k^T U, chunks appended and concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.chunks(x)
        state = self.rest(p)
        outputs = []
        for i in range(p.q.shape[2]):
            outputs.append(p.q[:, :, i] @ state + p.bm[:, :, i] @ p.u[:, :, i])
            state = p.as_[:, :, i, :, None] * state + p.k[:, :, i].mT @ p.u[:, :, i]
        return torch.cat(outputs, dim=2)


def linear_by_slices(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int = 4) -> Tensor:
    """S <- mean_c(decay) S + k^T v over [B, H, L, D] with ``start`` and ``end`` indices."""
    length = q.shape[2]
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for i in range((length + chunk - 1) // chunk):
        start = i * chunk
        end = min(start + chunk, length)
        q_c, k_c, v_c = q[:, :, start:end], k[:, :, start:end], v[:, :, start:end]
        outputs.append(q_c @ state + (q_c @ k_c.transpose(-1, -2)).tril() @ v_c)
        state = decay[:, :, start:end].mean(-1)[..., None, None] * state + k_c.transpose(-1, -2) @ v_c
    return torch.cat(outputs, dim=2)


def dual(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, f: Tensor, s: Tensor) -> Tensor:
    """Per token: decay and write both, exchange, read 0.5 q (F + S) before the write.

    q, k, v [B, H, T, D], beta, f, s [B, H, T]; an exact 2 x 2 block of the two states.
    """
    fast = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    slow = torch.zeros_like(fast)
    o = torch.zeros_like(v)
    for t in range(q.shape[2]):
        o[:, :, t] = 0.5 * torch.einsum("bhk,bhkv->bhv", q[:, :, t], fast + slow)
        write = beta[:, :, t, None, None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        fast = f[:, :, t, None, None] * fast + write
        slow = s[:, :, t, None, None] * slow + write
        fast, slow = fast + 0.05 * slow, slow + 0.05 * fast
    return o


def state_gated(q: Tensor, k: Tensor, v: Tensor, f: Tensor, s: Tensor) -> Tensor:
    """phi = 0.1 sigmoid(|F^T k - S^T k| - 0.5), S <- S + phi (F - S): F alone is linear."""
    fast = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    slow = torch.zeros_like(fast)
    outputs = []
    for t in range(q.shape[2]):
        k_t = k[:, :, t].unsqueeze(-2)
        write = k_t.mT @ v[:, :, t].unsqueeze(-2)
        fast = f[:, :, t, None, None] * fast + write
        slow = s[:, :, t, None, None] * slow + write
        surprise = (k_t @ fast - k_t @ slow).norm(dim=-1, keepdim=True)
        phi = 0.1 * torch.sigmoid(surprise - 0.5)
        slow = slow + phi * (fast - slow)
        outputs.append((q[:, :, t].unsqueeze(-2) @ slow).squeeze(-2))
    return torch.stack(outputs, dim=2)


def substitution(k: Tensor, beta: Tensor) -> Tensor:
    """(I + tril(beta k k^T, -1))^-1 by forward substitution, row by row; k [B, H, C, D], beta [B, H, C].

    Row i reads a slice that grows with i, so this is a triangular solve, not a recurrence.
    """
    attn = -((beta[..., None] * k) @ k.mT).tril(-1)
    for i in range(1, k.shape[-2]):
        attn[..., i, :i] += (attn[..., i, :i, None].clone() * attn[..., :i, :i].clone()).sum(-2)
    return attn + torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)


def example_inputs(batch: int = 2, length: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """x [B, L, D] for ``Lam``."""
    return (normal(batch, length, dim),)


def _layer(name: str, model: type[nn.Module], same_as: str = "") -> Case:
    """``steps`` chunks of 4 tokens."""
    return Case(
        f"lam/{name}", lambda steps: (model(8, 2, 4).eval(), example_inputs(2, 4 * steps, 8)), same_as
    )


def _case(name: str, function: Model, inputs: Model, kind: str = "carry", kept: tuple[str, ...] = ()) -> Case:
    return Case(f"lam/{name}", lambda steps: (function, inputs(steps)), kind=kind, kept=kept)


def _slices_inputs(steps: int) -> tuple[Tensor, ...]:
    shape = (2, 2, 4 * steps, 3)
    return normal(*shape), normal(*shape, scale=0.3), normal(*shape), gate(*shape[:3])


def _dual_inputs(steps: int) -> tuple[Tensor, ...]:
    shape = (2, 2, steps, 3)
    return (
        normal(*shape),
        unit(*shape),
        normal(*shape),
        gate(*shape[:3]),
        gate(*shape[:3], high=0.5),
        gate(*shape[:3]),
    )


def _gated_inputs(steps: int) -> tuple[Tensor, ...]:
    q, k, v, _, f, s = _dual_inputs(steps)
    return q, k, v, f, s


def _substitution_inputs(steps: int) -> tuple[Tensor, ...]:
    return unit(1, 2, steps + 1, 3), gate(1, 2, steps + 1)


CASES = (
    _layer("lam", Lam),
    _layer("lam-core", LamCore, same_as="lam/lam"),
    _layer("linear", LamLinear),
    _case("linear-slices", linear_by_slices, _slices_inputs),
    _case("dual", dual, _dual_inputs),
    _case("state-gated", state_gated, _gated_inputs),
    _case("substitution", substitution, _substitution_inputs, kind="none", kept=("TF105",)),
)
