"""Plain loops of every form, with gates that are exactly 0 and 1, negative and above 1.

Every loop takes ``gates`` of its own kind first; ``make`` gives inputs of one dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch


def ema(a, x):
    h = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def selective(a, x, b, c):
    """The state is wider than what is read and written."""
    h = x.new_zeros(x.shape[0], x.shape[2], b.shape[2])
    out = []
    for t in range(x.shape[1]):
        h = a[:, t, :, None] * h + x[:, t, :, None] * b[:, t, None, :]
        out.append((h * c[:, t, None, :]).sum(-1))
    return torch.stack(out, 1)


def two(a, x, y):
    """Two memories that exchange."""
    f = torch.zeros_like(x[:, 0])
    s = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        f, s = a[:, t] * f + 0.05 * s + x[:, t], 0.9 * s + 0.05 * f + y[:, t]
        out.append(f - s)
    return torch.stack(out, 1)


def rotation(a, x, y):
    z = torch.complex(torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]))
    w = torch.exp(torch.complex(torch.zeros_like(a), a))
    out = []
    for t in range(x.shape[1]):
        z = a[:, t] * w[:, t] * z + torch.complex(x[:, t], y[:, t])
        out.append(z.real)
    return torch.stack(out, 1)


def attention(a, q, k, v):
    """A gate per step."""
    s = q.new_zeros(q.shape[0], q.shape[2], v.shape[2])
    out = []
    for t in range(q.shape[1]):
        s = a[:, t, None, None] * s + k[:, t, :, None] * v[:, t, None, :]
        out.append(torch.einsum("bk,bkv->bv", q[:, t], s))
    return torch.stack(out, 1)


def gated(a, q, k, v):
    """A gate per key dimension; read before the update."""
    s = q.new_zeros(q.shape[0], q.shape[2], v.shape[2])
    out = []
    for t in range(q.shape[1]):
        out.append(torch.einsum("bk,bkv->bv", q[:, t], s))
        s = a[:, t, :, None] * s + k[:, t, :, None] * v[:, t, None, :]
    return torch.stack(out, 1)


def delta(a, q, k, v):
    s = q.new_zeros(q.shape[0], q.shape[2], v.shape[2])
    out = []
    for t in range(q.shape[1]):
        s = a[:, t, None, None] * s
        error = v[:, t] - torch.einsum("bk,bkv->bv", k[:, t], s)
        s = s + 0.5 * k[:, t, :, None] * error[:, None, :]
        out.append(torch.einsum("bk,bkv->bv", q[:, t], s))
    return torch.stack(out, 1)


def erase(a, r, k, v, w, b):
    """A gate per value dimension, and one direction replaced by another."""
    s = v.new_zeros(v.shape[0], v.shape[2], k.shape[2])
    out = []
    for t in range(v.shape[1]):
        read = (s * w[:, t, None, :]).sum(-1)
        s = s * a[:, t, None, :] + read[:, :, None] * b[:, t, None, :] * 0.3
        s = s + v[:, t, :, None] * k[:, t, None, :]
        out.append((s * r[:, t, None, :]).sum(-1))
    return torch.stack(out, 1)


def mixing(a, x, weight):
    h = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        h = (a * h + x[:, t]) @ weight
        out.append(h)
    return torch.stack(out, 1)


def best(a, x):
    m = torch.full_like(x[:, 0], float("-inf"))
    out = []
    for t in range(x.shape[1]):
        m = torch.maximum(m + a[:, t], x[:, t])
        out.append(m)
    return torch.stack(out, 1)


def path(a, x, weight):
    m = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        m = (m[:, :, None] + weight[None]).amax(1) + x[:, t] + a[:, t]
        out.append(m)
    return torch.stack(out, 1)


def rnn(a, x, weight):
    h = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        h = torch.tanh(a[:, t] * h + x[:, t] + h @ weight)
        out.append(h)
    return torch.stack(out, 1)


def cell(a, x, y, weight):
    """Two states, of which one is hidden."""
    h = torch.zeros_like(x[:, 0])
    c = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        u = h @ weight
        c = a[:, t] * torch.sigmoid(u + x[:, t]) * c + torch.tanh(u + y[:, t])
        h = torch.sigmoid(u - x[:, t]) * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 1)


B, D, K, V = 2, 5, 6, 5
"""None of them a power of two."""


@dataclasses.dataclass(frozen=True)
class Form:
    """``shapes`` of the inputs behind batch and time; those without have none of the two."""

    loop: Callable
    form: str
    algorithm: str
    gate: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...] = ()
    fixed: bool = False
    """Whether the gate is the same at every step."""

    @property
    def name(self):
        return self.loop.__name__

    def make(self, steps, dtype=torch.float32, seed=0, gates="odd"):
        gen = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=gen, dtype=torch.float64).mul(0.4).to(dtype)

        lead = () if self.fixed else (B, steps)
        gate = torch.rand(*lead, *self.gate, generator=gen, dtype=torch.float64)
        if gates == "odd":
            choice = torch.randint(0, 8, gate.shape, generator=gen)
            for n, value in enumerate((0.0, 1.0, -0.7, 1.2)):
                gate = torch.where(choice == n, torch.full_like(gate, value), gate)
        inputs = [normal(B, steps, *s) for s in self.shapes]
        # of wide matrices the powers would leave float16 behind
        weights = [normal(*s) * min(1.0, D / s[0]) ** 0.5 for s in self.weights]
        return (gate.to(dtype), *inputs, *weights)


FORMS = (
    Form(ema, "elementwise", "scan", (D,), ((D,),)),
    Form(selective, "elementwise", "scan", (D,), ((D,), (K,), (K,))),
    Form(two, "block", "scan", (D,), ((D,), (D,))),
    Form(rotation, "elementwise", "scan", (D,), ((D,), (D,))),
    Form(attention, "low-rank", "chunked", (), ((K,), (K,), (V,))),
    Form(gated, "low-rank", "chunked", (K,), ((K,), (K,), (V,))),
    Form(delta, "low-rank", "chunked", (), ((K,), (K,), (V,))),
    Form(erase, "low-rank", "chunked", (K,), ((K,), (K,), (V,), (K,), (K,))),
    Form(mixing, "dense", "doubling", (D,), ((D,),), ((D, D),), fixed=True),
    Form(best, "semiring", "scan", (D,), ((D,),)),
    Form(path, "semiring", "sequential", (D,), ((D,),), ((D, D),)),
    Form(rnn, "nonlinear", "sequential", (D,), ((D,),), ((D, D),)),
    Form(cell, "nonlinear", "sequential", (D,), ((D,), (D,)), ((D, D),)),
)


def widened(form: Form, n: int) -> Form:
    """The same loop with every dimension of size ``n``."""
    shapes, weights = (tuple(tuple(n for _ in s) for s in group) for group in (form.shapes, form.weights))
    return dataclasses.replace(form, gate=tuple(n for _ in form.gate), shapes=shapes, weights=weights)
