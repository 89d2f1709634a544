"""Where the state lives, how it starts and ends, and what is cut from its gradient."""

from __future__ import annotations

import torch
from spelled import B, D, T, found, inputs, x_h
from stepwise import check


def test_first_step_without_state():
    def f(x):
        h, out = None, []
        for t in range(x.shape[1]):
            h = x[:, t] if h is None else h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_starts_as_a_number():
    def f(x):
        h, out = 0.0, []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_starts_broadcast():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (D,))), (T - 1, 1))


def test_last_step_differs():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            if t == x.shape[1] - 1:
                h = torch.tanh(h)
            out.append(h)
        return torch.stack(out, 1), h

    (loop,) = check(f, *x_h()).loops
    assert loop.steps in (T - 1, T)


def test_tuple_rebinding_and_two_carries():
    def f(x, h):
        a, b, out = h, torch.zeros_like(h), []
        for t in range(x.shape[1]):
            a, b = a * 0.5 - b * 0.1 + x[:, t], a * 0.1 + b * 0.5
            out.append(a + b)
        return torch.stack(out, 1), b

    found(check(f, *x_h()), (T, 2))


def test_optional_operand():
    def f(x, h, r=None):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            if r is not None:
                h = h @ r
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, D), (D, D))), (T, 1))
    found(check(f, *x_h()), (T, 1))


def test_masks():
    def f(x, m, h):
        out = []
        for t in range(x.shape[1]):
            new = torch.tanh(h + x[:, t])
            h = torch.where(m[:, t, None] > 0, new, h)
            out.append(h.masked_fill(m[:, t, None] < -1, 0.0))
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T), (B, D))), (T, 1))


def test_detach_every_step():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h.detach() * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_carry_occurs_several_times():
    def f(x, v):
        out = []
        for t in range(x.shape[1]):
            v = v + (x[:, t] - v) / 2.0
            s = (v > 0.5).float()
            v = v * (1 - s)
            out.append(s + v)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_state_two_steps_back():
    def f(x, h):
        a, b, out = h, h * 2, []
        for t in range(x.shape[1]):
            new = 0.5 * a - 0.25 * b + x[:, t]
            b, a = a, new
            out.append(new)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 2))


def test_list_element_state():
    def f(x, h):
        states = [h]
        for t in range(x.shape[1]):
            states.append(states[-1] * 0.5 + x[:, t])
        return torch.stack(states, 1)

    found(check(f, *x_h()), (T, 1))


def test_dict_and_attribute_state():
    def f(x, h):
        state, out = {"h": h}, []
        for t in range(x.shape[1]):
            state["h"] = state["h"] * 0.5 + x[:, t]
            out.append(state["h"])
        return torch.stack(out, 1), state["h"]

    found(check(f, *x_h()), (T, 1))


def test_module_with_helpers():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.rec = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
            self.norm = torch.nn.LayerNorm(D)

        def step(self, x, h):
            return torch.tanh(self.inp(x) + self.rec(h))

        def forward(self, x, h):
            out = []
            for t in range(x.shape[1]):
                h = self.step(x[:, t], h)
                out.append(self.norm(h))
            return torch.stack(out, 1), h

    torch.manual_seed(0)
    found(check(Cell(), *x_h()), (T, 1))


def test_lstm_cell():
    cell = torch.nn.LSTMCell(D, D)

    def f(x, h):
        c, out = torch.zeros_like(h), []
        for t in range(x.shape[1]):
            gates = x[:, t] @ cell.weight_ih.t() + h @ cell.weight_hh.t() + cell.bias_ih + cell.bias_hh
            i, f_, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f_) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, 1), (h, c)

    found(check(f, *x_h()), (T, 2))


def test_casts_inside_the_loop():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t].float()
            out.append(h.to(torch.float64))
        return torch.stack(out, 1)

    x, h = x_h()
    found(check(f, x.detach().double(), h), (T, 1))
