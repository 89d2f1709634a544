"""Temporal Eigenstate Networks, version 6: heads, a complex input, a gated output.

Takes x [B, T, D]; leaves y [B, T, D].  The resonance only shapes what is read:

    z_t = lambda_t * z_{t-1} + beta_t (complex),   c_t = z_t R^T per head,
    y_t = sigmoid(x_t W_g^T) * W [Re c_t; Im c_t].

In the selective form lambda_t depends on the input, lambda_t = sigmoid(alpha + 0.1
tanh(W1 x_t)) e^{i (omega + 0.05 tanh(W2 x_t))}; otherwise it is sigmoid(alpha) e^{i omega}.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, normal
from reference.ten import example_inputs


class HeadedTen(nn.Module):
    """The parameters of version 6: H heads of K / H states each."""

    def __init__(self, dim: int = 32, states: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, per_head = heads, states // heads
        self.alpha = nn.Parameter(torch.linspace(-1.0, 3.0, states).view(heads, per_head))
        self.omega = nn.Parameter(torch.linspace(0.0, 3.0, states).view(heads, per_head))
        self.w_real = nn.Linear(dim, states)
        self.w_imag = nn.Linear(dim, states)
        self.w_gate = nn.Linear(dim, dim)
        self.w_out = nn.Linear(2 * states, dim)
        self.w_size = nn.Linear(dim, states)
        self.w_turn = nn.Linear(dim, states)
        self.r = nn.Parameter(
            torch.eye(per_head).repeat(heads, 1, 1) + normal(heads, per_head, per_head, scale=0.1)
        )

    def split(self, x: Tensor) -> Tensor:
        """[B, T, K] to [B, T, H, K / H]."""
        return x.unflatten(-1, (self.heads, -1))

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.w_real(x)), self.split(self.w_imag(x))

    def rotation(self) -> tuple[Tensor, Tensor]:
        m = torch.sigmoid(self.alpha)
        return m * torch.cos(self.omega), m * torch.sin(self.omega)

    def read(self, x: Tensor, real: Tensor, imag: Tensor) -> Tensor:
        """The gated output from c as two [B, T, K]."""
        return torch.sigmoid(self.w_gate(x)) * self.w_out(torch.cat([real, imag], dim=-1))


class V6(HeadedTen):
    """Both parts rebound as a tuple; a loop over heads inside every step."""

    def forward(self, x: Tensor) -> Tensor:
        beta_r, beta_i = self.inputs(x)
        lr, li = self.rotation()
        a, b = torch.zeros_like(beta_r[:, 0]), torch.zeros_like(beta_i[:, 0])
        reals, imags = [], []
        for t in range(x.shape[1]):
            a, b = lr * a - li * b + beta_r[:, t], lr * b + li * a + beta_i[:, t]
            head_a, head_b = [], []
            for h in range(self.heads):
                head_a.append(torch.einsum("bk,jk->bj", a[:, h], self.r[h]))
                head_b.append(torch.einsum("bk,jk->bj", b[:, h], self.r[h]))
            reals.append(torch.cat(head_a, dim=-1))
            imags.append(torch.cat(head_b, dim=-1))
        return self.read(x, torch.stack(reals, dim=1), torch.stack(imags, dim=1))


class V6PerHead(HeadedTen):
    """The loop over heads outside: every head runs its own loop over time."""

    def forward(self, x: Tensor) -> Tensor:
        beta_r, beta_i = self.inputs(x)
        lr, li = self.rotation()
        reals, imags = [], []
        for h in range(self.heads):
            a = b = x.new_zeros(x.shape[0], lr.shape[1])
            head_a, head_b = [], []
            for t in range(x.shape[1]):
                (a, b) = (
                    lr[h] * a - li[h] * b + beta_r[:, t, h],
                    lr[h] * b + li[h] * a + beta_i[:, t, h],
                )
                head_a.append(torch.einsum("bk, jk -> bj", a, self.r[h]))
                head_b.append(torch.einsum("bk, jk -> bj", b, self.r[h]))
            reals.append(torch.stack(head_a, 1))
            imags.append(torch.stack(head_b, 1))
        return self.read(x, torch.cat(reals, -1), torch.cat(imags, -1))


class V6Selective(HeadedTen):
    """lambda_t from the input, computed inside the step."""

    def forward(self, x: Tensor) -> Tensor:
        beta_r, beta_i = self.inputs(x)
        a = b = torch.zeros_like(beta_r[:, 0])
        reals, imags = [], []
        for t in range(x.shape[1]):
            x_t = x[:, t]
            m = torch.sigmoid(self.alpha + 0.1 * torch.tanh(self.w_size(x_t)).view(-1, *self.alpha.shape))
            turn = self.omega + 0.05 * torch.tanh(self.w_turn(x_t)).view(-1, *self.omega.shape)
            lr, li = m * turn.cos(), m * turn.sin()
            a, b = lr * a - li * b + beta_r[:, t], lr * b + li * a + beta_i[:, t]
            reals.append(torch.einsum("bhk,hjk->bhj", a, self.r).flatten(1))
            imags.append(torch.einsum("bhk,hjk->bhj", b, self.r).flatten(1))
        return self.read(x, torch.stack(reals, dim=1), torch.stack(imags, dim=1))


class V6SelectiveComplex(HeadedTen):
    """The same function in complex arithmetic, with everything but the state outside."""

    def forward(self, x: Tensor) -> Tensor:
        beta = torch.complex(*self.inputs(x))
        m = torch.sigmoid(self.alpha + 0.1 * self.split(torch.tanh(self.w_size(x))))
        lam = torch.polar(m, self.omega + 0.05 * self.split(torch.tanh(self.w_turn(x))))
        z = torch.zeros_like(beta[:, 0])
        states = []
        for t in range(x.shape[1]):
            z = lam[:, t] * z + beta[:, t]
            states.append(z)
        c = torch.einsum("bthk,hjk->bthj", torch.stack(states, dim=1), self.r.to(beta.dtype)).flatten(2)
        return self.read(x, c.real, c.imag)


class V6Silu(V6):
    """As V6 with the SiLU of the gate's input in place of the sigmoid."""

    def read(self, x: Tensor, real: Tensor, imag: Tensor) -> Tensor:
        return F.silu(self.w_gate(x)) * self.w_out(torch.cat([real, imag], dim=-1))


def _case(name: str, model: type[nn.Module], same_as: str = "") -> Case:
    def build(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return model(8, 6).eval(), example_inputs(2, steps, 8)

    return Case(f"ten/{name}", build, same_as and f"ten/{same_as}")


CASES = (
    _case("v6", V6),
    _case("v6-per-head", V6PerHead, same_as="v6"),
    _case("v6-silu", V6Silu),
    _case("v6-selective", V6Selective),
    _case("v6-selective-complex", V6SelectiveComplex, same_as="v6-selective"),
)
