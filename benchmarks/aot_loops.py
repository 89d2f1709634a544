"""Loops of every form, as people write them, at the sizes people run.

Takes nothing; leaves ``LOOPS``: a name, the form it should be found to have, the loop, and
the shapes of its arguments for B sequences, T steps, H heads and heads of size d.  Each is
plain Python over torch tensors and knows nothing of what compiles it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LoopCase:
    """``shapes`` name the sizes of every argument; B sequences and T steps are the caller's choice."""

    name: str
    form: str
    run: Callable[..., Tensor]
    shapes: tuple[str, ...]
    sizes: tuple[tuple[tuple[str, int], ...], ...]
    """Each a setting of what else the shapes name."""
    dtypes: tuple[str, ...] = ("bf16", "fp32")


def ema(a: Tensor, b: Tensor) -> Tensor:
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


def rotation(r: Tensor, c: Tensor, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    p, q, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        p, q = r[:, t] * (c * p - s * q) + x[:, t], r[:, t] * (s * p + c * q) + y[:, t]
        out.append(p + q)
    return torch.stack(out, 1)


def running_max(a: Tensor, b: Tensor) -> Tensor:
    h, out = b[:, 0], []
    for t in range(b.shape[1]):
        h = torch.maximum(h + a[:, t], b[:, t])
        out.append(h)
    return torch.stack(out, 1)


def selective(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0, :, None] * a), []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None]
        h = torch.exp(step * a) * h + step * b[:, t, None, :] * x[:, t, :, None]
        out.append((h * c[:, t, None, :]).sum(-1))
    return torch.stack(out, 1)


def _state(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])


def _read(q: Tensor, s: Tensor) -> Tensor:
    return torch.einsum("bhk,bhkv->bhv", q, s)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        s = s + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def scalar_decay(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        s = torch.sigmoid(a[:, t, :, None, None]) * s + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def vector_decay(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        s = torch.sigmoid(a[:, t])[..., None] * s + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def read_before(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(r.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(_read(r[:, t], s + u[..., None] * kv))
        s = torch.sigmoid(w[:, t])[..., None] * s + kv
    return torch.stack(out, 1)


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        new = torch.sigmoid(beta[:, t])[..., None] * (v[:, t] - _read(k[:, t], s))
        s = s + k[:, t, :, :, None] * new[:, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        s = torch.sigmoid(a[:, t])[..., None, None] * s
        new = torch.sigmoid(beta[:, t])[..., None] * (v[:, t] - _read(k[:, t], s))
        s = s + k[:, t, :, :, None] * new[:, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def two_vectors(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    s, out = _state(k, v), []
    for t in range(r.shape[1]):
        erased = b[:, t, :, :, None] * _read(a[:, t], s)[:, :, None, :]
        s = torch.sigmoid(w[:, t])[..., None] * s + erased + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(_read(r[:, t], s))
    return torch.stack(out, 1)


def two_deltas(
    q: Tensor, k: Tensor, v: Tensor, k2: Tensor, v2: Tensor, beta: Tensor, beta2: Tensor
) -> Tensor:
    s, out = _state(k, v), []
    for t in range(q.shape[1]):
        for key, value, rate in ((k, v, beta), (k2, v2, beta2)):
            new = torch.sigmoid(rate[:, t])[..., None] * (value[:, t] - _read(key[:, t], s))
            s = s + key[:, t, :, :, None] * new[:, :, None, :]
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def momentum(q: Tensor, k: Tensor, v: Tensor, push: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
    """A memory trained by gradient descent with momentum: two states that read each other."""
    (s, m), out = (_state(k, v), _state(k, v)), []
    for t in range(q.shape[1]):
        wrong = torch.sigmoid(rate[:, t])[..., None] * (_read(k[:, t], s) - v[:, t])
        m = torch.sigmoid(push[:, t])[..., None, None] * m - k[:, t, :, :, None] * wrong[:, :, None, :]
        s = torch.sigmoid(keep[:, t])[..., None, None] * s + m
        out.append(_read(q[:, t], s))
    return torch.stack(out, 1)


def fast_and_slow(q: Tensor, k: Tensor, v: Tensor, f: Tensor, s: Tensor) -> Tensor:
    """Two memories that take of each other."""
    (fast, slow), out = (_state(k, v), _state(k, v)), []
    for t in range(q.shape[1]):
        out.append(_read(q[:, t], fast + slow))
        new = k[:, t, :, :, None] * v[:, t, :, None, :]
        fast = torch.sigmoid(f[:, t])[..., None, None] * fast + new
        slow = torch.sigmoid(s[:, t])[..., None, None] * slow + new
        fast, slow = fast + 0.05 * slow, slow + 0.05 * fast
    return torch.stack(out, 1)


def dense(x: Tensor, lam: Tensor, mix: Tensor) -> Tensor:
    z, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        z = torch.einsum("bhi,hij->bhj", lam * z + x[:, t], mix)
        out.append(z)
    return torch.stack(out, 1)


def lstm(x: Tensor, w: Tensor) -> Tensor:
    """``x`` [B, T, H, 4, d] is the projected input, ``w`` [H, 4, d, d] mixes each head's state."""
    h, c, out = torch.zeros_like(x[:, 0, :, 0]), torch.zeros_like(x[:, 0, :, 0]), []
    for t in range(x.shape[1]):
        gates = x[:, t] + torch.einsum("bhd,hgde->bhge", h, w)
        i, f, g, o = gates.unbind(2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 1)


def gru(x: Tensor, w: Tensor, wn: Tensor) -> Tensor:
    """``x`` [B, T, 3, d]; ``w`` [2, d, d] and ``wn`` [d, d] mix the state."""
    h, out = torch.zeros_like(x[:, 0, 0]), []
    for t in range(x.shape[1]):
        r = torch.sigmoid(x[:, t, 0] + h @ w[0])
        z = torch.sigmoid(x[:, t, 1] + h @ w[1])
        n = torch.tanh(x[:, t, 2] + r * (h @ wn))
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out, 1)


def _heads(*sizes: int) -> tuple[tuple[tuple[str, int], ...], ...]:
    return tuple((("H", 16), ("d", d)) for d in sizes)


_WIDE, _EACH = "B T H d", "B T H"
_CHANNELS = ((("D", 2048),),)
_PRODUCTS = ("bf16", "fp32", "tf32")

LOOPS = (
    LoopCase("EMA", "elementwise", ema, ("B T D", "B T D"), _CHANNELS),
    LoopCase("complex EMA", "elementwise", ema, ("B T D", "B T D"), _CHANNELS, ("complex64",)),
    LoopCase("rotation", "block", rotation, ("B T D", "D", "D", "B T D", "B T D"), _CHANNELS),
    LoopCase("running max", "semiring", running_max, ("B T D", "B T D"), _CHANNELS),
    LoopCase(
        "selective scan", "elementwise", selective, ("B T D", "B T D", "D N", "B T N", "B T N"),
        ((("D", 1536), ("N", 16)),),
    ),
    LoopCase("linear attention", "low-rank", plain, (_WIDE,) * 3, _heads(128), _PRODUCTS),
    LoopCase("scalar decay", "low-rank", scalar_decay, (*(_WIDE,) * 3, _EACH), _heads(128, 64, 256)),
    LoopCase("vector decay", "low-rank", vector_decay, (_WIDE,) * 4, _heads(64, 128, 256)),
    LoopCase("read before", "low-rank", read_before, (*(_WIDE,) * 4, "H d"), _heads(64)),
    LoopCase("delta rule", "low-rank", delta, (*(_WIDE,) * 3, _EACH), _heads(64, 128, 256), _PRODUCTS),
    LoopCase(
        "gated delta rule", "low-rank", gated_delta, (*(_WIDE,) * 3, _EACH, _EACH), _heads(128, 64, 256)
    ),
    LoopCase("two-vector erase", "low-rank", two_vectors, (_WIDE,) * 6, _heads(64, 128)),
    LoopCase("two deltas a step", "low-rank", two_deltas, (*(_WIDE,) * 5, _EACH, _EACH), _heads(64)),
    LoopCase("memory with momentum", "low-rank", momentum, (*(_WIDE,) * 3, *(_EACH,) * 3), _heads(64)),
    LoopCase("fast and slow memory", "block", fast_and_slow, (*(_WIDE,) * 3, _EACH, _EACH), _heads(64)),
    LoopCase("dense", "dense", dense, (_WIDE, "H d", "H d d"), _heads(32, 64)),
    LoopCase("LSTM by heads", "nonlinear", lstm, ("B T H 4 d", "H 4 d d"), ((("H", 8), ("d", 64)),)),
    LoopCase("GRU", "nonlinear", gru, ("B T 3 d", "2 d d", "d d"), ((("d", 128),),)),
)  # fmt: skip

__all__ = ["LOOPS", "LoopCase"]
