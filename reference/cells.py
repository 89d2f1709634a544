"""Cells whose gates read the state: LSTM, GRU, tanh RNN, and mLSTM with its stabiliser.

Takes x [B, T, D] (mLSTM: its own streams); leaves h [B, T, K].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, normal


class Lstm(nn.Module):
    """i, f, g, o = chunks of W x + U h; c <- sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)."""

    def __init__(self, dim: int = 16, states: int = 16) -> None:
        super().__init__()
        self.states = states
        self.inputs, self.hidden = nn.Linear(dim, 4 * states), nn.Linear(states, 4 * states)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.states)
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.inputs(x[:, t]) + self.hidden(h)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class LstmCell(nn.Module):
    """The same recurrence through ``nn.LSTMCell``."""

    def __init__(self, dim: int = 16, states: int = 16) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(dim, states)

    def forward(self, x: Tensor) -> Tensor:
        state = (
            x.new_zeros(x.shape[0], self.cell.hidden_size),
            x.new_zeros(x.shape[0], self.cell.hidden_size),
        )
        outputs = []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1)


class Gru(nn.Module):
    """r, z = sigmoid(W x + U h); n = tanh(W x + r (U h)); h <- (1 - z) n + z h."""

    def __init__(self, dim: int = 16, states: int = 16) -> None:
        super().__init__()
        self.states = states
        self.inputs, self.hidden = nn.Linear(dim, 3 * states), nn.Linear(states, 3 * states)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.states)
        projected = self.inputs(x)
        out = torch.empty(*x.shape[:2], self.states, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            xr, xz, xn = projected[:, t].chunk(3, -1)
            hr, hz, hn = self.hidden(h).chunk(3, -1)
            z = torch.sigmoid(xz + hz)
            n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            h = (1 - z) * n + z * h
            out[:, t] = h
        return out


class TanhRnn(nn.Module):
    """h <- tanh(W x + U h)."""

    def __init__(self, dim: int = 16, states: int = 16) -> None:
        super().__init__()
        self.inputs, self.hidden = nn.Linear(dim, states), nn.Linear(states, states)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden.in_features)
        outputs = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.inputs(x[:, t]) + self.hidden(h))
            outputs.append(h)
        return torch.stack(outputs, dim=1)


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """mLSTM with its max-stabiliser; q, k, v [B, H, T, D], gates i and f [B, H, T] before activation.

    m <- max(log sigmoid(f) + m, i), then C and n decay by e^(log sigmoid(f) + m_old - m) and
    take k v^T and k times e^(i - m); h = C^T q / max(|n . q|, e^-m).
    """
    batch, heads, steps, dim = q.shape
    c = q.new_zeros(batch, heads, dim, v.shape[-1])
    n = q.new_zeros(batch, heads, dim)
    m = q.new_zeros(batch, heads)
    q, log_f = q * dim**-0.5, F.logsigmoid(f)
    outputs = []
    for t in range(steps):
        m_new = torch.maximum(log_f[:, :, t] + m, i[:, :, t])
        keep, take = torch.exp(log_f[:, :, t] + m - m_new), torch.exp(i[:, :, t] - m_new)
        m = m_new
        c = keep[..., None, None] * c + take[..., None, None] * (k[:, :, t, :, None] @ v[:, :, t, None, :])
        n = keep[..., None] * n + take[..., None] * k[:, :, t]
        read = (q[:, :, t, None, :] @ c).squeeze(-2)
        size = torch.maximum((n * q[:, :, t]).sum(-1).abs(), torch.exp(-m))
        outputs.append(read / (size[..., None] + 1e-6))
    return torch.stack(outputs, dim=2)


def example_inputs(batch: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """x [B, T, D] for the modules of this file."""
    return (normal(batch, steps, dim),)


def mlstm_inputs(batch: int = 2, heads: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """q, k, v, i, f for ``mlstm``."""
    shape = (batch, heads, steps, dim)
    return normal(*shape), normal(*shape), normal(*shape), normal(*shape[:3]), normal(*shape[:3]) + 2.0


def _cell(name: str, model: type[nn.Module], same_as: str = "") -> Case:
    return Case(f"cells/{name}", lambda steps: (model(4, 5).eval(), example_inputs(2, steps, 4)), same_as)


CASES = (
    _cell("lstm", Lstm),
    _cell("lstm-cell", LstmCell),
    _cell("gru", Gru),
    _cell("rnn", TanhRnn),
    Case("cells/mlstm", lambda steps: (mlstm, mlstm_inputs(2, 2, steps, 4))),
)
