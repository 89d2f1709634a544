"""Single steps of recurrences, and how to bring one to a ``Step`` without a loop around it."""

import torch
import torch.fx as fx
from torch._subclasses import FakeTensorMode

from tenfuse.capture.loop import Carry, Loop, Span, Stream
from tenfuse.plan.placement import Placement
from tenfuse.step.fission import split
from tenfuse.step.normalize import normalize
from tenfuse.step.reader import read


def sizes(*shapes, dtype=torch.float32):
    return [torch.empty(shape, dtype=dtype) for shape in shapes]


def loop_of(step, carries, streams, invariants):
    """A ``Loop`` whose body is ``step(*carries, *streams, *invariants) -> (nexts, ys)``."""
    body = fx.symbolic_trace(step)
    mode = FakeTensorMode()
    holders = [n for n in body.graph.nodes if n.op == "placeholder"]
    for node, tensor in zip(holders, [*carries, *streams, *invariants], strict=True):
        node.meta["example_value"] = mode.from_tensor(tensor)
    elsewhere = fx.Graph().placeholder("elsewhere")
    return Loop(
        body,
        tuple(Carry(f"c{i}", elsewhere) for i in range(len(carries))),
        tuple(Stream(f"x{i}", elsewhere) for i in range(len(streams))),
        tuple(elsewhere for _ in invariants),
        5, False, Span("", 0), (), {},
    )  # fmt: skip


def analysed(step, carries, streams, invariants):
    aten = normalize(loop_of(step, carries, streams, invariants))
    parts = split(aten, Placement())
    return aten, parts, read(aten, parts)


def delta(s, q, k, v, b):
    w = torch.einsum("bhkv,bhk->bhv", s, k)
    s = s + b[..., None, None] * k[..., None] * (v - w)[..., None, :]
    return (s,), ((q[..., None] * s).sum(-2),)


def ten(a, b, x, c, s, r, w):
    a, b = c * a - s * b + x, s * a + c * b
    a, b = a @ r, b @ r
    return (a, b), (torch.nn.functional.layer_norm(a @ w.T, (6,)),)


def lstm(h, c, x, wi, wh, bias):
    gates = torch.nn.functional.linear(x, wi) + torch.nn.functional.linear(h, wh, bias)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h, c), (h,)


def lstm_cell(h, c, x, wi, wh, bi, bh):
    h, c = torch.lstm_cell(x, (h, c), wi, wh, bi, bh)
    return (h, c), (h,)


def concatenated(h, x, w):
    h = torch.tanh(torch.cat([x, h], -1) @ w)
    return (h,), (h,)


def selective(h, dt, x, b, c, a):
    h = torch.exp(-dt[..., None].abs() * a.abs()) * h + (dt * x)[..., None] * b[:, None, :]
    return (h,), ((h @ c[..., None])[..., 0],)


def squared(s, x):
    s = s * 0.1 + x[..., None] * x[:, None, :]
    s = s @ s.transpose(-1, -2)
    return (s.transpose(-1, -2) * 0.01,), ()


def symmetrised(s, x):
    s = 0.1 * (s + s.transpose(-1, -2)) @ s * 0.1 + x[..., None]
    return (s,), (s.sum(-1),)


def complex_pair(z, lam, x, w):
    z = lam * z + x
    return (z,), ((z @ w).real, z.abs())


def merged_heads(s, q, k, v, g):
    q, k, v = (t.view(2, 2, 3) for t in (q, k, v))
    s = s * torch.sigmoid(g).view(2, 2, 1, 1) + torch.einsum("bhi,bhj->bhij", k, v)
    return (s,), (torch.einsum("bhi, bhij -> bhj", q, s).reshape(2, 6),)


def normalised(h, x):
    h = h.view(2, 3, 4) * 0.5 + x.view(2, 3, 4)
    h = (h / (h.norm(dim=-1, keepdim=True) + 1e-8)).reshape(2, 12)
    return (h,), (torch.softmax(h, -1),)


def shift_register(s, x, w):
    s = torch.cat([s[..., 1:], x[..., None]], -1)
    return (s,), ((s * w).sum(-1),)


def own_outer_product(h, x):
    h = torch.tanh((h[:, :, None] * h[:, None, :]).sum(-1) + x)
    return (h,), (h.cumsum(-1),)


def swapped(a, b, x):
    return (b + x, a * 0.5), (a,)


def rotation(s, x, c, n):
    a, b = s[..., 0], s[..., 1]
    s = torch.stack([c * a - n * b + x, n * a + c * b], -1)
    return (s,), (s[..., 0],)


def crf(a, e, tr):
    a = torch.logsumexp(a[:, :, None] + tr, 1) + e
    return (a,), (a,)


def lam(f, s, q, k, u, w, bm, psi):
    def unit(x):
        return x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-8)

    f, s = 0.9 * f, 0.8 * s
    fh, sh = unit(f), unit(s)
    uf, us = u - w @ fh, u - w @ sh
    o = 0.3 * (q @ fh + bm @ uf) + 0.7 * (q @ sh + bm @ us)
    f, s = f + k.transpose(-1, -2) @ uf, s + k.transpose(-1, -2) @ us
    f, s = f + psi * s, s + psi * f
    return (unit(f), unit(s)), (o,)


def stabilised(c, n, m, q, k, v, i, f):
    top = torch.maximum(f + m, i)
    fa, ia = torch.exp(f + m - top), torch.exp(i - top)
    c = fa[..., None] * c.clone() + ia[..., None] * (k[..., None] @ v[:, :, None, :])
    n = fa * n.clone() + ia * k
    num = (q[:, :, None, :] @ c).squeeze(2)
    den = (q[:, :, None, :] @ n[..., None]).squeeze(2)
    return (c, n, top), (num / (torch.maximum(den.abs(), torch.exp(-top)) + 1e-6),)


def previous(p, x):
    return (x,), (x - p,)


def masked(h, x, m):
    h = torch.where(m, torch.clamp(0.9 * h + x, -1.0, 1.0), h)
    return (h,), (torch.nn.functional.softplus(h),)


def repaired(h, x):
    h = torch.nan_to_num(h / x.relu().floor(), nan=0.5, posinf=2.0, neginf=-1.0)
    return (h,), (h,)


def flags(h, x):
    on = ((h > 0) ^ (x > 0)) | (h > 1).any(-1, keepdim=True)
    h = torch.where(on & (h < 9).all(), 0.5 * h, h + x) - h.min()
    return (h,), (h / torch.linalg.vector_norm(h, torch.inf, -1, keepdim=True),)


def turned(h, x):
    return (torch.roll(h, (1, 2), (0, 1)).flip(0, 1) + x,), (h,)


def padded(h, x):
    h = torch.nn.functional.pad(h, (2, -1, -1, 1), value=0.5)[:, :-1] + x
    return (h,), (torch.nn.functional.pad(h, (0, 1)),)


_C = torch.complex64
STEPS = {
    "delta": (delta, sizes((2, 3, 4, 5)), sizes((2, 3, 4), (2, 3, 4), (2, 3, 5), (2, 3)), []),
    "ten": (ten, sizes((2, 4), (2, 4)), sizes((2, 4)), sizes((4,), (4,), (4, 4), (6, 4))),
    "lstm": (lstm, sizes((2, 4), (2, 4)), sizes((2, 3)), sizes((16, 3), (16, 4), (16,))),
    "lstm-cell": (lstm_cell, sizes((2, 4), (2, 4)), sizes((2, 3)), sizes((16, 3), (16, 4), (16,), (16,))),
    "concatenated": (concatenated, sizes((2, 4)), sizes((2, 3)), sizes((7, 4))),
    "selective": (selective, sizes((2, 4, 3)), sizes((2, 4), (2, 4), (2, 3), (2, 3)), sizes((4, 3))),
    "squared": (squared, sizes((2, 4, 4)), sizes((2, 4)), []),
    "symmetrised": (symmetrised, sizes((2, 4, 4)), sizes((2, 4)), []),
    "complex": (
        complex_pair, sizes((2, 4), dtype=_C), sizes((2, 4), (2, 4), dtype=_C), sizes((4, 3), dtype=_C),
    ),
    "merged-heads": (merged_heads, sizes((2, 2, 3, 3)), sizes((2, 6), (2, 6), (2, 6), (2, 2)), []),
    "normalised": (normalised, sizes((2, 12)), sizes((2, 12)), []),
    "shift-register": (shift_register, sizes((2, 3, 4)), sizes((2, 3)), sizes((3, 4))),
    "own-outer-product": (own_outer_product, sizes((2, 4)), sizes((2, 4)), []),
    "swapped": (swapped, sizes((2, 4), (2, 4)), sizes((2, 4)), []),
    "rotation": (rotation, sizes((2, 4, 2)), sizes((2, 4)), sizes((4,), (4,))),
    "crf": (crf, sizes((2, 4)), sizes((2, 4)), sizes((4, 4))),
    "lam": (
        lam, sizes((2, 2, 3, 3), (2, 2, 3, 3)), sizes(*[(2, 2, 5, 3)] * 4, (2, 2, 5, 5), (2, 2, 1, 1)), [],
    ),
    "stabilised": (
        stabilised, sizes((2, 2, 3, 5), (2, 2, 3), (2, 2, 1)),
        sizes((2, 2, 3), (2, 2, 3), (2, 2, 5), (2, 2, 1), (2, 2, 1)), [],
    ),
    "previous": (previous, sizes((2, 3)), sizes((2, 3)), []),
    "repaired": (repaired, sizes((2, 3)), sizes((2, 3)), []),
    "flags": (flags, sizes((2, 3)), sizes((2, 3)), []),
    "turned": (turned, sizes((3, 4)), sizes((3, 4)), []),
    "padded": (padded, sizes((4, 5)), sizes((4, 5)), []),
    "masked": (masked, sizes((2, 3)), [*sizes((2, 3)), *sizes((2, 3), dtype=torch.bool)], []),
}  # fmt: skip
