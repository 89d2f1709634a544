"""Gated scans: h <- a_t h + b_t, entry by entry, with gates that read only the input.

Takes x [B, T, D] (or a and b of that shape); leaves h [B, T, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, Model, gate, normal


def ema(x: Tensor, decay: Tensor) -> Tensor:
    """Exponential moving average: h <- d h + (1 - d) x with d [D] between 0 and 1."""
    h = torch.zeros_like(x[:, 0])
    outputs = []
    for t in range(x.shape[1]):
        h = decay * h + (1 - decay) * x[:, t]
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def ema_lerp(x: Tensor, decay: Tensor) -> Tensor:
    """The same as a step towards the input, in place, iterating over the tensor."""
    h = torch.zeros_like(x[:, 0])
    out = torch.empty_like(x)
    for i, x_t in enumerate(x.transpose(0, 1)):
        h = h.lerp(x_t, 1 - decay)
        out[:, i].copy_(h)
    return out


def ema_in_place(x: Tensor, decay: Tensor) -> Tensor:
    """The same with ``mul_`` and ``add_`` on a fresh copy of the state."""
    h = torch.zeros_like(x[:, 0])
    outputs = []
    for t in range(x.size(1)):
        h = h.clone()
        h.mul_(decay).add_((1 - decay) * x[:, t])
        outputs.append(h)
    return torch.stack(outputs, 1)


def ema_from_list(x: Tensor, decay: Tensor) -> Tensor:
    """The same with the state read back from the list of outputs."""
    states = [(1 - decay) * x[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(decay * states[-1] + (1 - decay) * x[:, t])
    return torch.stack(states, 1)


def chunk_state(d: Tensor, u: Tensor) -> Tensor:
    """``states[:, :, i] = d * states[:, :, i-1] + u[:, :, i]`` on [B, H, T, D]."""
    states = torch.zeros_like(u)
    states[:, :, 0] = u[:, :, 0]
    for i in range(1, u.shape[2]):
        states[:, :, i] = d[:, :, i, None] * states[:, :, i - 1].clone() + u[:, :, i]
    return states


class Gated(nn.Module):
    """Three linear maps of the input and one vector of parameters, for the cells below."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.forget, self.write, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.vector = nn.Parameter(torch.linspace(0.1, 0.9, dim))


class Hgrn(Gated):
    """HGRN: a forget gate with a lower bound, f = gamma + (1 - gamma) sigmoid(W x)."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], x.shape[2])
        hs = []
        for t in range(x.shape[1]):
            f = self.vector + (1 - self.vector) * torch.sigmoid(self.forget(x[:, t]))
            h = f * h + (1 - f) * F.silu(self.value(x[:, t]))
            hs.append(torch.sigmoid(self.write(x[:, t])) * h)
        return torch.stack(hs, dim=1)


class RgLru(Gated):
    """RG-LRU: a = exp(-8 r softplus(Lambda)), h <- a h + sqrt(1 - a^2) (i x)."""

    def forward(self, x: Tensor) -> Tensor:
        log_a = -8.0 * torch.sigmoid(self.forget(x)) * F.softplus(self.vector)
        a = log_a.exp()
        b = torch.sqrt(-torch.expm1(2 * log_a)) * torch.sigmoid(self.write(x)) * x
        h = torch.zeros_like(x[:, 0])
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = a[:, t] * h + b[:, t]
            out[:, t] = h
        return out


class MinGru(Gated):
    """minGRU: h <- (1 - z) h + z (W x), the gate z = sigmoid(W_z x)."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        hs = []
        for x_t in x.unbind(dim=1):
            z = torch.sigmoid(self.forget(x_t))
            h = (1 - z) * h + z * self.value(x_t)
            hs.append(h)
        return torch.stack(hs, dim=1)


class MinLstm(Gated):
    """minLSTM: two gates normalised to sum to one."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        hs = []
        for t in range(x.shape[1]):
            f, i = torch.sigmoid(self.forget(x[:, t])), torch.sigmoid(self.write(x[:, t]))
            h = f / (f + i) * h + i / (f + i) * self.value(x[:, t])
            hs.append(h)
        return torch.stack(hs, dim=1)


def masked(x: Tensor, decay: Tensor, lengths: Tensor) -> Tensor:
    """An EMA that stands still after each sequence's length; ``lengths`` [B] of integers."""
    h = torch.zeros_like(x[:, 0])
    outputs = []
    for t in range(x.shape[1]):
        new = decay * h + (1 - decay) * x[:, t]
        h = torch.where((t < lengths)[:, None], new, h)
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def bidirectional(x: Tensor, decay: Tensor) -> Tensor:
    """An EMA forwards and one backwards, side by side."""
    forward, backward = torch.zeros_like(x), torch.zeros_like(x)
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = decay * h + (1 - decay) * x[:, t]
        forward[:, t] = h
    h = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        h = decay * h + (1 - decay) * x[:, t]
        backward[:, t] = h
    return torch.cat([forward, backward], dim=-1)


def example_inputs(batch: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """x and decay for ``ema``."""
    return normal(batch, steps, dim), gate(dim)


def _case(name: str, function: Model, inputs: Model, same_as: str = "") -> Case:
    return Case(
        f"elementwise/{name}", lambda steps: (function, inputs(steps)), same_as and f"elementwise/{same_as}"
    )


def _cell(name: str, model: type[nn.Module]) -> Case:
    return Case(f"elementwise/{name}", lambda steps: (model(5).eval(), (normal(2, steps, 5),)))


def _plain(steps: int) -> tuple[Tensor, ...]:
    return example_inputs(2, steps, 5)


def _chunk_inputs(steps: int) -> tuple[Tensor, ...]:
    return gate(2, 3, steps), normal(2, 3, steps, 4)


def _masked_inputs(steps: int) -> tuple[Tensor, ...]:
    return *_plain(steps), torch.tensor([steps, (steps + 1) // 2])


CASES = (
    _case("ema", ema, _plain),
    _case("ema-lerp", ema_lerp, _plain, same_as="ema"),
    _case("ema-in-place", ema_in_place, _plain, same_as="ema"),
    _case("ema-list", ema_from_list, _plain, same_as="ema"),
    _case("chunk-state", chunk_state, _chunk_inputs),
    _case("masked", masked, _masked_inputs),
    _case("bidirectional", bidirectional, _plain),
    _cell("hgrn", Hgrn),
    _cell("rg-lru", RgLru),
    _cell("mingru", MinGru),
    _cell("minlstm", MinLstm),
)
