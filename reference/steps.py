"""One step of each recurrence, to be run by a loop or by torch's ``scan`` operator.

A step takes a carry, the inputs of one step and constants, each a tuple of tensors; it leaves
the next carry and an output.  ``STEPS`` holds each with a maker of inputs: [B, T, ...] as models
have them, for any batch, length, heads and head size, on any device.  Tracing a Python loop
costs time for every step, so long sequences are run by ``scanned``; ``looped`` is the same loop
in Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

Tensors = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Size:
    batch: int
    steps: int
    heads: int
    dim: int

    def __str__(self) -> str:
        return f"B{self.batch} T{self.steps} H{self.heads} d{self.dim}"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """``fixed`` are constants that want no gradient, after those in ``constants`` that do."""

    carry: Tensors
    streams: Tensors
    constants: Tensors = ()
    fixed: Tensors = ()


@dataclasses.dataclass(frozen=True)
class Step:
    """``algorithm`` is what tenfuse runs it by."""

    name: str
    run: Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensor]]
    make: Callable[[Size], Inputs]
    algorithm: str


def looped(step: Step, carry: Tensors, streams: Tensors, constants: Tensors = ()) -> tuple[Tensors, Tensor]:
    """Final carry and outputs [B, T, ...] by a loop in Python."""
    outputs = []
    for t in range(streams[0].shape[1]):
        carry, y = step.run(carry, tuple([x[:, t] for x in streams]), constants)
        outputs.append(y)
    return carry, torch.stack(outputs, dim=1)


def scanned(step: Step, carry: Tensors, streams: Tensors, constants: Tensors = ()) -> tuple[Tensors, Tensor]:
    """The same by torch's operator."""

    def combine(carry: Tensors, streams: Tensors) -> tuple[Tensors, Tensor]:
        return step.run(carry, streams, constants)

    # Along the first axis: what other axes mean for the outputs has changed between versions of torch.
    end, y = scan(combine, carry, tuple([x.movedim(1, 0) for x in streams]))
    return end, y.movedim(0, 1)


# -- elementwise and block ----------------------------------------------------------------------


def gated(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (h,), (a, b) = carry, streams
    h = a * h + b
    return (h,), h.clone()


def rotation(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """A complex state kept as two real ones."""
    (re, im), (x,), (lr, li) = carry, streams, constants
    re, im = lr * re - li * im + x, lr * im + li * re
    return (re, im), re.clone()


def selective(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """Mamba-1."""
    (h,), (x, dt, b, c), (a,) = carry, streams, constants
    h = torch.exp(dt[:, :, None] * a) * h + (dt * x)[:, :, None] * b[:, None, :]
    return (h,), (h * c[:, None, :]).sum(-1)


def decayed_max(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (h,), (g, x) = carry, streams
    h = torch.maximum(h + g, x)
    return (h,), h.clone()


# -- matrix states [B, H, K, V] -----------------------------------------------------------------


def _read(s: Tensor, q: Tensor) -> Tensor:
    return (q[..., None, :] @ s).squeeze(-2)


def _outer(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :, None] * v[..., None, :]


def linear(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (s,), (q, k, v) = carry, streams
    s = s + _outer(k, v)
    return (s,), _read(s, q)


def retnet(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (s,), (q, k, v), (decay,) = carry, streams, constants
    s = s * decay[:, None, None] + _outer(k, v)
    return (s,), _read(s, q)


def decayed(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """A decay per head and step: Mamba-2, SSD."""
    (s,), (q, k, v, g) = carry, streams
    s = s * g.exp()[..., None, None] + _outer(k, v)
    return (s,), _read(s, q)


def gla(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """A decay for every key entry."""
    (s,), (q, k, v, g) = carry, streams
    s = s * g.exp()[..., None] + _outer(k, v)
    return (s,), _read(s, q)


def delta(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (s,), (q, k, v, beta) = carry, streams
    s = s + _outer(k, beta[..., None] * (v - _read(s, k)))
    return (s,), _read(s, q)


def gated_delta(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (s,), (q, k, v, g, beta) = carry, streams
    s = s * g.exp()[..., None, None]
    s = s + _outer(k, beta[..., None] * (v - _read(s, k)))
    return (s,), _read(s, q)


def kda(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (s,), (q, k, v, g, beta) = carry, streams
    s = s * g.exp()[..., None]
    s = s + _outer(k, beta[..., None] * (v - _read(s, k)))
    return (s,), _read(s, q)


def rwkv7(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """S <- S (diag(w) + a b^T) + v k^T on the transposed state."""
    (s,), (r, w, k, v, a, b) = carry, streams
    s = s * w[..., None] + _outer(b, _read(s, a)) + _outer(k, v)
    return (s,), _read(s, r)


# -- dense and nonlinear ------------------------------------------------------------------------


def resonance(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    """TEN: a complex state and a matrix at every step."""
    (re, im), (x,), (lr, li, r) = carry, streams, constants
    re, im = (lr * re - li * im + x) @ r, (lr * im + li * re) @ r
    return (re, im), re.clone()


def lstm(carry: Tensors, streams: Tensors, constants: Tensors) -> tuple[Tensors, Tensor]:
    (h, c), (x,), (w,) = carry, streams, constants
    i, f, g, o = (x + h @ w).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h, c), h.clone()


# -- inputs -------------------------------------------------------------------------------------


def _state(size: Size) -> Tensors:
    return (0.1 * torch.randn(size.batch, size.heads, size.dim, size.dim),)


def _wide(size: Size, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size.batch, size.steps, size.heads * size.dim)


def _head(size: Size, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size.batch, size.steps, size.heads, size.dim)


def _unit(size: Size) -> Tensor:
    return F.normalize(_head(size), dim=-1)


def _log_gate(*shape: int) -> Tensor:
    return -F.softplus(torch.randn(*shape) - 3.0)


def _per_step(size: Size) -> tuple[int, int, int]:
    return size.batch, size.steps, size.heads


def _qkv(size: Size) -> Tensors:
    return _head(size, size.dim**-0.5), _unit(size), _head(size)


def _rates(size: Size, count: int) -> Tensors:
    """The two parts of ``count`` complex decays."""
    radius, angle = 0.99 * torch.sigmoid(torch.linspace(0.0, 4.0, count)), torch.linspace(0.0, 3.0, count)
    return radius * angle.cos(), radius * angle.sin()


def _gated(size: Size) -> Inputs:
    x = _wide(size)
    return Inputs((torch.randn(*x[:, 0].shape),), (torch.sigmoid(_wide(size) + 2.0), x))


def _rotation(size: Size) -> Inputs:
    x = _wide(size)
    carry = torch.randn(*x[:, 0].shape), torch.randn(*x[:, 0].shape)
    return Inputs(carry, (x,), _rates(size, x.shape[-1]))


def _selective(size: Size) -> Inputs:
    """16 states for each of H d channels."""
    x, states = _wide(size), 16
    dt = F.softplus(_wide(size) - 3.0)
    b, c = (torch.randn(size.batch, size.steps, states) for _ in range(2))
    a = -torch.arange(1.0, states + 1).repeat(x.shape[-1], 1)
    return Inputs((0.1 * torch.randn(size.batch, x.shape[-1], states),), (x, dt, b, c), (a,))


def _decayed_max(size: Size) -> Inputs:
    x = _wide(size)
    return Inputs((torch.randn(*x[:, 0].shape),), (_wide(size, 0.1) - 0.2, x))


def _retnet(size: Size) -> Inputs:
    decay = 1 - torch.exp2(-5.0 - torch.arange(float(size.heads)))
    return Inputs(_state(size), _qkv(size), fixed=(decay,))


def _rwkv7(size: Size) -> Inputs:
    kappa, rate = _unit(size), torch.rand(size.batch, size.steps, size.heads, size.dim)
    r, k, v = _qkv(size)
    w = torch.exp(-0.6065 * torch.rand_like(rate))
    return Inputs(_state(size), (r, w, k, v, -kappa, kappa * rate))


def _resonance(size: Size) -> Inputs:
    x = torch.randn(size.batch, size.steps, size.dim)
    carry = torch.randn(*x[:, 0].shape), torch.randn(*x[:, 0].shape)
    mix = torch.randn(size.dim, size.dim)
    return Inputs(carry, (x,), (*_rates(size, size.dim), torch.eye(size.dim) + 0.01 * mix / mix.norm()))


def _lstm(size: Size) -> Inputs:
    x = torch.randn(size.batch, size.steps, 4 * size.dim)
    carry = torch.randn(size.batch, size.dim), torch.randn(size.batch, size.dim)
    return Inputs(carry, (x,), (size.dim**-0.5 * torch.randn(size.dim, 4 * size.dim),))


STEPS = {
    step.name: step
    for step in (
        Step("gated", gated, _gated, "scan"),
        Step("rotation", rotation, _rotation, "scan"),
        Step("selective", selective, _selective, "scan"),
        Step("decayed max", decayed_max, _decayed_max, "scan"),
        Step("linear", linear, lambda s: Inputs(_state(s), _qkv(s)), "chunked"),
        Step("retnet", retnet, _retnet, "chunked"),
        Step(
            "decayed", decayed, lambda s: Inputs(_state(s), (*_qkv(s), _log_gate(*_per_step(s)))), "chunked"
        ),
        Step("gla", gla, lambda s: Inputs(_state(s), (*_qkv(s), _log_gate(*_per_step(s), s.dim))), "chunked"),
        Step("delta", delta, lambda s: Inputs(_state(s), (*_qkv(s), torch.rand(*_per_step(s)))), "chunked"),
        Step(
            "gated delta",
            gated_delta,
            lambda s: Inputs(_state(s), (*_qkv(s), _log_gate(*_per_step(s)), torch.rand(*_per_step(s)))),
            "chunked",
        ),
        Step(
            "kda",
            kda,
            lambda s: Inputs(
                _state(s), (*_qkv(s), _log_gate(*_per_step(s), s.dim), torch.rand(*_per_step(s)))
            ),
            "chunked",
        ),
        Step("rwkv7", rwkv7, _rwkv7, "chunked"),
        Step("resonance", resonance, _resonance, "doubling"),
        Step("lstm", lstm, _lstm, "sequential"),
    )
}
