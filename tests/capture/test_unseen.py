"""Spellings from all over public code, each with the fate of its loops: outputs and all gradients."""

from __future__ import annotations

from collections import deque, namedtuple

import pytest
import torch
from fates import FUSED, fates
from torch import nn
from torch.nn import functional as F

import tenfuse

B, T, D = 2, 6, 4


X = (B, T, D)


def test_while_with_a_counter():
    def f(x):
        h, t, ys = torch.zeros_like(x[:, 0]), 0, []
        while t < x.size(1):
            h = torch.tanh(h * 0.7 + x[:, t])
            ys.append(h)
            t += 1
        return torch.stack(ys, 1), h

    assert fates(f, X) == FUSED


def test_enumerated_pairs_with_a_mask():
    def f(x, m):
        h, out = x.new_zeros(B, D), torch.empty_like(x)
        for i, (xt, mt) in enumerate(zip(x.unbind(1), m.unbind(1), strict=True)):
            h = torch.where(mt[:, None] > 0, torch.sigmoid(xt) * h + xt, h)
            out[:, i] = h
        return out

    assert fates(f, X, (B, T)) == FUSED


def test_reversed_range_and_list_reversed_by_slice():
    def f(x):
        h, outs = torch.zeros(B, D), []
        for t in reversed(range(T)):
            h = 0.8 * h + x[:, t]
            outs.append(h)
        return torch.stack(outs[::-1], dim=1)

    assert fates(f, X) == FUSED


def test_flipped_sequence():
    def f(x):
        h, outs = torch.zeros(B, D), []
        for xt in torch.flip(x, [1]).transpose(0, 1):
            h = torch.cos(h) + xt
            outs.append(h)
        return torch.flip(torch.stack(outs, 1), [1])

    assert fates(f, X) == FUSED


def test_layers_inside_the_time_loop():
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList([nn.RNNCell(D, D, nonlinearity="relu") for _ in range(2)])

        def forward(self, x):
            hs, out = [x.new_zeros(B, D) for _ in self.cells], []
            for t in range(T):
                given = x[:, t]
                for i, cell in enumerate(self.cells):
                    given = hs[i] = cell(given, hs[i])
                out.append(given)
            return torch.stack(out, 1), torch.stack(hs)

    assert fates(Stacked(), X) == FUSED


def test_norm_of_the_state():
    def f(x, w):
        h, o = torch.zeros_like(x[:, 0]), []
        for t in range(T):
            h = F.rms_norm(h + x[:, t], (D,), w, 1e-6)
            o.append(h)
        return torch.stack(o, 1)

    assert fates(f, X, (D,)) == FUSED


def test_addmm_time_first():
    def f(x, w, b):
        h, ys = x.new_zeros(B, D), []
        for xt in x:
            h = torch.relu(torch.addmm(b, h, w, alpha=0.5) + xt)
            ys.append(h)
        return torch.stack(ys)

    assert fates(f, (T, B, D), (D, D), (D,)) == FUSED


def test_baddbmm_and_bmm():
    def f(k, v):
        s, ys = k.new_zeros(B, 3, D), []
        for t in range(T):
            s = torch.baddbmm(s, k[:, t].unsqueeze(2), v[:, t].unsqueeze(1), beta=0.9)
            ys.append(torch.bmm(k[:, t : t + 1], s).squeeze(1))
        return torch.stack(ys, 1)

    assert fates(f, (B, T, 3), X) == FUSED


def test_outer_and_tensordot():
    def f(k, v):
        s, ys = torch.zeros(3, D), []
        for t in range(T):
            s = 0.9 * s + torch.outer(k[t], v[t])
            ys.append(torch.tensordot(k[t], s, dims=1))
        return torch.stack(ys)

    assert fates(f, (T, 3), (T, D)) == FUSED


def test_complex_state_by_polar():
    def f(x, r, angle):
        u, h, ys = torch.view_as_complex(x), torch.zeros(B, D, dtype=torch.complex64), []
        rotation = torch.polar(torch.sigmoid(r), angle)
        for t in range(T):
            h = rotation * h + u[:, t]
            ys.append(torch.view_as_real(h))
        return torch.stack(ys, 1)

    assert fates(f, (B, T, D, 2), (D,), (D,)) == FUSED


def test_neighbours_in_time():
    def f(x):
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(1, T - 1):
            h = torch.sin(h) + x[:, t - 1] * x[:, t + 1] - x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)

    assert fates(f, X) == FUSED


def test_window_of_the_past():
    def f(x, w):
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(3, 9):
            h = 0.5 * h + (x[:, t - 3 : t + 1] * w).sum(1)
            ys.append(h)
        return torch.stack(ys, 1)

    assert fates(f, (B, 9, D), (4, D)) == FUSED


def test_chunks_with_a_triangular_mask():
    def f(q, k, v):
        c, s, o = 4, torch.zeros(B, 2, 3, D), []
        mask = torch.tril(torch.ones(c, c))
        for i in range(4):
            qi, ki, vi = (z[:, :, i * c : (i + 1) * c] for z in (q, k, v))
            o.append(qi @ s + ((qi @ ki.transpose(-1, -2)) * mask) @ vi)
            s = s + ki.transpose(-1, -2) @ vi
        return torch.cat(o, 2), s

    assert fates(f, (B, 2, 16, 3), (B, 2, 16, 3), (B, 2, 16, D)) == FUSED


def test_every_second_step_is_taught():
    def f(x, y):
        h, o = torch.zeros_like(x[:, 0]), []
        for t in range(T):
            h = torch.tanh(h * 0.5 + (x[:, t] if t % 2 == 0 else y[:, t]))
            o.append(h)
        return torch.stack(o, 1)

    assert fates(f, X, X) == FUSED


def test_lengths():
    def f(x, n):
        h = torch.zeros_like(x[:, 0])
        for t in range(T):
            m = (t < n).to(x.dtype).unsqueeze(1)
            h = m * torch.tanh(h + x[:, t]) + (1 - m) * h
        return h

    assert fates(f, inputs=[torch.randn(*X), torch.tensor([3, 6])]) == FUSED


def test_low_precision_input_and_wide_state():
    def f(x):
        h, o = torch.zeros(B, D, dtype=torch.float32), []
        for t in range(T):
            h = 0.9 * h + x[:, t].float()
            o.append(h.to(x.dtype))
        return torch.stack(o, 1)

    assert fates(f, inputs=[torch.randn(*X).bfloat16()]) == FUSED


def test_low_precision_matrix_on_the_state():
    def f(x, w):
        h, o = torch.zeros_like(x[:, 0]), []
        for t in range(T):
            h = torch.tanh(torch.einsum("bw,we->be", h, w) + x[:, t])
            o.append(h)
        return torch.stack(o, 1)

    assert fates(f, inputs=[torch.randn(3, T, 8).bfloat16(), torch.randn(8, 8).bfloat16()]) == FUSED


def test_best_path():
    def f(e, a):
        s, back = e[:, 0], []
        for t in range(1, T):
            s, i = (s.unsqueeze(2) + a).max(1)
            s = s + e[:, t]
            back.append(i)
        return s, torch.stack(back, 1)

    assert fates(f, (B, T, 5), (5, 5)) == FUSED


def test_ties_of_a_minimum():
    def f(e, a):
        s = e[:, 0]
        for t in range(1, T):
            s = torch.min(s.unsqueeze(2) + a, dim=1, keepdim=True)[0].squeeze(1) + e[:, t]
        return s

    torch.manual_seed(0)
    assert fates(f, inputs=[torch.randn(B, T, 5).round(), torch.randn(5, 5).round()]) == FUSED


def test_bool_state():
    def f(x):
        h, alive, o = torch.zeros(B, D), torch.ones(B, dtype=torch.bool), []
        for t in range(T):
            h = torch.where(alive[:, None], h * 0.9 + x[:, t], h)
            alive = alive & (h[:, 0] < 1.0)
            o.append(h)
        return torch.stack(o, 1), alive

    assert fates(f, X) == FUSED


def test_integer_state():
    def f(x):
        h, n = torch.zeros(B, D), torch.zeros(B, dtype=torch.long)
        for t in range(T):
            h = h * 0.9 + x[:, t]
            n = n + (h[:, 0] > 0).long()
        return h, n

    assert fates(f, X) == FUSED


def test_season_in_a_growing_list():
    def f(x):
        season, level, o = [torch.ones(B) for _ in range(4)], x[:, 0], []
        for t in range(12):
            s = season[t]
            level = 0.3 * x[:, t] / s + 0.7 * level
            season.append(0.2 * x[:, t] / level + 0.8 * s)
            o.append(level * s)
        return torch.stack(o, 1)

    torch.manual_seed(0)
    assert fates(f, inputs=[torch.randn(B, 12).abs() + 1]) == FUSED


def test_three_states_in_a_deque():
    def f(x):
        past, o = deque([torch.zeros(B, D)] * 3, maxlen=3), []
        for t in range(T):
            past.append(0.5 * past[0] + 0.2 * past[2] + x[:, t])
            o.append(past[-1])
        return torch.stack(o, 1)

    assert fates(f, X) == FUSED


State = namedtuple("State", "h c")


def test_named_tuple():
    def f(x):
        s, o = State(torch.zeros(B, D), torch.zeros(B, D)), []
        for t in range(T):
            c = s.c * 0.5 + x[:, t]
            s = s._replace(c=c, h=torch.tanh(c) + s.h * 0.1)
            o.append(s.h)
        return torch.stack(o, 1), s.c

    assert fates(f, X) == FUSED


VIEWS = {
    "to": lambda h: h.to(torch.float32),
    "contiguous": lambda h: h.contiguous(),
    "slice": lambda h: h[:, :2],
}


@pytest.mark.parametrize("show", VIEWS.values(), ids=VIEWS)
def test_view_appended_before_the_state_changes_in_place(show):
    def f(x):
        h, o, early = torch.zeros(B, D), [], []
        for t in range(T):
            h = h * 0.5 + x[:, t]
            y = show(h)
            early.append(y * 2)
            h += 0.1 * x[:, t]
            o.append(y)
        return torch.stack(o, 1), torch.stack(early, 1), h

    assert fates(f, X) == FUSED


def test_view_only_read_after_the_loop():
    def f(x):
        h, o = torch.zeros(B, D), []
        for t in range(T):
            h = h * 0.5 + x[:, t]
            o.append(h.to(x.dtype))
            h += 0.1 * x[:, t]
        return torch.stack(o, 1), h

    assert fates(f, X) == FUSED


@pytest.mark.parametrize("dynamic", [None, True])
def test_another_length_makes_another_loop(dynamic):
    def f(x):
        h, o = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            o.append(h)
        return torch.stack(o, 1)

    torch._dynamo.reset()
    compiled = torch.compile(
        f, backend="tenfuse", options={"strict": True, "inner": "eager"}, dynamic=dynamic
    )
    for batch, steps in ((2, 7), (3, 9), (4, 9), (2, 5)):
        x = torch.randn(batch, steps, D)
        torch.testing.assert_close(compiled(x), f(x))
        (loop,) = tenfuse.reports()[-1].loops
        assert (loop.status, loop.steps) == ("fused", steps)


def test_a_value_that_is_read_twice_at_every_turn():
    """Two to the fortieth ways lead from the product to the softmax; its nodes are 120."""

    def f(x, w):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = h @ w
            for _ in range(40):
                h = h + 0.01 * h * h
            h = torch.softmax(h, -1) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    (loop,) = tenfuse.explain(f)(torch.randn(*X), torch.randn(D, D)).loops
    assert loop.status == "fused" and loop.kernels
