"""State-space models: Mamba-1's selective scan, S4D and LRU with a complex diagonal.

Takes an input [B, T, D] (or the scan's own streams); leaves [B, T, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, Model, gate, normal


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Mamba-1: h <- e^(dt A) h + dt B x, y = C h + D x.

    x, dt [B, T, D], a [D, N] negative, b and c [B, T, N], d [D]; the state is [B, D, N].
    """
    h = torch.zeros(x.shape[0], *a.shape, dtype=x.dtype, device=x.device)
    ys = []
    for t in range(x.shape[1]):
        da = torch.exp(dt[:, t, :, None] * a)
        dbx = dt[:, t, :, None] * b[:, t, None, :] * x[:, t, :, None]
        h = da * h + dbx
        ys.append((h * c[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1) + x * d


def selective_scan_einsum(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The same with the discretisation outside the loop and einsum."""
    da = torch.exp(torch.einsum("btd,dn->btdn", dt, a))
    dbx = torch.einsum("btd,btn,btd->btdn", dt, b, x)
    h = x.new_zeros(x.shape[0], *a.shape)
    ys = []
    for i in range(x.shape[1]):
        h = da[:, i] * h + dbx[:, i]
        ys.append(torch.einsum("bdn,bn->bd", h, c[:, i, :]))
    return torch.stack(ys, dim=1) + x * d


def scan_of_products(da: Tensor, dbx: Tensor, c: Tensor) -> Tensor:
    """h <- dA h + dBx, y = sum over N of h C; dA and dBx [B, D, T, N], c [B, T, N], y [B, D, T]."""
    h = torch.zeros_like(da[:, :, 0])
    ys = []
    for t in range(da.shape[2]):
        h = da[:, :, t] * h + dbx[:, :, t]
        ys.append(torch.matmul(h, c[:, t, :].unsqueeze(-1))[:, :, 0])
    return torch.stack(ys, dim=-1)


class Lru(nn.Module):
    """LRU: lambda = exp(-exp(nu) + i exp(theta)), h <- lambda h + gamma B x, y = Re(C h) + D x."""

    def __init__(self, dim: int = 16, states: int = 8) -> None:
        super().__init__()
        self.nu = nn.Parameter(torch.linspace(-3.0, 0.0, states))
        self.theta = nn.Parameter(torch.linspace(-3.0, 1.0, states))
        self.b = nn.Parameter(normal(states, dim, 2, scale=(2 * dim) ** -0.5))
        self.c = nn.Parameter(normal(dim, states, 2, scale=states**-0.5))
        self.d = nn.Parameter(normal(dim))

    def forward(self, x: Tensor) -> Tensor:
        lam = torch.exp(torch.complex(-self.nu.exp(), self.theta.exp()))
        gamma = torch.sqrt(1 - lam.abs().square())
        b, c = torch.view_as_complex(self.b), torch.view_as_complex(self.c)
        u = gamma * (x.to(lam.dtype) @ b.T)
        h = torch.zeros_like(u[:, 0])
        hs = []
        for t in range(x.shape[1]):
            h = lam * h + u[:, t]
            hs.append(h)
        return (torch.stack(hs, dim=1) @ c.T).real + self.d * x


class LruPairs(Lru):
    """The same in two real tensors."""

    def forward(self, x: Tensor) -> Tensor:
        size = torch.exp(-self.nu.exp())
        lr, li = size * torch.cos(self.theta.exp()), size * torch.sin(self.theta.exp())
        gamma = torch.sqrt(1 - size * size)
        ur, ui = gamma * (x @ self.b[..., 0].T), gamma * (x @ self.b[..., 1].T)
        hr = hi = torch.zeros_like(ur[:, 0])
        ys = []
        for t in range(x.shape[1]):
            hr, hi = lr * hr - li * hi + ur[:, t], lr * hi + li * hr + ui[:, t]
            ys.append(hr @ self.c[..., 0].T - hi @ self.c[..., 1].T)
        return torch.stack(ys, dim=1) + self.d * x


class S4d(nn.Module):
    """S4D: N complex modes per channel, zero-order hold; the state is [B, D, N]."""

    def __init__(self, dim: int = 16, states: int = 4) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.linspace(-4.0, -1.0, dim))
        self.log_decay = nn.Parameter(torch.full((dim, states), 0.5).log())
        self.freq = nn.Parameter(torch.pi * torch.arange(states).expand(dim, states).clone())
        self.c = nn.Parameter(normal(dim, states, 2))
        self.d = nn.Parameter(normal(dim))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.complex(-self.log_decay.exp(), self.freq)
        da = torch.exp(a * self.log_dt.exp()[:, None])
        c = torch.view_as_complex(self.c) * (da - 1) / a
        h = torch.zeros(x.shape[0], *a.shape, dtype=a.dtype, device=x.device)
        ys = []
        for t in range(x.shape[1]):
            h = da * h + x[:, t, :, None]
            ys.append(2 * torch.einsum("bdn,dn->bd", h, c).real)
        return torch.stack(ys, dim=1) + self.d * x


def example_inputs(batch: int = 2, steps: int = 64, dim: int = 16, states: int = 8) -> tuple[Tensor, ...]:
    """x, dt, a, b, c, d for ``selective_scan``."""
    return (
        normal(batch, steps, dim),
        F.softplus(normal(batch, steps, dim) - 2.0),
        -torch.arange(1, states + 1).float().expand(dim, states).clone(),
        normal(batch, steps, states),
        normal(batch, steps, states),
        normal(dim),
    )


def products_inputs(batch: int = 2, dim: int = 16, states: int = 8, steps: int = 64) -> tuple[Tensor, ...]:
    """dA, dBx, c for ``scan_of_products``."""
    shape = (batch, dim, steps, states)
    return gate(*shape, low=0.5), normal(*shape, scale=0.1), normal(batch, steps, states)


def _case(name: str, function: Model, inputs: Model, same_as: str = "") -> Case:
    return Case(f"ssm/{name}", lambda steps: (function, inputs(steps)), same_as and f"ssm/{same_as}")


def _cell(name: str, model: type[nn.Module], same_as: str = "") -> Case:
    return Case(
        f"ssm/{name}",
        lambda steps: (model(5, 3).eval(), (normal(2, steps, 5),)),
        same_as and f"ssm/{same_as}",
    )


def _plain(steps: int) -> tuple[Tensor, ...]:
    return example_inputs(2, steps, 5, 3)


CASES = (
    _case("mamba1", selective_scan, _plain),
    _case("mamba1-einsum", selective_scan_einsum, _plain, same_as="mamba1"),
    _case("products", scan_of_products, lambda steps: products_inputs(2, 5, 3, steps)),
    _cell("lru", Lru),
    _cell("lru-pairs", LruPairs, same_as="lru"),
    _cell("s4d", S4d),
)
