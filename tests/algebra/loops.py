"""Recurrences as people write them: ``name -> (step, carries, streams, invariants)``.

A parameter of a step whose name starts with g is a gate.
"""

from __future__ import annotations

import inspect

import torch

from tests.step.steps import analysed, sizes


def retnet(s, q, k, v, ga):
    s = ga[:, None, None] * s + k[..., None] * v[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s),)


def linear(s, n, q, k, v):
    """Linear attention with its normaliser."""
    s, n = s + k[..., None] * v[..., None, :], n + k
    return (s, n), (torch.einsum("bhk,bhkv->bhv", q, s) / ((q * n).sum(-1, keepdim=True).abs() + 1.0),)


def normalised(s, n, q, k, v, gk):
    """The same with a gate for every key entry."""
    s, n = gk[..., None] * s + k[..., None] * v[..., None, :], gk * n + k
    return (s, n), (torch.einsum("bhk,bhkv->bhv", q, s) / ((q * n).sum(-1, keepdim=True).abs() + 1.0),)


def gated(s, q, k, v, gk):
    s = gk[..., None] * s + k[..., None] * v[..., None, :]
    return (s,), ((q[..., None, :] @ s)[..., 0, :],)


def delta(s, q, k, v, gb, g):
    s = g[..., None, None] * s
    s = s + (gb[..., None] * k)[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s),)


def kda(s, q, k, v, gb, gk):
    s = gk[..., None] * s
    s = s + (gb[..., None] * k)[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s),)


def transposed(s, q, k, v, gw):
    """The delta rule with the state stored the other way, read before the write."""
    o = torch.einsum("bhvk,bhk->bhv", s, q)
    s = gw[..., None, :] * s + (v - (s * k[..., None, :]).sum(-1))[..., None] * k[..., None, :]
    return (s,), (o,)


def rwkv(s, r, k, v, a, b, gw):
    s = s * gw[..., None, :] + (s @ a[..., None]) @ b[..., None, :] + v[..., None] @ k[..., None, :]
    return (s,), ((s @ r[..., None])[..., 0],)


def product(s, q, k, v, gb, p, w, gc, g):
    """Two delta writes per step, each up to a reflection."""
    s = g[..., None, None] * s
    s = s + (gb[..., None] * k)[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    s = s + (gc[..., None] * p)[..., None] * (w - torch.einsum("bhkv,bhk->bhv", s, p))[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s),)


def several(s, q, u, w, k, v, g):
    """Rank three at once, by matrix products; several queries."""
    s = g[..., None, None] * s - u @ (w.transpose(-1, -2) @ s) + k @ v.transpose(-1, -2)
    return (s,), (q @ s,)


def grouped(s, q, k, v, g):
    """One key head for two value heads."""
    kk, qq = k.repeat_interleave(2, 1), q.repeat_interleave(2, 1)
    s = g[..., None, None] * s + kk[..., None] * v[..., None, :]
    return (s,), ((qq[..., None] * s).sum(-2),)


def spelled(s, q, k, v, g):
    """The state itself leaves at every step."""
    s = g[..., None, None] * s + k[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    return (s,), (s * q[..., None], s.sum((-1, -2)))


def fixed(s, k, v, ga, w):
    """Gate and erase direction the same at every step."""
    s = (
        ga * s
        - k[..., None] * torch.einsum("bhkv,k->bhv", s, w)[..., None, :]
        + k[..., None] * v[..., None, :]
    )
    return (s,), (s.sum(-2),)


def ema(h, x, g):
    h = g * h + (1 - g) * x
    return (h,), (h,)


def mamba(h, x, b, c, g):
    h = g * h + x[..., None] * b[:, None, :]
    return (h,), ((h * c[:, None, :]).sum(-1),)


def rotation(p, q, x, c, n):
    p, q = c * p - n * q + x, n * p + c * q
    return (p, q), (p, q)


def complex_pair(z, x, g):
    z = g * z + x
    return (z,), (z.real, z.imag)


def biquad(p, q, x, ga, gb):
    y = x + ga * p + gb * q
    return (y, p), (y + 0.5 * q,)


def slow_fast(f, s, q, k, v, gf, gs):
    w = k[..., None] * v[..., None, :]
    o = torch.einsum("bhk,bhkv->bhv", q, f + s)
    f, s = gf[..., None, None] * f + w, gs[..., None, None] * s + w
    return (f + 0.05 * s, s + 0.05 * f), (o,)


def titans(s, m, q, k, v, ge, ga):
    """Momentum, then weights, with the gradient of a linear memory frozen."""
    s = ge[..., None, None] * s - k[..., None] * v[..., None, :]
    m = ga[..., None, None] * m + s
    return (s, m), (torch.einsum("bhk,bhkv->bhv", q, m),)


def online(s, m, q, k, v, ge, ga):
    """The same with the gradient taken at the current weights."""
    e = torch.einsum("bhk,bhkv->bhv", k, m) - v
    s = ge[..., None, None] * s - 0.1 * k[..., None] * e[..., None, :]
    m = ga[..., None, None] * m + s
    return (s, m), (torch.einsum("bhk,bhkv->bhv", q, m),)


def exchanged(f, s, q, k, v, w, gf, gs, gk):
    """Two memories, each corrected by what the other answers; the second decays into the first."""
    e, d = v - torch.einsum("bhk,bhkv->bhv", k, s), 0.5 * v - torch.einsum("bhkv,bhk->bhv", f, w)
    f, s = (
        gf[..., None, None] * f + 0.2 * gk[..., None] * s + k[..., None] * e[..., None, :],
        gs[..., None, None] * s + 0.3 * w[..., None] * d[..., None, :] - 0.1 * k[..., None] * e[..., None, :],
    )
    return (f, s), (torch.einsum("bhk,bhkv->bhv", q, f - s), (w[..., None] * s).sum(-2))


def turning(s, q, k, v, g):
    """The delta rule with a state that turns: complex throughout."""
    s = g[..., None, None] * s
    s = s + k.conj()[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    o = torch.einsum("bhk,bhkv->bhv", q, s)
    return (s,), (o.real, o.imag)


def resonance(a, b, x, c, s, r):
    a, b = c * a - s * b + x, s * a + c * b
    return (a @ r, b @ r), (a,)


def dense(z, x, m):
    z = (m @ z[..., None])[..., 0] + x
    return (z,), (2 * z,)


def kalman(z, x, g, h):
    z = torch.einsum("bij,bj->bi", h, g[..., None] * z) + x
    return (z,), (z,)


def peak(m, x, g):
    m = torch.maximum(m + g, x)
    return (m,), (m,)


def trough(m, x):
    m = torch.minimum(m, x)
    return (m,), (m,)


def soft(m, x, g):
    m = torch.logaddexp(m + g, x)
    return (m,), (m,)


_C = torch.complex64
_S, _K, _V, _H = (2, 2, 3, 4), (2, 2, 3), (2, 2, 4), (2, 2)
LOOPS = {
    "retnet": (retnet, sizes(_S), sizes(_K, _K, _V, (2,)), []),
    "linear": (linear, sizes(_S, _K), sizes(_K, _K, _V), []),
    "normalised": (normalised, sizes(_S, _K), sizes(_K, _K, _V, _K), []),
    "gated": (gated, sizes(_S), sizes(_K, _K, _V, _K), []),
    "delta": (delta, sizes(_S), sizes(_K, _K, _V, _H, _H), []),
    "kda": (kda, sizes(_S), sizes(_K, _K, _V, _H, _K), []),
    "transposed": (transposed, sizes((2, 2, 4, 3)), sizes(_K, _K, _V, _K), []),
    "rwkv": (rwkv, sizes((2, 2, 4, 3)), sizes(_K, _K, _V, _K, _K, _K), []),
    "product": (product, sizes(_S), sizes(_K, _K, _V, _H, _K, _V, _H, _H), []),
    "several": (
        several, sizes((2, 2, 6, 4)),
        sizes(*[(2, 2, n, m) for n, m in ((5, 6), (6, 2), (6, 2), (6, 3), (4, 3))], _H), [],
    ),
    "grouped": (grouped, sizes((2, 4, 3, 4)), sizes(_K, _K, (2, 4, 4), (2, 4)), []),
    "spelled": (spelled, sizes(_S), sizes(_K, _K, _V, _H), []),
    "fixed": (fixed, sizes(_S), sizes(_K, _V), sizes((1,), (3,))),
    "ema": (ema, sizes((2, 5)), sizes((2, 5), (2, 5)), []),
    "mamba": (mamba, sizes((2, 5, 3)), sizes((2, 5), (2, 3), (2, 3), (2, 5, 3)), []),
    "rotation": (rotation, sizes((2, 5), (2, 5)), sizes((2, 5)), sizes((5,), (5,))),
    "complex": (complex_pair, sizes((2, 5), dtype=_C), sizes((2, 5), (2, 5), dtype=_C), []),
    "biquad": (biquad, sizes((2, 5), (2, 5)), sizes((2, 5), (5,), (5,)), []),
    "slow-fast": (slow_fast, sizes(_S, _S), sizes(_K, _K, _V, _H, _H), []),
    "titans": (titans, sizes(_S, _S), sizes(_K, _K, _V, _H, _H), []),
    "online": (online, sizes(_S, _S), sizes(_K, _K, _V, _H, _H), []),
    "exchanged": (exchanged, sizes(_S, _S), sizes(_K, _K, _V, _K, _H, _H, _K), []),
    "turning": (turning, sizes(_S, dtype=_C), sizes(_K, _K, _V, _H, dtype=_C), []),
    "resonance": (resonance, sizes((2, 4), (2, 4)), sizes((2, 4)), sizes((4,), (4,), (4, 4))),
    "dense": (dense, sizes((2, 4)), sizes((2, 4)), sizes((4, 4))),
    "kalman": (kalman, sizes((2, 4)), sizes((2, 4), (2,), (2, 4, 4)), []),
    "peak": (peak, sizes((2, 4)), sizes((2, 4), (2, 4)), []),
    "trough": (trough, sizes((2, 4)), sizes((2, 4)), []),
    "soft": (soft, sizes((2, 4)), sizes((2, 4), (4,)), []),
}  # fmt: skip


def program_of(name, loops=LOOPS):
    """``(program, streams that are gates)``."""
    step = analysed(*loops[name])[2]
    names = list(inspect.signature(loops[name][0]).parameters)

    def parameter(node):
        while node.op != "placeholder" and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        return names[int(node.name[3:].split("_")[0])] if node.op == "placeholder" else ""

    return step.program, frozenset(
        i for i, p in enumerate(step.streams) if parameter(p.source).startswith("g")
    )
