"""States and results written in unusual ways: into slices, by masks, by copies, by growing."""

from __future__ import annotations

import torch
from fates import FUSED, fates, loops
from torch import nn

B, T, D = 2, 7, 4
X = (B, T, D)


def test_states_of_layers_in_one_tensor():
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList(nn.RNNCell(D, D) for _ in range(2))

        def forward(self, x):
            hs, out = torch.zeros(2, B, D), []
            for t in range(T):
                y = x[:, t]
                for i, cell in enumerate(self.cells):
                    hs[i] = cell(y, hs[i].clone())
                    y = hs[i].clone()
                out.append(y)
            return torch.stack(out, 1), hs

    assert fates(Stacked(), X) == FUSED


def test_slices_of_a_state_changed_in_place():
    def f(x):
        s, out = torch.zeros(B, 2, D), []
        for t in range(T):
            s[:, 0] *= 0.5
            s[:, 0] += x[:, t]
            s[:, 1] += s[:, 0]
            out.append(s.sum(1))
        return torch.stack(out, 1), s

    assert fates(f, inputs=[torch.randn(*X)], grad=False) == FUSED


def test_a_slice_of_a_state_that_the_caller_sees():
    def f(x, s):
        out = []
        for t in range(T):
            s[:, 0] = 0.5 * s[:, 0].clone() + x[:, t]
            out.append(s.clone())
        return torch.stack(out, 1).sum(2)

    assert fates(f, X, (B, 2, D)) == FUSED


def test_delay_line_beside_a_buffer():
    def f(x):
        s, out = torch.zeros(B, 3, D), torch.zeros(B, T, D)
        for t in range(T):
            s[:, 1:] = s[:, :2].clone()
            s[:, 0] = x[:, t]
            out[:, t] = s.mean(1).tanh()
        return out, s

    assert fates(f, X) == FUSED


def test_another_slice_once():
    def f(x):
        s, out = torch.zeros(B, 2, D), []
        for t in range(T):
            s[:, 0 if t != 3 else 1] = 0.5 * s[:, 1].clone() + x[:, t]
            out.append(s.clone())
        return torch.stack(out, 1), s

    assert all(loop.steps == 3 for loop in loops(f, X))


def test_a_view_of_the_state_made_before_the_loop():
    def f(x):
        s, out = torch.zeros(B, 2, D), []
        first = s[:, 0]
        for t in range(T):
            s[:, 0] = 0.5 * s[:, 1].clone() + x[:, t]
            s[:, 1] = first.clone() * 0.3
            out.append(first.clone())
        return torch.stack(out, 1), first

    assert fates(f, X) == FUSED


def test_copy_into_a_clone():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            new = 0.5 * h + x[:, t]
            h = h.clone()
            h.copy_(new)
            new = new * 2
            out.append(h + new)
        return torch.stack(out, 1)

    assert fates(f, X) == FUSED


def test_two_states_copied_in_turn():
    def f(x):
        a, b, out = torch.zeros(B, D), torch.zeros(B, D), []
        for t in range(T):
            a.copy_(b)
            b.copy_(0.5 * a + x[:, t])
            out.append(a - b)
        return torch.stack(out, 1), a, b

    assert fates(f, inputs=[torch.randn(*X)], grad=False) == FUSED


def test_reset_by_a_mask_of_the_state():
    def f(x):
        v, out = torch.zeros(B, D), []
        for t in range(T):
            v = v + 0.5 * (3 * x[:, t] - v)
            fires = v > 1
            v[fires] = 0
            out.append(fires.float())
        return torch.stack(out, 1), v

    assert fates(f, X) == FUSED


def test_rows_set_by_a_mask():
    def f(x, m, start):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = 0.5 * h + x[:, t]
            h[m[:, t] > 0.5] = start[0]
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, X, (B, T), (1,)) == FUSED


def test_result_grown_by_cat():
    def f(x):
        out, back, h = x[:, :0], None, torch.zeros(B, D)
        for t in range(T):
            h = torch.sin(h) + x[:, t]
            out = torch.cat([out, h[:, None]], 1)
            back = h[:, None] if back is None else torch.cat((h[:, None], back), dim=1)
        return out * back, out

    assert fates(f, X) == FUSED


def test_grown_result_that_is_read_is_kept():
    def f(x):
        out, h = torch.zeros(B, 1, D), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.3 + x[:, t] + out.mean(1)
            out = torch.cat([out, h.unsqueeze(1)], 1)
        return out

    assert fates(f, X) == ["TF105"]


def test_grown_result_of_two_dtypes():
    def f(x):
        out, h = torch.zeros(B, 0, D, dtype=torch.float64), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.3 + x[:, t]
            out = torch.cat([out, h[:, None]], 1)
        return out

    fates(f, X)


def test_the_step_before_the_first_is_the_last():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) * x[:, t - 1] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    def two(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) * x[:, t - 2] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    def backwards(x):
        h, out = torch.zeros(B, D), []
        for t in range(T - 1, -1, -1):
            h = torch.sin(h) + x[:, t] - x[:, t - 1]
            out.append(h)
        return torch.stack(out, 1)

    for g, steps in ((f, T - 1), (two, T - 2), (backwards, T - 1)):
        (loop,) = loops(g, X)
        assert (loop.status, loop.steps) == ("fused", steps)


def test_grown_result_of_pieces_that_change_afterwards():
    def now(x):
        out, h = torch.zeros(B, 0, D), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.3 + x[:, t]
            out = torch.cat([out, h[:, None]], 1)
            h += 1
        return out, h

    def later(x):
        out, h, hs = torch.zeros(B, 0, D), torch.zeros(B, D), []
        for t in range(T):
            h = h * 0.3 + x[:, t]
            out = torch.cat([out, h[:, None]], 1)
            hs.append(h)
        for h in hs:
            h.mul_(2)
        return out, h

    fates(now, X)
    fates(later, X)


def test_grown_result_partly_without_gradient():
    def f(x):
        out, h = torch.zeros(B, 0, D), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.3 + x[:, t]
            with torch.set_grad_enabled(t == T - 1):
                out = torch.cat([out, h[:, None]], 1)
        return out

    fates(f, X)


def test_norm_of_a_batch_in_evaluation():
    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.weights = nn.BatchNorm1d(D), nn.Linear(D, D)

        def forward(self, x):
            v, out = torch.zeros(B, D), []
            for t in range(T):
                v = v + (self.norm(self.weights(x[:, t])) - v) / 2
                fires = (v > 0.2).float()
                v = v * (1 - fires)
                out.append(fires)
            return torch.stack(out, 1), v

    assert fates(Spiking().eval(), X) == FUSED
    assert fates(Spiking(), X) == ["TF103"]


def test_running_statistics_behind_the_weights():
    def f(x, w):
        mean, var = torch.zeros(D), torch.ones(D)
        v, out = torch.zeros(3, D), []
        for t in range(T):
            v = v * 0.5 + torch.batch_norm(x[:, t], w, None, mean, var, True, 0.1, 1e-5, False)
            out.append(v + mean)
        return torch.stack(out, 1), mean, var

    assert fates(f, (3, T, D), (D,), grad=False) == ["TF103"]


def test_the_last_entry_read_from_a_state_that_nothing_else_reads():
    def f(x, c):
        u, before, out = torch.zeros(B, 6), torch.zeros(B, 6), []
        for t in range(T):
            new = torch.zeros_like(u)
            new[:, 1:-1] = 2 * u[:, 1:-1] - before[:, 1:-1] + c * (u[:, 2:] - u[:, :-2])
            new[:, 2] = new[:, 2] + x[:, t, 0]
            before, u = u, new
            out.append(u[:, 2])
        return torch.stack(out, 1)

    def unwritten(x):
        u, out = torch.zeros(B, D), []
        for t in range(T):
            new = torch.zeros_like(u)
            new[:, 1:] = torch.sin(u[:, :3]) + x[:, t, 1:]
            new[:, 1] = new[:, 1] + x[:, t, 0]
            u = new
            out.append(u[:, 2:])
        return torch.stack(out, 1)

    def shown_twice(x):
        u, out = torch.zeros(B, 3, D), []
        for t in range(T):
            new = torch.zeros_like(u)
            new[:, 1:] = torch.sin(u[:, :2]) + 1
            new[:, 0] = x[:, t] + new[:, 1]
            u = new
            out.append(u[:, 0].unsqueeze(0)[..., 1:])
        return torch.cat(out, 0)

    assert fates(f, X, (1,)) == FUSED
    assert fates(unwritten, X) == FUSED
    assert fates(shown_twice, X) == FUSED
